//! Every request and reply goes round; nothing that arrives panics or allocates on its word.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::rollout::{Gate, Plan, Stage};
use crate::wire::NodeKind;
use crate::{ChangeSet, Entry, Epoch, Key, Level, Limits, State};

fn id() -> impl Strategy<Value = Id> {
    any::<[u8; 16]>().prop_map(Id)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn place() -> impl Strategy<Value = Place> {
    any::<(u64, u64)>().prop_map(|(epoch, rev)| Place { epoch, rev })
}

fn words() -> impl Strategy<Value = String> {
    "[a-zé/]{0,40}"
}

fn key() -> impl Strategy<Value = Key> {
    vec(any::<u8>(), 1..12).prop_map(|key| Key::new(key).expect("1 to 11 bytes"))
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..12).prop_map(Bytes::from)
}

fn changes() -> impl Strategy<Value = ChangeSet> {
    vec((key(), option::of((any::<u16>(), bytes()))), 0..12).prop_map(|operations| {
        let mut changes = ChangeSet::new();
        for (key, put) in operations {
            match put {
                Some((flags, value)) => changes.put(key, flags, value),
                None => changes.delete(key),
            }
        }
        changes
    })
}

fn state() -> impl Strategy<Value = State> {
    vec((key(), any::<u16>(), bytes()), 0..12)
        .prop_map(|all| all.into_iter().map(|(key, flags, value)| (key, Entry::new(flags, value))).collect())
}

fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((words(), words()), 0..4)
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::Stored), Just(Level::Visible), Just(Level::Applied)]
}

fn plan() -> impl Strategy<Value = Plan> {
    let gate = any::<(u16, u32, u32)>().prop_map(|(applied, refusals, bake)| Gate {
        applied,
        refusals,
        bake: Duration::from_millis(bake.into()),
    });
    let label = ("[a-z]{0,9}", "[a-z]{0,9}");
    let stage = (vec(label, 0..3), any::<u16>(), option::of(gate)).prop_map(|(labels, share, gate)| Stage {
        labels,
        share,
        gate,
    });
    (id(), vec(stage, 0..4)).prop_map(|(salt, stages)| Plan { salt, stages })
}

fn rollout() -> impl Strategy<Value = RolloutLine> {
    (place(), place(), plan(), any::<(u8, bool)>(), any::<[u32; 4]>()).prop_map(
        |(at, for_all, plan, (stage, paused), [nodes, applied, refused, lasts_ms])| RolloutLine {
            at,
            for_all,
            plan,
            stage,
            paused,
            nodes,
            applied,
            refused,
            lasts_ms,
        },
    )
}

fn begin_with() -> impl Strategy<Value = BeginWith> {
    prop_oneof![
        Just(BeginWith::Nothing),
        Just(BeginWith::Same),
        option::of(place()).prop_map(BeginWith::Node)
    ]
}

fn holding() -> impl Strategy<Value = Holding> {
    (tip(), any::<bool>(), any::<u32>()).prop_map(|(Tip { position, digest, .. }, for_all, nodes)| Holding {
        position,
        digest,
        for_all,
        nodes,
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let how = || (option::of(plan()), any::<bool>());
    let step = prop_oneof![
        Just(Step::Promote),
        Just(Step::Pause),
        Just(Step::Resume),
        Just(Step::Abort),
        Just(Step::Next)
    ];
    let common = || (id(), words(), option::of(place()), words(), words());
    let selector = || (vec(words(), 0..4), labels()).prop_map(|(names, labels)| Selector { names, labels });
    prop_oneof![
        (common(), how(), changes()).prop_map(
            |((request, namespace, expect, author, note), (rollout, supersede), changes)| {
                Ask::Commit(CommitAsk {
                    request,
                    namespace,
                    expect,
                    author,
                    note,
                    rollout,
                    supersede,
                    changes,
                })
            }
        ),
        (words(), option::of(place()), bytes(), bytes(), any::<u32>()).prop_map(
            |(namespace, at, prefix, after, max)| Ask::Read(ReadAsk { namespace, at, prefix, after, max })
        ),
        (words(), place(), level(), any::<u32>(), selector()).prop_map(
            |(namespace, position, level, timeout_ms, selector)| {
                Ask::Wait(WaitAsk { namespace, position, level, timeout_ms, selector })
            }
        ),
        (words(), option::of(id()))
            .prop_map(|(namespace, after)| Ask::Status(StatusAsk { namespace, after })),
        (words(), any::<bool>(), place(), any::<u16>(), any::<u32>()).prop_map(
            |(namespace, back, bound, max, wait_ms)| {
                let order = if back { Order::Back } else { Order::Forward };
                Ask::Log(LogAsk { namespace, order, bound, max, wait_ms })
            }
        ),
        (common(), how(), place()).prop_map(
            |((request, namespace, expect, author, note), (rollout, supersede), to)| {
                Ask::Revert(RevertAsk { request, namespace, expect, author, note, rollout, supersede, to })
            }
        ),
        (common(), place(), step).prop_map(|((request, namespace, _, author, note), position, step)| {
            Ask::Rollout(RolloutAsk { request, namespace, position, step, author, note })
        }),
        (common(), state()).prop_map(|((request, namespace, expect, author, note), state)| {
            Ask::Import(ImportAsk { request, namespace, expect, author, note, state })
        }),
        words().prop_map(Ask::Holdings),
        (common(), begin_with()).prop_map(|((request, namespace, expect, author, note), with)| {
            Ask::Begin(BeginAsk { request, namespace, expect, author, note, with })
        }),
        (42u8..=255).prop_map(Ask::Unknown),
    ]
}

fn tip() -> impl Strategy<Value = Tip> {
    (any::<u64>(), id(), any::<u64>(), digest(), any::<u32>(), any::<u64>()).prop_map(
        |(number, incarnation, rev, digest, keys, bytes)| {
            let position = Position { epoch: Epoch { number, incarnation }, rev };
            Tip { position, digest, keys, bytes }
        },
    )
}

fn named() -> impl Strategy<Value = Named> {
    (id(), words()).prop_map(|(node, name)| Named { node, name })
}

fn refusal() -> impl Strategy<Value = (Place, NackCode, String)> {
    (place(), prop_oneof![Just(NackCode::Hook), Just(NackCode::Conflict)], words())
}

fn waited() -> impl Strategy<Value = Waited> {
    let refusing = (named(), refusal()).prop_map(|(node, (position, code, text))| Refusing {
        node,
        position,
        code,
        text,
    });
    (vec(named(), 0..3), vec(refusing, 0..3), vec(named(), 0..3), vec(named(), 0..3))
        .prop_map(|(ok, refused, behind, silent)| Waited { ok, refused, behind, silent })
}

fn node() -> impl Strategy<Value = NodeLine> {
    (named(), labels(), any::<[bool; 3]>(), (place(), place(), place()), vec(refusal(), 0..3)).prop_map(
        |(node, labels, [relay, connected, conflict], (stored, visible, applied), refused)| NodeLine {
            node,
            labels,
            kind: if relay { NodeKind::Relay } else { NodeKind::Replica },
            connected,
            conflict,
            stored,
            visible,
            applied,
            refused,
        },
    )
}

fn nodes() -> impl Strategy<Value = Nodes> {
    let limits = any::<(u32, u32, u64)>().prop_map(|(value, keys, bytes)| Limits {
        value: value as usize,
        keys,
        bytes,
    });
    let some = (option::of(rollout()), any::<bool>(), vec(node(), 0..3));
    (tip(), any::<bool>(), words(), place(), limits, some).prop_map(
        |(tip, old, text, oldest, limits, (rollout, more, nodes))| {
            let writable = if old { Writable::Old } else { Writable::Yes };
            Nodes { tip, writable, text, oldest, limits, rollout, more, nodes }
        },
    )
}

fn commit() -> impl Strategy<Value = CommitLine> {
    let counts = any::<(u64, u32, u32)>();
    (place(), id(), words(), words(), counts, digest(), vec((key(), any::<bool>()), 0..4)).prop_map(
        |(at, request, author, note, (stamp, puts, deletes), digest, keys)| CommitLine {
            at,
            request,
            author,
            note,
            stamp,
            digest,
            puts,
            deletes,
            keys,
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (place(), digest(), any::<bool>()).prop_map(|(at, digest, replay)| Reply::Committed {
            at,
            digest,
            replay
        }),
        place().prop_map(Reply::Conflict),
        (place(), words())
            .prop_map(|(oldest, text)| { Reply::Invalid { code: InvalidCode::Compacted, oldest, text } }),
        (any::<u32>(), option::of(place())).prop_map(|(after_ms, rollout)| Reply::Busy { after_ms, rollout }),
        words().prop_map(|text| Reply::ReadOnly { why: Writable::Directory, text }),
        (tip(), any::<bool>(), state()).prop_map(|(of, more, entries)| Reply::Entries(Box::new(Entries {
            of,
            more,
            entries
        }))),
        waited().prop_map(Reply::Waited),
        Just(Reply::Aborted),
        place().prop_map(Reply::Lost),
        nodes().prop_map(|nodes| Reply::Nodes(Box::new(nodes))),
        (place(), any::<bool>(), vec(commit(), 0..3))
            .prop_map(|(head, more, commits)| Reply::Commits(Commits { head, more, commits })),
        vec(holding(), 0..4).prop_map(Reply::Holdings),
        (81u8..=255).prop_map(Reply::Unknown),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn every_request_and_reply_goes_round(ask in ask(), reply in reply()) {
        prop_assert_eq!(Ask::decode(&ask.encode().into()), Ok(ask));
        prop_assert_eq!(Reply::decode(&reply.encode().into()), Ok(reply));
    }

    #[test]
    fn one_that_is_cut_short_is_an_error_and_not_another(
        ask in ask(), reply in reply(), at in any::<prop::sample::Index>()
    ) {
        let bytes = Bytes::from(ask.encode());
        if !matches!(ask, Ask::Unknown(_)) {
            prop_assert!(Ask::decode(&bytes.slice(..at.index(bytes.len()))).is_err());
        }
        let bytes = Bytes::from(reply.encode());
        if !matches!(reply, Reply::Unknown(_)) {
            prop_assert!(Reply::decode(&bytes.slice(..at.index(bytes.len()))).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(ask in 31u8..41, reply in 63u8..76, bytes in vec(any::<u8>(), 0..400)) {
        for kind in [ask, reply] {
            let mut message = vec![VERSION, kind, 0, 0];
            message.extend_from_slice(&bytes);
            let message = message.into();
            let _ = (Ask::decode(&message), Reply::decode(&message));
        }
        let bytes = bytes.into();
        let _ = (Ask::decode(&bytes), Reply::decode(&bytes));
    }

    #[test]
    fn one_changed_byte_never_panics(
        ask in ask(), reply in reply(), at in any::<prop::sample::Index>(), to in any::<u8>()
    ) {
        for mut bytes in [ask.encode(), reply.encode()] {
            let at = at.index(bytes.len());
            bytes[at] = to;
            let bytes = bytes.into();
            let _ = (Ask::decode(&bytes), Reply::decode(&bytes));
        }
    }
}

#[test]
fn lengths_that_nothing_bears_out_are_refused() {
    let list = |reply: Reply, len: u32| {
        let mut bytes = reply.encode();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&len.to_be_bytes());
        Reply::decode(&bytes.into())
    };
    let waited = || Reply::Waited(Waited::default());
    assert_eq!(list(waited(), u32::MAX), Err(DecodeError::TooLong("nodes")));
    assert_eq!(list(waited(), MAX_NODES as u32), Err(DecodeError::Short));
    let commits = || Reply::Commits(Commits::default());
    assert_eq!(list(commits(), MAX_COMMITS as u32 + 1), Err(DecodeError::TooLong("commits")));
    let mut ask = Ask::Import(ImportAsk {
        request: Id([0; 16]),
        namespace: "n".into(),
        expect: None,
        author: "a".into(),
        note: String::new(),
        state: State::new(),
    });
    let mut bytes = ask.encode();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(Ask::decode(&bytes.into()), Err(DecodeError::Short));
    if let Ask::Import(import) = &mut ask {
        import.namespace = "n".repeat(MAX_NAMESPACE + 1);
    }
    assert!(
        matches!(Ask::decode(&ask.encode().into()), Ok(Ask::Import(cut)) if cut.namespace.len() == MAX_NAMESPACE)
    );
}
