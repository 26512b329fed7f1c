//! What is counted, by hand.

use super::*;
use crate::queue::{Frames, Outbound};

#[test]
fn drops_of_no_pipe_are_told_by_their_own_count() {
    let (mut pipes, mut fx) = (Pipes::default(), Effects::default());
    let (a, gone) = (pipes.open(PipeInfo::default()), pipes.open(PipeInfo::default()));
    pipes.remove(gone);
    let mut cx = Cx::new(&mut pipes, &mut fx, Clock::lazy());
    let why = DropReason::Filtered;
    for pipe in [Some(a), Some(a), Some(a), Some(a), None, Some(gone), None, None] {
        cx.dropped(pipe, why);
    }
    let marks = [1, 2, 4].map(|n| (Some(a), why, n)).into_iter();
    assert_eq!(fx.drop_marks, marks.chain([1, 2, 4].map(|n| (None, why, n))).collect::<Vec<_>>());
    assert_eq!(fx.drops.iter().collect::<Vec<_>>(), [(why, 8)]);
}

#[test]
fn a_message_that_is_evicted_or_taken_back_is_not_counted_as_sent() {
    for framed in [false, true] {
        let (mut pipes, mut fx) = (Pipes::default(), Effects::default());
        let a = pipes.open(PipeInfo::default());
        if framed {
            pipes.get_mut(a).expect("it is open").out = Outbound::Framed(Frames::new(b"\x01"));
        }
        let mut cx = Cx::new(&mut pipes, &mut fx, Clock::lazy());
        for size in [10, 20_000, 30, 40] {
            let mut msg = Message::from(vec![7; size]);
            msg.set_header(&[1, 2]);
            cx.put(a, msg).expect("room");
        }
        assert_eq!(cx.evict(a, DropReason::Oldest), Some(18), "framed: {framed}");
        assert_eq!(cx.evict(a, DropReason::Oldest), Some(20_008), "framed: {framed}");
        assert_eq!(cx.reclaim(a).map(|msg| msg.wire_len()), Some(38));
        assert_eq!(pipes.get(a).expect("it is open").sent, (1, 48), "framed: {framed}");
    }
}
