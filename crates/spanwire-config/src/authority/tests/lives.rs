//! Random lives, with crashes at any moment, against all that was ever said.

use super::*;

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What was ever said, held against what is said next.
#[derive(Default)]
struct Oracle {
    /// (epoch, rev) of HEADs → digest and chain.
    heads: BTreeMap<Place, (Digest, [u8; 32])>,
    /// Request → where it was committed.
    requests: BTreeMap<Id, Place>,
    /// What clients were told is there.
    told: Place,
    looked: (usize, usize),
}

impl Oracle {
    fn look(&mut self, rig: &Rig, expects: &BTreeMap<Ticket, (Id, Option<Place>)>, what: &str) {
        let (replies, published) = self.looked;
        for published in &rig.published[published..] {
            let (at, names) = (published.head.position.into(), (published.head.digest, published.head.chain));
            assert_eq!(*self.heads.entry(at).or_insert(names), names, "{what}: 7, one history");
            assert!(at >= self.told, "{what}: 6, {at:?} after {:?} was acknowledged", self.told);
        }
        for (ticket, answer) in &rig.replies[replies..] {
            let Some((request, expect)) = expects.get(ticket) else { continue };
            if let Answer::Committed { position, replay, .. } = answer {
                let at = Place::from(*position);
                assert_eq!(*self.requests.entry(*request).or_insert(at), at, "{what}: 15, once");
                self.told = self.told.max(at);
                let before = Place { rev: at.rev - 1, ..at };
                if let (Some(expect), false) = (expect, replay) {
                    assert_eq!(*expect, before, "{what}: 16");
                }
            }
            if let (Answer::Conflict { head }, Some(expect)) = (answer, expect) {
                assert_ne!(head, expect, "{what}: 16");
            }
        }
        self.looked = (rig.replies.len(), rig.published.len());
        let now = rig.machine.position().map(Place::from).unwrap_or_default();
        assert!(now >= self.told, "{what}: 6, {now:?} after {:?} was acknowledged", self.told);
    }
}

#[test]
fn invariants_06_07_15_16_hold_over_random_lives_with_crashes_at_any_moment() {
    let (mut commits, mut crashes, mut replays, mut conflicts) = (0, 0, 0, 0);
    for seed in 0..400u64 {
        let mut random = seed;
        let what = format!("seed {seed}");
        let settings = NsSettings { log_commits: 200, batch_commits: 5, ..settings() };
        let mut rig = Rig::serving(settings);
        let (mut oracle, mut expects) = (Oracle::default(), BTreeMap::new());
        let mut tickets = 0;
        for step in 0..60 {
            match next(&mut random) % 12 {
                0..6 => {
                    // Few names, so that repeats are many; the content follows from the name.
                    let n = next(&mut random) % 30;
                    let now = rig.machine.position().map(Place::from).unwrap_or_default();
                    let expect = match next(&mut random) % 4 {
                        0 => Some(now),
                        1 => Some(Place { rev: now.rev + next(&mut random) % 3, ..now }),
                        _ => None,
                    };
                    let request = Request { expect, ..put(n, &format!("k{}", n % 7), &n.to_string()) };
                    rig.tickets = tickets;
                    let ticket = rig.commit(request);
                    tickets = rig.tickets;
                    expects.insert(ticket, (id(n), expect));
                    commits += 1;
                }
                6..11 => rig.sync(),
                _ => {
                    // The record under way may have reached the cache, or the disk, or neither.
                    if let (Some(record), true) = (rig.pending.take(), next(&mut random).is_multiple_of(2)) {
                        let _ = rig.store().append_durable(&record);
                    }
                    replays += rig
                        .replies
                        .iter()
                        .filter(|(_, a)| matches!(a, Answer::Committed { replay: true, .. }))
                        .count();
                    conflicts +=
                        rig.replies.iter().filter(|(_, a)| matches!(a, Answer::Conflict { .. })).count();
                    let after = match next(&mut random) % 3 {
                        0 => After::Kill,
                        1 => After::Nothing,
                        _ => After::Some(next(&mut random)),
                    };
                    rig = rig.restart(after);
                    oracle.looked = (0, 0);
                    crashes += 1;
                }
            }
            oracle.look(&rig, &expects, &format!("{what}, step {step}"));
        }
        // All that was acknowledged is there, by its request.
        rig = rig.restart(After::Nothing);
        let kept: BTreeMap<Id, Place> = rig.machine.history().map(|(at, c)| (c.request, at.into())).collect();
        for (request, at) in &oracle.requests {
            assert_eq!(kept.get(request), Some(at), "{what}");
        }
    }
    assert!(
        commits > 10_000 && crashes > 1_000 && replays > 500 && conflicts > 500,
        "{commits} {crashes} {replays} {conflicts}"
    );
}
