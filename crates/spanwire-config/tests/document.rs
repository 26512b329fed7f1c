//! The byte examples in `docs/config-broadcast.md` are what the code says.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use spanwire_config::client::Export;
use spanwire_config::rollout::{Audience, Gate, Plan, Stage};
use spanwire_config::sign::Secret;
use spanwire_config::wire::client::{
    Ask, BeginAsk, BeginWith, CommitAsk, CommitLine, Commits, Entries, Holding, ImportAsk, InvalidCode,
    LogAsk, Named, NodeLine, Nodes, Order, ReadAsk, Refusing, Reply, RevertAsk, RolloutAsk, RolloutLine,
    Selector, StatusAsk, Step, Tip, WaitAsk, Waited, Writable,
};
use spanwire_config::wire::{
    Ack, Frame, Goodbye, GoodbyeCode, Hello, Level, Nack, NackCode, NamespaceStatus, NodeKind, NodeReport,
    Report, Said, Slice, Want, WantReason, Welcome, encode_changes, encode_state,
};
use spanwire_config::{
    ChangeSet, Entry, Epoch, Head, Id, Key, Limits, NodeStatus, Place, Position, State, chain,
};

const DOCUMENT: &str = include_str!("../../../docs/config-broadcast.md");

/// Blocks that open with "```text NAME": on each line hex digits, then `|` and words.
fn examples() -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open: Option<(String, Vec<u8>)> = None;
    for line in DOCUMENT.lines() {
        match (&mut open, line.strip_prefix("```text ")) {
            (None, Some(name)) => open = Some((name.to_owned(), Vec::new())),
            (Some(_), _) if line.starts_with("```") => found.extend(open.take()),
            (Some((_, bytes)), _) => {
                let digits: String = line.split('|').next().unwrap_or("").split_whitespace().collect();
                assert!(digits.len().is_multiple_of(2), "odd digits in {line:?}");
                bytes.extend((0..digits.len()).step_by(2).map(|i| {
                    u8::from_str_radix(&digits[i..i + 2], 16).unwrap_or_else(|e| panic!("{line:?}: {e}"))
                }));
            }
            (None, None) => {}
        }
    }
    found
}

fn state(pairs: &[(&str, &str)]) -> State {
    let entry = |(k, v): &(&str, &str)| (Key::new(k).expect("short"), Entry::new(0, v.to_string()));
    pairs.iter().map(entry).collect()
}

fn at(rev: u64) -> Position {
    Position { epoch: Epoch { number: 1, incarnation: Id([0x11; 16]) }, rev }
}

fn head(rev: u64, state: &State, before: Option<&Head>, seq: u64) -> Head {
    let digest = state.digest();
    Head {
        cluster: Id::named("config-sync"),
        namespace: "config".into(),
        position: at(rev),
        prev_rev: before.map_or(0, |h| h.position.rev),
        digest,
        keys: state.keys(),
        bytes: state.bytes(),
        chain: chain(&before.map_or([0; 32], |h| h.chain), rev, &digest),
        seq: 1 << 40 | seq,
        ..Head::default()
    }
}

/// The story of the examples: revision 1 is `a` = `1`; revision 2 deletes `a` and puts `b` = `2`.
fn story() -> Vec<(&'static str, Vec<u8>)> {
    let (one, two) = (state(&[("a", "1")]), state(&[("b", "2")]));
    let first = head(1, &one, None, 1);
    let second = head(2, &two, Some(&first), 2);
    let mut changes = ChangeSet::new();
    changes.delete(Key::new("a").expect("short"));
    changes.put(Key::new("b").expect("short"), 0, "2");
    let slice = |head: &Head, base, bytes: Vec<u8>| {
        Frame::Slice(Box::new(Slice {
            head: head.clone(),
            base,
            offset: 0,
            last: true,
            bytes: Bytes::from(bytes),
        }))
    };
    let want = Want {
        namespace: "config".into(),
        have: vec![first.clone()],
        refused: vec![(at(2), NackCode::Check)],
    };
    let mut encoded = Vec::new();
    first.encode(&mut encoded);
    vec![
        ("head", encoded),
        (
            "hello",
            Frame::Hello(Hello {
                node: Id([0x22; 16]),
                boot: 1 << 32 | 0xabcd,
                attempt: 1,
                kind: NodeKind::Replica,
                name: "web-1".into(),
                labels: vec![("zone".into(), "eu".into())],
                proto_min: 1,
                proto_max: 1,
                cluster: Id::named("config-sync"),
                window: 256 << 10,
                max_chunk: 64 << 10,
                wants: vec![Want { namespace: "config".into(), ..Want::default() }],
            })
            .encode(),
        ),
        (
            "welcome",
            Frame::Welcome(Welcome {
                server: Id([0x33; 16]),
                path: vec![Id([0x33; 16])],
                beacon_ms: 1000,
                window: 256 << 10,
                namespaces: vec![("config".into(), NamespaceStatus::Known)],
            })
            .encode(),
        ),
        ("want", Frame::Want(WantReason::Digest, vec![want]).encode()),
        ("wants", {
            let want = |name: &str| Want { namespace: name.into(), ..Want::default() };
            Frame::Want(WantReason::New, vec![want("db"), want("www")]).encode()
        }),
        ("answers", {
            let answer = |(name, status): (&str, NamespaceStatus)| (name.to_owned(), status);
            let (known, pending) = (NamespaceStatus::Known, NamespaceStatus::Pending);
            Frame::Welcome(Welcome {
                server: Id([0x55; 16]),
                path: vec![Id([0x33; 16]), Id([0x55; 16])],
                beacon_ms: 1000,
                window: 256 << 10,
                namespaces: [("config", known), ("db", known), ("www", pending)].map(answer).into(),
            })
            .encode()
        }),
        ("delta", slice(&second, Some(first.base()), encode_changes(&changes)).encode()),
        ("snapshot", slice(&first, None, encode_state(&one)).encode()),
        ("beacon", Frame::Beacon(vec![second.clone()]).encode()),
        ("credit", Frame::Credit(131_072).encode()),
        (
            "ack",
            Frame::Ack(Ack {
                namespace: "config".into(),
                position: at(2),
                mark: second.claim().mark,
                level: Level::Applied,
                volatile: false,
            })
            .encode(),
        ),
        (
            "nack",
            Frame::Nack(Nack {
                namespace: "config".into(),
                position: at(2),
                mark: second.claim().mark,
                stays_at: at(1),
                code: NackCode::Check,
                text: "no".into(),
            })
            .encode(),
        ),
        ("report", {
            let mut status = NodeStatus::new(Id([0x22; 16]), 1 << 32 | 0xabcd);
            (status.connected, status.name) = (true, "web-1".into());
            status.path = vec![Id([0x55; 16])];
            let claim = Some(second.claim());
            let refused = vec![(second.claim(), NackCode::Hook, "no".into())];
            let said = Said { stored: claim, visible: claim, refused, ..Said::default() };
            let nodes = vec![NodeReport { status, said, attempt: 1, head: None }];
            Frame::Report(Box::new(Report { namespace: "config".into(), first: true, last: true, nodes }))
                .encode()
        }),
        ("waiting", Frame::Waiting("config".into(), 3).encode()),
        ("offer", Frame::Offer("config".into(), at(2)).encode()),
        ("stale", Frame::Stale(Id([0x22; 16]), 2 << 32 | 0xabcd).encode()),
        (
            "goodbye",
            Frame::Goodbye(Goodbye {
                code: GoodbyeCode::Closing,
                detail: 0,
                retry_after_ms: 0,
                alternates: Vec::new(),
            })
            .encode(),
        ),
        ("audience", cohort().to_bytes().to_vec()),
        ("member", {
            // What the share is compared with is found by asking.
            let admits = |share| Audience { share, ..cohort() }.admits(Id([0x22; 16]), &cohort().labels);
            let below = (0..=10_000_u16).position(admits).map_or(10_000, |first| first - 1);
            (below as u16).to_be_bytes().to_vec()
        }),
        ("digest", one.digest().0.to_vec()),
        ("chain", second.chain.to_vec()),
        ("signature", {
            let mut signed = first.clone();
            Secret::from_seed(1, &[0x44; 32]).sign(&mut signed);
            [&signed.key_id.to_be_bytes()[..], &signed.sig.0].concat()
        }),
    ]
}

fn cohort() -> Audience {
    Audience {
        rollout: Id([0x55; 16]),
        salt: Id([0x77; 16]),
        share: 1_000,
        labels: vec![("zone".into(), "eu".into())],
    }
}

fn place(epoch: u64, rev: u64) -> Place {
    Place { epoch, rev }
}

/// The same story, as a client asks for it.
fn asks() -> Vec<(&'static str, Ask)> {
    let (request, namespace) = (Id([0x55; 16]), String::from("config"));
    let mut changes = ChangeSet::new();
    changes.delete(Key::new("a").expect("short"));
    changes.put(Key::new("b").expect("short"), 0, "2");
    vec![
        (
            "commit",
            Ask::Commit(CommitAsk {
                request,
                namespace: namespace.clone(),
                expect: Some(place(1, 1)),
                author: "me".into(),
                note: "b for a".into(),
                rollout: None,
                supersede: false,
                changes,
            }),
        ),
        (
            "read",
            Ask::Read(ReadAsk {
                namespace: namespace.clone(),
                prefix: Bytes::from_static(b"b"),
                max: 1,
                ..ReadAsk::default()
            }),
        ),
        (
            "wait",
            Ask::Wait(WaitAsk {
                namespace: namespace.clone(),
                position: place(1, 2),
                level: Level::Applied,
                timeout_ms: 5000,
                selector: Selector {
                    names: vec!["web-1".into()],
                    labels: vec![("zone".into(), "eu".into())],
                },
            }),
        ),
        ("status", Ask::Status(StatusAsk { namespace: namespace.clone(), after: None })),
        (
            "log",
            Ask::Log(LogAsk {
                namespace: namespace.clone(),
                order: Order::Forward,
                bound: place(1, 1),
                max: 0,
                wait_ms: 30_000,
            }),
        ),
        (
            "revert",
            Ask::Revert(RevertAsk {
                request,
                namespace: namespace.clone(),
                expect: None,
                author: String::new(),
                note: String::new(),
                rollout: None,
                supersede: false,
                to: place(1, 1),
            }),
        ),
        (
            "rollout",
            Ask::Rollout(RolloutAsk {
                request: Id([0x66; 16]),
                namespace: namespace.clone(),
                position: place(1, 2),
                step: Step::Promote,
                author: "ana".into(),
                note: String::new(),
            }),
        ),
        ("holdings-ask", Ask::Holdings(namespace.clone())),
        ("begin", {
            let with = BeginWith::Node(Some(place(1, 2)));
            let (expect, author) = (None, "ana".into());
            Ask::Begin(BeginAsk {
                request,
                namespace: namespace.clone(),
                expect,
                author,
                note: String::new(),
                with,
            })
        }),
        ("import", {
            let (expect, author, note) = (Some(place(1, 2)), "ana".into(), "back".into());
            Ask::Import(ImportAsk { request, namespace, expect, author, note, state: state(&[("a", "1")]) })
        }),
    ]
}

fn tip(rev: u64, state: &State) -> Tip {
    Tip { position: at(rev), digest: state.digest(), keys: state.keys(), bytes: state.bytes() }
}

/// And as it is answered.
fn replies() -> Vec<(&'static str, Reply)> {
    let two = state(&[("b", "2")]);
    let named = |id, name: &str| Named { node: Id([id; 16]), name: name.into() };
    let refused = (place(1, 2), NackCode::Hook, "no".to_owned());
    let key = |key: &str| Key::new(key).expect("short");
    vec![
        ("committed", Reply::Committed { at: place(1, 2), digest: two.digest(), replay: false }),
        ("conflict", Reply::Conflict(place(1, 2))),
        (
            "invalid",
            Reply::Invalid {
                code: InvalidCode::NoSuch,
                oldest: Place::default(),
                text: "there is no position 1:9".into(),
            },
        ),
        ("busy", Reply::Busy { after_ms: 1_000, rollout: Some(place(1, 2)) }),
        ("readonly", Reply::ReadOnly { why: Writable::Vacant, text: "vacant".into() }),
        (
            "entries",
            Reply::Entries(Box::new(Entries { of: tip(2, &two), more: false, entries: two.clone() })),
        ),
        (
            "waited",
            Reply::Waited(Waited {
                ok: vec![named(0x22, "web-1")],
                refused: vec![Refusing {
                    node: named(0x66, "web-2"),
                    position: refused.0,
                    code: refused.1,
                    text: refused.2.clone(),
                }],
                behind: Vec::new(),
                silent: vec![named(0, "web-9")],
            }),
        ),
        (
            "holdings",
            Reply::Holdings(vec![Holding { position: at(2), digest: two.digest(), for_all: true, nodes: 3 }]),
        ),
        ("aborted", Reply::Aborted),
        ("lost", Reply::Lost(place(2, 3))),
        (
            "nodes",
            Reply::Nodes(Box::new(Nodes {
                tip: tip(2, &two),
                writable: Writable::Yes,
                text: String::new(),
                oldest: Place::default(),
                limits: Limits::default(),
                rollout: Some(RolloutLine {
                    at: place(1, 2),
                    for_all: place(1, 1),
                    plan: Plan {
                        salt: Id([0x77; 16]),
                        stages: vec![
                            Stage {
                                labels: vec![("zone".into(), "eu".into())],
                                share: 1_000,
                                gate: Some(Gate {
                                    applied: 9_500,
                                    refusals: 1,
                                    bake: Duration::from_secs(60),
                                }),
                            },
                            Stage { share: 5_000, ..Stage::default() },
                        ],
                    },
                    stage: 0,
                    paused: false,
                    nodes: 3,
                    applied: 2,
                    refused: 1,
                    lasts_ms: 15_000,
                }),
                more: false,
                nodes: vec![NodeLine {
                    node: named(0x22, "web-1"),
                    labels: vec![("zone".into(), "eu".into())],
                    kind: NodeKind::Replica,
                    connected: true,
                    conflict: false,
                    stored: place(1, 2),
                    visible: place(1, 2),
                    applied: place(1, 1),
                    refused: vec![refused],
                }],
            })),
        ),
        (
            "commits",
            Reply::Commits(Commits {
                head: place(1, 2),
                more: false,
                commits: vec![CommitLine {
                    at: place(1, 2),
                    request: Id([0x55; 16]),
                    author: "me".into(),
                    note: "b for a".into(),
                    stamp: 1_700_000_000_000,
                    digest: two.digest(),
                    puts: 1,
                    deletes: 1,
                    keys: vec![(key("a"), false), (key("b"), true)],
                }],
            }),
        ),
    ]
}

#[test]
fn every_example_in_the_document_is_what_the_code_says() {
    let mut examples = examples();
    let mut shown = |name: &str, bytes: Vec<u8>| {
        let shown = examples.remove(name).unwrap_or_else(|| panic!("the document has no example {name:?}"));
        assert_eq!(hex(&shown), hex(&bytes), "{name}");
        Bytes::from(shown)
    };
    for (name, ask) in asks() {
        assert_eq!(Ask::decode(&shown(name, ask.encode())), Ok(ask), "{name}");
    }
    for (name, reply) in replies() {
        assert_eq!(Reply::decode(&shown(name, reply.encode())), Ok(reply), "{name}");
    }
    let one = state(&[("a", "1")]);
    let export = Export { namespace: "config".into(), of: tip(1, &one), state: one };
    assert_eq!(Export::decode(&shown("export", export.encode())), Ok(export));
    for (name, bytes) in story() {
        let shown = examples.remove(name).unwrap_or_else(|| panic!("the document has no example {name:?}"));
        assert_eq!(hex(&shown), hex(&bytes), "{name}");
        if !["head", "audience", "member", "digest", "chain", "signature"].contains(&name) {
            assert_eq!(Frame::decode(&shown.into()).map(|frame| frame.encode()), Ok(bytes), "{name}");
        }
    }
    assert!(examples.is_empty(), "examples that nothing checks: {:?}", examples.keys());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
