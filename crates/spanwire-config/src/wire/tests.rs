//! Every message goes round; nothing that arrives panics.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{ChangeSet, Entry, Key, State};

fn id() -> impl Strategy<Value = Id> {
    any::<[u8; 16]>().prop_map(Id)
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), id(), any::<u64>())
        .prop_map(|(number, incarnation, rev)| Position { epoch: Epoch { number, incarnation }, rev })
}

fn mark() -> impl Strategy<Value = ChainMark> {
    any::<[u8; 8]>().prop_map(ChainMark)
}

fn claim() -> impl Strategy<Value = Claim> {
    (position(), mark()).prop_map(|(position, mark)| Claim { position, mark })
}

fn base() -> impl Strategy<Value = Base> {
    (position(), any::<[u8; 32]>()).prop_map(|(position, chain)| Base { position, chain })
}

fn namespace() -> impl Strategy<Value = String> {
    "[a-zé/]{0,40}"
}

fn head() -> impl Strategy<Value = Head> {
    let first = (id(), namespace(), position(), any::<u64>(), any::<[u8; 32]>());
    let second = (any::<u32>(), any::<u64>(), any::<[u8; 32]>(), vec(any::<u8>(), 0..9), any::<u64>());
    (first, second, any::<u32>(), vec(any::<u8>(), 64)).prop_map(
        |(
            (cluster, namespace, position, prev_rev, digest),
            (keys, bytes, chain, audience, seq),
            key_id,
            s,
        )| {
            let mut sig = [0; 64];
            sig.copy_from_slice(&s);
            Head {
                cluster,
                namespace,
                position,
                prev_rev,
                digest: Digest(digest),
                keys,
                bytes,
                chain,
                audience: audience.into(),
                seq,
                key_id,
                sig: Signature(sig),
            }
        },
    )
}

fn code() -> impl Strategy<Value = NackCode> {
    prop_oneof![Just(NackCode::Validator), Just(NackCode::Hook), Just(NackCode::Conflict)]
}

fn want() -> impl Strategy<Value = Want> {
    (namespace(), vec(head(), 0..3), vec((position(), code()), 0..3))
        .prop_map(|(namespace, have, refused)| Want { namespace, have, refused })
}

fn hello() -> impl Strategy<Value = Frame> {
    let first = (id(), any::<u64>(), any::<u32>(), "[a-z]{0,20}", vec(("[a-z]{0,9}", "[a-z]{0,9}"), 0..4));
    let second = (any::<u8>(), any::<u8>(), id(), 1..=u32::MAX, MIN_CHUNK..=u32::MAX);
    (first, second, vec(want(), 0..3)).prop_map(
        |((node, boot, attempt, name, labels), (proto_min, proto_max, cluster, window, max_chunk), wants)| {
            let kind = NodeKind::Replica;
            Frame::Hello(Hello {
                node,
                boot,
                attempt,
                kind,
                name,
                labels,
                proto_min,
                proto_max,
                cluster,
                window,
                max_chunk,
                wants,
            })
        },
    )
}

fn report() -> impl Strategy<Value = Frame> {
    let place = || proptest::option::of(claim());
    let levels = (place(), place(), place());
    let refused = vec((claim(), code(), "[a-zü]{0,99}"), 0..3);
    let who = (id(), any::<u64>(), any::<u32>(), "[a-z]{0,20}", vec(("[a-z]{0,9}", "[a-z]{0,9}"), 0..4));
    let what = (any::<[bool; 2]>(), vec(id(), 0..8), levels, refused, proptest::option::of(head()));
    let record = (who, what).prop_map(
        |((node, boot, attempt, name, labels), ([connected, conflict], path, levels, refused, head))| {
            let (stored, visible, applied) = levels;
            let kind = if conflict { NodeKind::Relay } else { NodeKind::Replica };
            let plain = crate::NodeStatus::new(node, boot);
            let status = crate::NodeStatus { kind, name, labels, connected, path, conflict, ..plain };
            let said = Said { stored, visible, applied, refused };
            NodeReport { status, said, attempt, head }
        },
    );
    (namespace(), any::<bool>(), any::<bool>(), vec(record, 0..4)).prop_map(
        |(namespace, first, last, nodes)| Frame::Report(Box::new(Report { namespace, first, last, nodes })),
    )
}

fn frame() -> impl Strategy<Value = Frame> {
    let statuses = prop_oneof![Just(NamespaceStatus::Known), Just(NamespaceStatus::Pending)];
    prop_oneof![
        hello(),
        (id(), vec(id(), 0..8), any::<u32>(), any::<u32>(), vec((namespace(), statuses), 0..4)).prop_map(
            |(server, path, beacon_ms, window, namespaces)| {
                Frame::Welcome(Welcome { server, path, beacon_ms, window, namespaces })
            }
        ),
        (prop_oneof![Just(WantReason::New), Just(WantReason::Digest)], vec(want(), 0..3))
            .prop_map(|(reason, wants)| Frame::Want(reason, wants)),
        (head(), proptest::option::of(base()), any::<u64>(), any::<bool>(), vec(any::<u8>(), 0..300))
            .prop_map(|(head, base, offset, last, bytes)| Frame::Slice(Box::new(Slice {
                head,
                base,
                offset,
                last,
                bytes: bytes.into()
            }))),
        vec(head(), 0..4).prop_map(Frame::Beacon),
        any::<u64>().prop_map(Frame::Credit),
        (namespace(), claim(), any::<bool>()).prop_map(|(namespace, claim, volatile)| {
            let Claim { position, mark } = claim;
            Frame::Ack(Ack { namespace, position, mark, level: Level::Visible, volatile })
        }),
        (namespace(), claim(), position(), code(), "[a-zü]{0,99}").prop_map(
            |(namespace, Claim { position, mark }, stays_at, code, text)| Frame::Nack(Nack {
                namespace,
                position,
                mark,
                stays_at,
                code,
                text
            })
        ),
        (any::<u64>(), any::<u32>(), vec("[a-z:/]{0,20}", 0..3)).prop_map(
            |(detail, retry_after_ms, alternates)| {
                Frame::Goodbye(Goodbye { code: GoodbyeCode::StaleBoot, detail, retry_after_ms, alternates })
            }
        ),
        report(),
        (id(), any::<u64>()).prop_map(|(node, boot)| Frame::Stale(node, boot)),
        (namespace(), position()).prop_map(|(namespace, position)| Frame::Offer(namespace, position)),
        (namespace(), any::<u32>()).prop_map(|(namespace, place)| Frame::Waiting(namespace, place)),
        (15u8..=255, any::<bool>()).prop_map(|(kind, optional)| Frame::Unknown { kind, optional }),
    ]
}

fn changes() -> impl Strategy<Value = ChangeSet> {
    let value = proptest::option::of((any::<u16>(), vec(any::<u8>(), 0..40)));
    proptest::collection::btree_map(vec(any::<u8>(), 1..12), value, 0..20).prop_map(|map| {
        let mut set = ChangeSet::new();
        for (key, op) in map {
            let key = Key::new(key).expect("1 to 11 bytes");
            match op {
                Some((flags, value)) => set.put(key, flags, value),
                None => set.delete(key),
            }
        }
        set
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_message_goes_round(frame in frame()) {
        prop_assert_eq!(Frame::decode(&frame.encode().into()), Ok(frame));
    }

    #[test]
    fn a_message_cut_short_is_an_error_and_not_another_message(frame in frame(), at in any::<prop::sample::Index>()) {
        let bytes = Bytes::from(frame.encode());
        let cut = bytes.slice(..at.index(bytes.len()));
        match frame {
            Frame::Unknown { .. } => {}
            _ => prop_assert!(Frame::decode(&cut).is_err()),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u8..16, bytes in vec(any::<u8>(), 0..400)) {
        let mut message = vec![VERSION, kind, 0, 0];
        message.extend_from_slice(&bytes);
        let _ = Frame::decode(&message.into());
        let bytes = Bytes::from(bytes);
        let _ = (Frame::decode(&bytes), decode_changes(&bytes), decode_state(&bytes));
    }

    #[test]
    fn a_message_with_one_byte_changed_never_panics(
        frame in frame(), at in any::<prop::sample::Index>(), to in any::<u8>()
    ) {
        let mut bytes = frame.encode();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = Frame::decode(&bytes.into());
    }

    #[test]
    fn changes_and_states_go_round(changes in changes()) {
        let bytes = Bytes::from(encode_changes(&changes));
        prop_assert_eq!(decode_changes(&bytes), Ok(changes.clone()));
        let mut state = State::new();
        state.apply(&changes);
        let bytes = Bytes::from(encode_state(&state));
        prop_assert_eq!(bytes.len() as u64, snapshot_size(state.keys(), state.bytes()));
        prop_assert_eq!(decode_state(&bytes), Ok(state));
    }
}

#[test]
fn lengths_that_nothing_bears_out_are_refused() {
    let lie = |kind: u8, rest: &[u8]| {
        let mut message = vec![VERSION, kind, 0, 0];
        message.extend_from_slice(rest);
        Frame::decode(&message.into())
    };
    assert_eq!(lie(7, &[0xff, 0xff]), Err(DecodeError::TooLong("heads")));
    assert_eq!(lie(7, &[0, 64]), Err(DecodeError::Short));
    assert_eq!(decode_state(&vec![0, 1, b'a', 0, 0, 0xff, 0xff, 0xff, 0xff].into()), Err(DecodeError::Short));
}

#[test]
fn keys_that_do_not_rise_are_refused() {
    for second in [b'a', b'b'] {
        let bytes = vec![2, 0, 1, b'b', 2, 0, 1, second];
        assert_eq!(decode_changes(&bytes.into()), Err(DecodeError::Order));
    }
}

#[test]
fn a_payload_is_the_same_in_slices_of_any_size() {
    let state: State = (0..300u16)
        .map(|n| (Key::new(format!("{n:04}")).expect("short"), Entry::new(0, vec![n as u8; 1000])))
        .collect();
    let head = Head { keys: state.keys(), bytes: state.bytes(), ..Head::default() };
    let payload = Payload::snapshot(&head, &state);
    for max in [4096, 50_000, SLICE, usize::MAX] {
        let (mut whole, mut offset) = (Vec::new(), 0);
        while let Some((message, len)) = payload.slice(offset, max) {
            let Ok(Frame::Slice(slice)) = Frame::decode(&message.into_bytes()) else { panic!("a slice") };
            assert_eq!((slice.offset, slice.bytes.len()), (offset, len));
            whole.extend_from_slice(&slice.bytes);
            offset += len as u64;
            assert_eq!(slice.last, offset == payload.size());
            if slice.last {
                break;
            }
        }
        assert_eq!(whole, encode_state(&state), "slices of {max}");
    }
}
