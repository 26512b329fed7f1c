//! Every event meets every state: the tables of what the simulated worlds must reach, and of what they cannot, with the
//! reason. Events and states are told apart in `world/coverage.rs`.

use std::collections::{BTreeMap, BTreeSet};

use spanwire_testkit::sim::Sim;

use super::world::coverage::{ASKED, Pair, RELAY, REPLICA, SEEN, SESSION};
use super::world::{setup, tree};

/// Seeds in which each pair must come.
const MOST: u64 = 5_000;

const STATES: &[(&str, &[&str])] = &[
    (REPLICA, &["EMPTY", "CACHED", "LIVE", "BEHIND", "HELD", "CONFLICT"]),
    (
        SESSION,
        &[
            "no HELLO yet",
            "in reserve",
            "at rest",
            "in a transfer",
            "to be acknowledged",
            "in conflict",
            "turned away",
        ],
    ),
    (RELAY, &["nothing held, no server", "nothing held, a server", "held, no server", "held, a server"]),
];

const EVENTS: &[(&str, &[&str])] = &[
    (
        REPLICA,
        &[
            "pipe up",
            "pipe down",
            "time",
            "WELCOME",
            "told of a higher boot",
            "BEACON without a HEAD",
            "HEAD where nothing is held",
            "HEAD for others",
            "HEAD that contradicts",
            "HEAD of an earlier epoch",
            "HEAD of a later epoch",
            "HEAD below",
            "HEAD of what is held",
            "HEAD above",
            "DELTA",
            "SNAPSHOT",
            "WAITING",
            "takes the next",
            "stored",
            "visible, not stored",
            "has no room",
            "refuses",
            "asks again",
            "hook done",
            "hook failed",
        ],
    ),
    (
        SESSION,
        &[
            "pipe down",
            "a commit",
            "beacon time",
            "HELLO without wants",
            "HELLO",
            "WANT new",
            "WANT digest",
            "WANT retry",
            "WANT other",
            "CREDIT",
            "ACK stored",
            "ACK visible",
            "ACK applied",
            "ACK volatile",
            "NACK",
            "NACK hook",
            "NACK conflict",
        ],
    ),
    (
        RELAY,
        &[
            "verified",
            "a later HEAD",
            "server",
            "server gone",
            "a node shows",
            "the table changed",
            "STALE",
            "stored",
            "not stored",
            "time",
        ],
    ),
];

/// Whether it can be at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    /// No: that it comes is a failure.
    Never(&'static str),
    /// Too seldom, or not in these worlds.
    Seldom(&'static str),
}
use Why::{Never, Seldom};

/// What need not be reached: machine, states, events (both: none named, all of them).
const EXCEPT: &[(&str, &[&str], &[&str], Why)] = &[
    (
        REPLICA,
        &["EMPTY"],
        &[
            "HEAD for others",
            "HEAD that contradicts",
            "HEAD of an earlier epoch",
            "HEAD of a later epoch",
            "HEAD below",
            "HEAD of what is held",
            "HEAD above",
            "hook done",
            "hook failed",
        ],
        Never("nothing is held"),
    ),
    (REPLICA, &["CACHED", "LIVE"], &["HEAD where nothing is held"], Never("something is held")),
    (
        REPLICA,
        &["EMPTY", "CACHED", "LIVE", "HELD"],
        &["takes the next", "stored", "visible, not stored", "has no room", "refuses"],
        Never("who was given something, or has it ready, is BEHIND or in CONFLICT"),
    ),
    (
        REPLICA,
        &["EMPTY"],
        &["asks again"],
        Never("only what was refused is asked for again, and who refused is HELD until it has something"),
    ),
    (
        REPLICA,
        &["HELD", "CONFLICT"],
        &["told of a higher boot"],
        Seldom(
            "a server says it in answer to HELLO, when neither has come yet; a relay later, and nothing is \
                refused behind relays here",
        ),
    ),
    (
        REPLICA,
        &["CONFLICT"],
        &["takes the next", "stored", "visible, not stored", "has no room", "refuses"],
        Seldom("the contradiction has to come while an application makes up its mind"),
    ),
    (
        REPLICA,
        &["LIVE", "BEHIND"],
        &["told of a higher boot"],
        Seldom("only where it is put back, and a relay between has not heard of its last start"),
    ),
    (
        REPLICA,
        &["CONFLICT"],
        &[
            "HEAD where nothing is held",
            "HEAD for others",
            "HEAD of an earlier epoch",
            "HEAD below",
            "asks again",
            "hook failed",
        ],
        Seldom("two histories, and one more thing at the same time"),
    ),
    (
        REPLICA,
        &["HELD", "LIVE"],
        &["HEAD that contradicts"],
        Seldom(
            "whoever is HELD or LIVE hears one server, of which nothing contradicts until another takes over",
        ),
    ),
    (
        REPLICA,
        &["HELD"],
        &["HEAD for others", "HEAD of what is held"],
        Seldom("a refusal, and a lie or a replay"),
    ),
    (
        REPLICA,
        &["LIVE"],
        &["HEAD of an earlier epoch"],
        Seldom("a replay of what was on its way when the epoch began"),
    ),
    (REPLICA, &["EMPTY"], &["DELTA"], Seldom("the replay of a step to who lost what it starts from")),
    (
        SESSION,
        &["at rest", "in a transfer", "to be acknowledged", "in conflict", "turned away"],
        &["WANT new"],
        Seldom("it asks for what the pipe does not carry yet"),
    ),
    (
        SESSION,
        &["no HELLO yet"],
        &[
            "WANT new",
            "WANT digest",
            "WANT retry",
            "WANT other",
            "CREDIT",
            "ACK stored",
            "ACK visible",
            "ACK applied",
            "ACK volatile",
            "NACK",
            "NACK hook",
            "NACK conflict",
        ],
        Never("HELLO is the first word on a pipe"),
    ),
    (SESSION, &["no HELLO yet"], &["beacon time"], Seldom("a pipe that is not greeted gets no beacon")),
    (
        SESSION,
        &["turned away"],
        &[
            "a commit",
            "beacon time",
            "HELLO without wants",
            "HELLO",
            "WANT digest",
            "WANT retry",
            "WANT other",
            "CREDIT",
            "ACK stored",
            "ACK visible",
            "ACK applied",
            "ACK volatile",
            "NACK",
            "NACK hook",
            "NACK conflict",
        ],
        Seldom("the pipe ends with the GOODBYE"),
    ),
    (
        SESSION,
        &["in reserve"],
        &[
            "WANT digest",
            "WANT retry",
            "WANT other",
            "CREDIT",
            "ACK stored",
            "ACK visible",
            "ACK applied",
            "ACK volatile",
            "NACK",
            "NACK hook",
            "NACK conflict",
        ],
        Seldom(
            "nothing is said on it but HELLO, with which it is in use; an old word may be repeated by a liar",
        ),
    ),
    (
        SESSION,
        &["at rest", "in a transfer", "to be acknowledged", "in conflict"],
        &["HELLO without wants"],
        Never("it is the first word, on a pipe that is not in use"),
    ),
    (
        SESSION,
        &["in reserve"],
        &["HELLO without wants"],
        Seldom("once more only where the boot is raised, on each pipe that stays"),
    ),
    (
        SESSION,
        &["at rest", "in a transfer", "to be acknowledged", "in conflict"],
        &["HELLO"],
        Seldom("once more only where the boot is raised on a pipe that stays"),
    ),
    (
        SESSION,
        &["at rest", "in a transfer", "in conflict"],
        &["WANT digest", "WANT other"],
        Seldom(
            "it says that what was sent is not what was named, or does not come: there is something in flight",
        ),
    ),
    (
        RELAY,
        &["nothing held, no server", "nothing held, a server"],
        &["a later HEAD", "stored", "not stored"],
        Never("it is of what is held"),
    ),
    (
        RELAY,
        &["nothing held, no server"],
        &["verified", "server gone", "time"],
        Never("there is no server that it could come from or go to"),
    ),
    (
        RELAY,
        &["nothing held, no server", "nothing held, a server"],
        &["a node shows"],
        Seldom("who is below a relay has what it has from there, until the relay's folder is lost"),
    ),
    (RELAY, &["held, no server"], &["server gone"], Never("there is none")),
    (
        RELAY,
        &["held, no server"],
        &["verified", "stored", "not stored", "time"],
        Seldom("what came with the last words of a server"),
    ),
    (
        RELAY,
        &[],
        &["STALE"],
        Seldom("a node is put back behind a relay; `tests/nodes/relays.rs` does it for certain"),
    ),
];

fn except(pair: &Pair) -> Option<Why> {
    let has = |names: &[&str], name: &str| names.is_empty() || names.contains(&name);
    let (machine, state, event) = pair;
    let of = |(of, states, events, _): &&(&str, &[&str], &[&str], Why)| {
        of == machine && has(states, state) && has(events, event)
    };
    EXCEPT.iter().find(of).map(|(.., why)| *why)
}

fn all() -> impl Iterator<Item = Pair> {
    STATES.iter().zip(EVENTS).flat_map(|((machine, states), (_, events))| {
        states.iter().flat_map(move |state| events.iter().map(move |event| (*machine, *state, *event)))
    })
}

fn table(seen: &BTreeMap<Pair, u64>) -> String {
    all()
        .map(|pair| {
            let (machine, state, event) = pair;
            let times = seen.get(&pair).copied().unwrap_or(0);
            let why = except(&pair).map_or(String::new(), |why| format!("  {why:?}"));
            format!("{machine:8} {state:24} {event:28} {times:>8}{why}\n")
        })
        .collect()
}

/// With `--nocapture` it prints the table.
#[test]
fn every_event_meets_every_state() {
    let (plain, trees) = (Sim::new(setup), Sim::new(tree::setup));
    let mut missing: BTreeSet<Pair> = all().filter(|pair| except(pair).is_none()).collect();
    let mut seen: BTreeMap<Pair, u64> = BTreeMap::new();
    let mut ran = [0_u64; 2];
    ASKED.set(true);
    for seed in 0..MOST {
        // The one world has what is missing, or the other.
        if missing.iter().any(|(machine, ..)| *machine != RELAY) {
            let outcome = plain.run(seed);
            assert_eq!(outcome.failure, None, "seed {seed}");
            ran[0] += 1;
        }
        if missing.iter().any(|(machine, ..)| *machine == RELAY) {
            let outcome = trees.run(seed);
            assert_eq!(outcome.failure, None, "tree of seed {seed}");
            ran[1] += 1;
        }
        for (pair, times) in SEEN.take() {
            missing.remove(&pair);
            *seen.entry(pair).or_default() += times;
        }
        if missing.is_empty() {
            break;
        }
    }
    println!("{ran:?} seeds\n{}", table(&seen));
    let impossible: Vec<_> = seen
        .keys()
        .filter_map(|pair| Some((pair, except(pair).filter(|why| matches!(why, Never(_)))?)))
        .collect();
    assert!(impossible.is_empty(), "it was thought impossible: {impossible:?}");
    assert!(missing.is_empty(), "never, in {ran:?} seeds: {missing:#?}");
}
