//! REQ by script: what is asked, of whom, how often, and how each request ends.

use std::cell::RefCell;
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::protocol::PipeInfo;
use crate::protocol::check::{self, Check};
use crate::protocol::script::Script;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn open(s: &mut Script<Req>, body: &str, resend: Option<Duration>) -> ReqId {
    s.call(|p, cx| p.open(cx, body.into(), resend)).expect("few are open")
}

fn answer(id: u32, body: &str) -> Message {
    let mut msg = Message::from(body);
    msg.set_header(&[id]);
    msg.joined()
}

/// What the peer received: ids and bodies.
fn asked(s: &mut Script<Req>, pipe: PipeId) -> Vec<(u32, String)> {
    let split = |mut m: Message| (m.pop_word().expect("an id"), String::from_utf8_lossy(&m).into_owned());
    s.drain(pipe, usize::MAX).into_iter().map(split).collect()
}

fn bodies(s: &mut Script<Req>, pipe: PipeId) -> Vec<String> {
    asked(s, pipe).into_iter().map(|(_, body)| body).collect()
}

#[test]
fn many_are_open_at_once_and_each_gets_its_own_answer() {
    let mut s = Script::new(Req::new());
    let (a, b) = (s.open(999), s.open(999));
    let ids: Vec<ReqId> = (0..1000).map(|n| open(&mut s, &n.to_string(), MINUTE)).collect();
    let mut all = asked(&mut s, a);
    assert_eq!(all.len(), 500, "peers take turns");
    all.extend(asked(&mut s, b));
    for (id, body) in all.iter().rev() {
        s.arrive(a, [answer(*id, body)]); // whoever answers
    }
    assert_eq!(s.woken().len(), 1000);
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(s.protocol.poll(id), Some(Ok(n.to_string().as_str().into())));
        assert_eq!(s.protocol.poll(id), None);
    }
    assert_eq!((s.protocol.outstanding(), s.all_drops()), (0, 0));
}

#[test]
fn more_requests_are_expected_while_many_answers_are_to_be_collected() {
    let mut s = Script::new(Req::new());
    let a = s.open(1000);
    let ids: Vec<ReqId> = (0..20).map(|_| open(&mut s, "x", MINUTE)).collect();
    assert!(!s.expected(a), "none was answered");
    s.drain(a, usize::MAX);
    s.arrive(a, ids.iter().map(|id| answer(id.word(), "y")).collect::<Vec<_>>());
    let expected: Vec<bool> = ids
        .iter()
        .map(|id| {
            assert!(s.protocol.poll(*id).is_some());
            open(&mut s, "x", MINUTE);
            s.expected(a)
        })
        .collect();
    assert_eq!(expected.iter().filter(|more| **more).count(), 4);
    assert!(expected[..4].iter().all(|more| *more), "16 are left behind the fourth");
}

#[test]
fn of_many_requests_half_leave_before_the_others_are_asked() {
    let mut s = Script::new(Req::new());
    let a = s.open(1000);
    let ask = |s: &mut Script<Req>, many| {
        let left = (1..=many).filter(|_| {
            open(s, "x", MINUTE);
            let leaves = s.flushed(a);
            if leaves {
                s.drain(a, 1000);
            }
            leaves
        });
        left.collect::<Vec<u32>>()
    };
    assert_eq!(ask(&mut s, 63), []);
    s.drain(a, 1000);
    // As many as half of those that are open: 64 of 127, then 126 of 253.
    assert_eq!(ask(&mut s, 193), [64, 190]);
    // Three are left of before: 252 of 505.
    assert_eq!(ask(&mut s, 500), [249]);
}

#[test]
fn ids_count_up_from_a_random_start_with_the_top_bit_set() {
    let mut starts = vec![];
    for seed in 0..8 {
        let mut s = Script::seeded(Req::new(), seed);
        let a = s.open(9);
        for _ in 0..3 {
            open(&mut s, "x", MINUTE);
        }
        let ids: Vec<u32> = asked(&mut s, a).into_iter().map(|(id, _)| id).collect();
        assert!(ids.iter().all(|id| id & ID != 0));
        assert!(ids.windows(2).all(|w| w[1] == w[0].wrapping_add(1) | ID));
        starts.push(ids[0]);
    }
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), 8);
}

#[test]
fn a_request_that_stays_open_is_never_confused_with_later_ones() {
    let mut s = Script::new(Req::new());
    let a = s.open(9);
    let first = open(&mut s, "first", None);
    let [(old, _)] = asked(&mut s, a)[..] else { panic!("one request") };
    for n in 0..10_000 {
        let id = open(&mut s, "x", MINUTE);
        let (word, _) = asked(&mut s, a)[0].clone();
        assert_ne!(word, old, "{n}");
        s.arrive(a, [answer(word, "y")]);
        assert_eq!(s.protocol.poll(id), Some(Ok("y".into())));
    }
    s.arrive(a, [answer(old, "at last")]);
    assert_eq!(s.protocol.poll(first), Some(Ok("at last".into())));
}

#[test]
fn a_request_without_a_connection_waits_for_one() {
    let mut s = Script::new(Req::new());
    let id = open(&mut s, "1", None);
    open(&mut s, "2", MINUTE);
    assert_eq!((s.protocol.held(), s.protocol.poll(id)), (2, None));
    let a = s.open(1);
    assert_eq!(bodies(&mut s, a), ["1"]);
    assert_eq!((bodies(&mut s, a), s.protocol.held()), (vec!["2".to_string()], 0));
}

#[test]
fn peers_with_a_lower_priority_number_are_asked_first() {
    let mut s = Script::new(Req::new());
    let far = s.open(9);
    let near = PipeInfo { send_priority: 1, ..PipeInfo::default() };
    let near = s.open_with(near).expect("any rep is welcome");
    open(&mut s, "1", MINUTE);
    open(&mut s, "2", MINUTE);
    assert_eq!((s.unsent(far), s.unsent(near)), (0, 2));
}

#[test]
fn promise_10_no_answer_in_time_asks_again_with_the_same_id_until_one_comes() {
    let mut s = Script::new(Req::new());
    let (a, b) = (s.open(9), s.open(9));
    let id = open(&mut s, "1", MINUTE);
    let first = asked(&mut s, a);
    s.advance(Duration::from_millis(59_999));
    assert_eq!(s.unsent(a) + s.unsent(b), 0);
    s.advance(Duration::from_millis(1));
    assert_eq!(asked(&mut s, b), first);
    s.advance(Duration::from_secs(60));
    assert_eq!(asked(&mut s, a), first);
    s.arrive(b, [answer(first[0].0, "yes"), answer(first[0].0, "twice")]);
    assert_eq!(s.protocol.poll(id), Some(Ok("yes".into())));
    assert_eq!(s.drops(DropReason::Late), 1);
    s.advance(Duration::from_secs(600));
    assert_eq!((s.unsent(a) + s.unsent(b), s.next_timer()), (0, None));
}

#[test]
fn promise_10_intervals_of_any_length_are_due_in_their_own_time() {
    let mut s = Script::new(Req::new());
    let a = s.open(99);
    for ms in [100u64, 100, 30, 500, 100, 20] {
        open(&mut s, &ms.to_string(), Some(Duration::from_millis(ms)));
    }
    s.sent(a);
    let mut seen = vec![];
    for now in (10..=100).step_by(10) {
        s.advance(Duration::from_millis(10));
        seen.extend(bodies(&mut s, a).into_iter().map(|body| format!("{now}:{body}")));
    }
    assert_eq!(
        seen,
        [
            "20:20", "30:30", "40:20", "60:30", "60:20", "80:20", "90:30", "100:100", "100:100", "100:100",
            "100:20"
        ]
    );
}

#[test]
fn promise_10_when_the_connection_ends_it_is_asked_again_at_once_and_before_others() {
    let mut s = Script::new(Req::new());
    let a = s.open(9);
    for n in ["1", "2", "3"] {
        open(&mut s, n, MINUTE);
    }
    s.drain(a, 2);
    s.lose(a);
    open(&mut s, "4", MINUTE);
    assert_eq!(s.protocol.held(), 4);
    let b = s.open(9);
    assert_eq!(bodies(&mut s, b), ["1", "2", "3", "4"]);
}

#[test]
fn promise_10_a_request_that_ends_each_connection_is_given_up_and_the_others_are_answered() {
    let mut s = Script::new(Req::new());
    let resend = Some(Duration::from_secs(60));
    let ids: Vec<ReqId> = ["a", "poison", "b", "c"]
        .map(|text| s.call(|p, cx| p.open(cx, text.into(), resend)).expect("room"))
        .to_vec();
    let mut connections = 0;
    while s.protocol.outstanding() > 0 {
        connections += 1;
        assert!(connections < 20, "it ends");
        let pipe = s.open(9);
        // The peer answers until it meets the poison; then the connection ends.
        loop {
            let asked = s.drain(pipe, 9);
            let Some(poison) = asked.iter().position(|m| m.ends_with(b"poison")) else {
                s.arrive(pipe, asked.clone());
                if asked.is_empty() {
                    break;
                }
                continue;
            };
            if connections > 2 {
                // Slow to answer before: only who was alone with the poison is left unanswered.
                s.arrive(pipe, asked[..poison].to_vec());
            }
            break;
        }
        s.lose(pipe);
        s.advance(Duration::from_millis(500));
    }
    let ended: Vec<_> = ids.iter().map(|id| s.protocol.poll(*id).expect("all have ended")).collect();
    assert_eq!(ended[1], Err(Failed::Undeliverable));
    assert!([0, 2, 3].iter().all(|n| ended[*n].is_ok()), "{ended:?}");
}

/// Connections that get all there is and end at once.
fn end_at_once(s: &mut Script<Req>, connections: usize) {
    for _ in 0..connections {
        let pipe = s.open(9);
        s.drain(pipe, 9);
        s.lose(pipe);
    }
}

#[test]
fn promise_10_a_request_that_ends_each_of_many_connections_is_given_up() {
    let mut s = Script::new(Req::new());
    let mut pipes: Vec<PipeId> = (0..4).map(|_| s.open(9)).collect();
    let id = open(&mut s, "poison", MINUTE);
    let mut ended = 0;
    let how = loop {
        let pipe = pipes.remove(pipes.iter().position(|pipe| s.unsent(*pipe) > 0).expect("it is on one"));
        s.drain(pipe, 9);
        s.lose(pipe);
        ended += 1;
        if let Some(how) = s.protocol.poll(id) {
            break how;
        }
        pipes.push(s.open(9));
        assert!(ended < 100, "it ends");
    };
    assert_eq!((how, ended), (Err(Failed::Undeliverable), 1 + 7 * 4));
}

#[test]
fn promise_10_connections_that_end_together_are_not_held_against_a_request() {
    for written in [false, true] {
        let mut s = Script::new(Req::new());
        let pipes: Vec<PipeId> = (0..20).map(|_| s.open(9)).collect();
        let id = open(&mut s, "x", MINUTE);
        for pipe in pipes {
            s.drain(pipe, usize::from(written));
            s.lose(pipe);
        }
        assert_eq!((s.protocol.poll(id), s.protocol.held()), (None, 1), "written: {written}");
        let next = s.open(9);
        assert_eq!(bodies(&mut s, next), ["x"]);
    }
}

#[test]
fn promise_10_connections_that_end_before_a_request_left_are_not_held_against_it() {
    let mut s = Script::new(Req::new());
    let id = open(&mut s, "x", MINUTE);
    for _ in 0..20 {
        let pipe = s.open(9);
        s.lose(pipe);
    }
    assert_eq!((s.protocol.poll(id), s.protocol.held()), (None, 1));
    end_at_once(&mut s, 7);
    assert_eq!(s.protocol.poll(id), None);
    end_at_once(&mut s, 1);
    assert_eq!(s.protocol.poll(id), Some(Err(Failed::Undeliverable)));
}

#[test]
fn promise_10_suspects_go_one_at_a_time_and_the_next_when_one_is_answered_cancelled_or_outlived() {
    let mut s = Script::new(Req::new());
    let ids = ["a", "b", "c", "d"].map(|body| open(&mut s, body, MINUTE));
    end_at_once(&mut s, 2);
    let pipe = s.open(9);
    let out = asked(&mut s, pipe);
    assert_eq!((out.len(), out[0].1.as_str()), (1, "a"));
    s.arrive(pipe, [answer(out[0].0, "yes")]);
    assert_eq!(bodies(&mut s, pipe), ["b"]);
    s.call(|p, cx| p.cancel(cx, ids[1]));
    assert_eq!(bodies(&mut s, pipe), ["c"]);
    s.advance(Duration::from_millis(999));
    assert_eq!(s.unsent(pipe), 0);
    s.advance(Duration::from_millis(1));
    assert_eq!(bodies(&mut s, pipe), ["d"]);
    // "c" is acquitted: it goes before the suspect.
    s.lose(pipe);
    let next = s.open(9);
    assert_eq!(bodies(&mut s, next), ["c", "d"]);
    assert_eq!((s.protocol.poll(ids[2]), s.protocol.poll(ids[3])), (None, None));
}

#[test]
fn promise_10_a_suspect_that_fails_its_trial_goes_behind_the_others() {
    let mut s = Script::new(Req::new());
    open(&mut s, "poison", MINUTE);
    open(&mut s, "good", MINUTE);
    end_at_once(&mut s, 2);
    let pipe = s.open(9);
    assert_eq!(bodies(&mut s, pipe), ["poison"]);
    s.lose(pipe);
    let pipe = s.open(9);
    assert_eq!(bodies(&mut s, pipe), ["good"]);
}

#[test]
fn promise_10_who_is_acquitted_is_sent_again_beside_the_next_suspect() {
    let mut s = Script::new(Req::new());
    open(&mut s, "acquitted", Some(Duration::from_millis(1500)));
    open(&mut s, "suspect", MINUTE);
    end_at_once(&mut s, 2);
    let pipe = s.open(9);
    s.advance(Duration::from_millis(1000));
    assert_eq!(bodies(&mut s, pipe), ["acquitted", "suspect"]);
    s.advance(Duration::from_millis(500));
    assert_eq!(bodies(&mut s, pipe), ["acquitted"]);
}

#[test]
fn promise_10_a_suspect_gets_its_turn_though_others_wait_always() {
    let mut s = Script::new(Req::new());
    open(&mut s, "suspect", MINUTE);
    end_at_once(&mut s, 2);
    open(&mut s, "0", MINUTE);
    let pipe = s.open(1);
    let mut seen = vec![];
    for n in 1..20 {
        open(&mut s, &n.to_string(), MINUTE);
        s.advance(Duration::from_millis(100));
        seen.extend(s.drain(pipe, 1).into_iter().map(|m| String::from_utf8_lossy(&m[4..]).into_owned()));
    }
    assert_eq!((seen.len(), seen.iter().position(|body| body == "suspect")), (19, Some(10)), "{seen:?}");
}

#[test]
fn promise_10_what_had_not_begun_to_leave_goes_to_another_in_order_also_with_resend_off() {
    let mut s = Script::new(Req::new());
    let a = s.open(9);
    let large = "x".repeat(20_000);
    let ids = ["1", "2", "3", &large, "5"].map(|body| open(&mut s, body, None));
    let on = open(&mut s, "6", MINUTE);
    s.call(|p, cx| p.cancel(cx, ids[2]));
    s.drain(a, 1);
    s.lose(a);
    open(&mut s, "7", None);
    assert_eq!(s.protocol.poll(ids[0]), Some(Err(Failed::ConnectionLost)));
    assert_eq!((s.protocol.outstanding(), s.protocol.held()), (5, 5));
    let b = s.open(9);
    let got = asked(&mut s, b);
    let expect = [(ids[1], "2"), (ids[3], &large), (ids[4], "5"), (on, "6")];
    assert_eq!(got[..4], expect.map(|(id, body)| (id.word(), body.to_string())));
    assert_eq!((got[4].1.as_str(), got.len(), s.all_drops()), ("7", 5, 0));
    s.lose(b);
    assert_eq!(s.protocol.poll(ids[1]), Some(Err(Failed::ConnectionLost)));
}

#[test]
fn a_resend_interval_of_zero_is_none() {
    let mut s = Script::new(Req::new());
    let a = s.open(9);
    let id = open(&mut s, "1", Some(Duration::ZERO));
    assert_eq!(s.next_timer(), None);
    assert_eq!(bodies(&mut s, a), ["1"]);
    s.lose(a);
    assert_eq!(s.protocol.poll(id), Some(Err(Failed::ConnectionLost)));
}

#[test]
fn promise_10_with_resend_off_it_fails_at_once_and_is_asked_at_most_once() {
    let mut s = Script::new(Req::new());
    let (a, b) = (s.open(9), s.open(9));
    let (one, two) = (open(&mut s, "1", None), open(&mut s, "2", None));
    assert_eq!(bodies(&mut s, a), ["1"]);
    s.advance(Duration::from_secs(9999));
    s.lose(a);
    assert_eq!(s.protocol.poll(one), Some(Err(Failed::ConnectionLost)));
    assert_eq!((s.woken(), s.protocol.poll(two)), (vec![one.key()], None));
    assert_eq!((bodies(&mut s, b), s.next_timer()), (vec!["2".to_string()], None));
}

#[test]
fn promise_10_an_answer_that_came_before_the_end_counts() {
    let mut s = Script::new(Req::new());
    let a = s.open(9);
    let id = open(&mut s, "1", None);
    let (word, _) = asked(&mut s, a)[0].clone();
    s.arrive(a, [answer(word, "yes")]);
    s.lose(a);
    assert_eq!(s.protocol.poll(id), Some(Ok("yes".into())));
}

#[test]
fn what_is_no_answer_is_counted_and_changes_nothing() {
    let mut s = Script::new(Req::new());
    let a = s.open(9);
    let id = open(&mut s, "1", MINUTE);
    let (word, _) = asked(&mut s, a)[0].clone();
    let bad = ["".into(), "abc".into(), answer(word & !ID, "clear"), answer(word ^ 1, "unknown")];
    s.arrive(a, bad);
    assert_eq!((s.drops(DropReason::Malformed), s.drops(DropReason::Late)), (3, 1));
    assert_eq!((s.protocol.poll(id), s.closed.len()), (None, 0));
    let mut apart = Message::from("yes");
    apart.set_header(&[word]);
    s.arrive(a, [apart]);
    assert_eq!(s.protocol.poll(id), Some(Ok("yes".into())));
}

#[test]
fn a_cancelled_request_is_forgotten_and_its_answer_is_late() {
    let mut s = Script::new(Req::new());
    let waits = open(&mut s, "0", MINUTE);
    s.call(|p, cx| p.cancel(cx, waits));
    let a = s.open(9);
    let id = open(&mut s, "1", MINUTE);
    let (word, _) = asked(&mut s, a)[0].clone();
    s.call(|p, cx| p.cancel(cx, id));
    s.call(|p, cx| p.cancel(cx, id));
    assert_eq!((s.protocol.outstanding(), s.protocol.held()), (0, 0));
    s.arrive(a, [answer(word, "too late")]);
    s.advance(Duration::from_secs(60));
    s.lose(a);
    let b = s.open(9);
    assert_eq!((s.unsent(b), s.drops(DropReason::Late)), (0, 1));
}

#[test]
fn too_many_are_refused_until_one_ends() {
    let mut s = Script::new(Req::new().max_open(2));
    let (one, _) = (open(&mut s, "1", MINUTE), open(&mut s, "2", MINUTE));
    let refused = s.call(|p, cx| p.open(cx, "3".into(), MINUTE));
    assert_eq!((refused, s.readiness().send), (Err(Refused::NotNow("3".into())), false));
    s.call(|p, cx| p.cancel(cx, one));
    assert_eq!(s.woken(), [Req::ROOM]);
    open(&mut s, "3", MINUTE);
}

#[test]
fn promise_23_memory_returns_after_a_burst() {
    let mut s = Script::new(Req::new());
    let ids: Vec<ReqId> = (0..100_000).map(|_| open(&mut s, "x", MINUTE)).collect();
    for id in ids {
        s.call(|p, cx| p.cancel(cx, id));
    }
    assert_eq!(s.protocol.table.slots.capacity(), 0);
}

proptest! {
    /// Whatever ends and whenever: beside one idle peer every request leaves, and once.
    #[test]
    fn promise_10_none_stays_behind_one_that_is_not_answered(
        rounds in proptest::collection::vec((0usize..4, 0usize..6, any::<bool>()), 1..12)
    ) {
        let mut s = Script::new(Req::new());
        for (requests, written, lasts) in rounds {
            for n in 0..requests {
                open(&mut s, &n.to_string(), MINUTE);
            }
            let pipe = s.open(9);
            s.drain(pipe, written);
            s.advance(Duration::from_secs(u64::from(lasts)));
            s.lose(pipe);
        }
        let open = s.protocol.outstanding();
        let pipe = s.open(99);
        for _ in 0..open {
            s.advance(Duration::from_secs(1));
        }
        prop_assert_eq!((s.protocol.held(), s.unsent(pipe)), (0, open));
    }

    /// Whatever peers do, each request that was not cancelled ends once a peer answers; with resend off
    /// none is asked twice.
    #[test]
    fn promise_10_every_request_ends(ops in check::ops(), most in 1usize..12) {
        const EVERY: [Option<Duration>; 4] =
            [None, Some(Duration::from_millis(50)), Some(Duration::from_millis(20)), MINUTE];
        let mut s = Script::new(Req::new().max_open(most));
        let open = RefCell::new(Vec::new());
        let seen = RefCell::new(Vec::new());
        let times = RefCell::new(HashMap::new());
        let ended = RefCell::new(0);
        let check = Check {
            send: Some(Box::new(|s: &mut Script<Req>, n| {
                let resend = EVERY[n % 4];
                match s.call(|p, cx| p.open(cx, n.to_string().into(), resend)) {
                    Ok(id) => {
                        open.borrow_mut().push((id, resend));
                        (true, true)
                    }
                    Err(_) => (false, false),
                }
            })),
            arrives: Box::new(|_, n| match (n % 3, seen.borrow().last()) {
                (0 | 1, Some(id)) => answer(*id, "yes"),
                (0, _) => answer(1, "odd"),
                _ => "abc".into(),
            }),
            drained: Box::new(|_, msg| {
                let id = msg.clone().pop_word().expect("an id");
                seen.borrow_mut().push(id);
                *times.borrow_mut().entry(id).or_insert(0) += 1;
            }),
            own: Some(Box::new(|s, n| {
                let mut open = open.borrow_mut();
                if n % 3 == 0 && !open.is_empty() {
                    let at = n / 3 % open.len();
                    let (id, _) = open.remove(at);
                    s.call(|p, cx| p.cancel(cx, id));
                }
                open.retain(|(id, _)| {
                    let how = s.protocol.poll(*id);
                    let left = times.borrow().get(&id.word()).copied().unwrap_or(0);
                    match how {
                        Some(Err(Failed::ConnectionLost)) => assert_eq!(left, 1),
                        Some(Err(Failed::Undeliverable)) => assert!(left >= 8, "{left}"),
                        _ => {}
                    }
                    let done = how.is_some();
                    *ended.borrow_mut() += usize::from(done);
                    !done
                });
            })),
            ..Check::default()
        };
        let tally = check::run(&mut s, &ops, check);
        prop_assert!(s.protocol.outstanding() <= most);
        let mut peers = tally.peers;
        peers.push(s.open(1));
        for _ in 0..1000 {
            s.advance(Duration::from_secs(60));
            for pipe in &peers {
                for (id, _) in asked(&mut s, *pipe) {
                    *times.borrow_mut().entry(id).or_insert(0) += 1;
                    s.arrive(*pipe, [answer(id, "yes")]);
                }
            }
        }
        for (id, resend) in open.into_inner() {
            let told = s.protocol.poll(id);
            if resend.is_some() {
                prop_assert_eq!(told, Some(Ok("yes".into())));
            } else {
                prop_assert!(times.borrow().get(&id.word()).is_none_or(|n| *n == 1), "asked twice");
                if told.is_none() {
                    // Asked before this loop, and the peer did not answer: its end settles it.
                    prop_assert_eq!(times.borrow().get(&id.word()).copied(), Some(1));
                    peers.drain(..).for_each(|pipe| s.lose(pipe));
                    prop_assert_eq!(s.protocol.poll(id), Some(Err(Failed::ConnectionLost)));
                }
            }
        }
        prop_assert_eq!((s.protocol.outstanding(), s.protocol.held(), s.protocol.table.len), (0, 0, 0));
        prop_assert_eq!((s.protocol.due.common.len, s.protocol.due.others.len()), (0, 0));
        prop_assert_eq!(s.drops(DropReason::PipeClosed), 0, "what did not leave goes elsewhere");
    }
}
