//! What the simulated world promises: order, back-pressure, virtual time, and the same run for the same seed.

use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Receives;
use spanwire::protocol::pull::Pull;
use spanwire::protocol::push::Push;
use spanwire_testkit::sim::{
    Disk, Event, Fault, Io, Mix, Model, Net, Node, Rng, Route, Scripted, Setup, Sim, Step, What,
};

const RUN: Duration = Duration::from_secs(4);

/// The built-in pipeline as it is: a pusher, and pullers that take what comes.
enum Party {
    Push(Scripted<Push>),
    Pull { socket: Scripted<Pull>, got: Vec<u64>, lazy: bool },
}

impl Node for Party {
    type Disk = ();

    fn handle(&mut self, event: Event, io: &mut Io<'_, ()>) {
        match self {
            Party::Push(socket) => socket.handle(event, io),
            Party::Pull { socket, got, lazy } => {
                socket.handle(event, io);
                while !*lazy && let Some(message) = socket.call(io, Receives::recv) {
                    got.push(number(&message));
                }
            }
        }
    }
}

fn number(message: &Message) -> u64 {
    u64::from_be_bytes(message[..8].try_into().expect("eight bytes were sent"))
}

struct Pipeline {
    sent: u64,
    refused: u64,
    lazy: bool,
}

impl Model for Pipeline {
    type Node = Party;
    type Op = ();

    fn start(&mut self, node: usize, _io: &mut Io<'_, ()>) -> Party {
        match node {
            0 => Party::Push(Scripted::new(Push::default(), 4, 0)),
            _ => {
                Party::Pull { socket: Scripted::new(Pull::default(), 4, 0), got: Vec::new(), lazy: self.lazy }
            }
        }
    }

    fn operate(&mut self, net: &mut Net<Party>, (): &()) -> Result<(), String> {
        let message = self.sent.to_be_bytes().to_vec();
        let taken = net.with(0, |party, io| match party {
            Party::Push(socket) => {
                socket.call(io, |p, cx| spanwire::protocol::Sends::send(p, cx, message.into())).is_ok()
            }
            Party::Pull { .. } => false,
        });
        match taken {
            Some(true) => self.sent += 1,
            _ => self.refused += 1,
        }
        Ok(())
    }

    fn check(&mut self, net: &Net<Party>, _node: Option<usize>) -> Result<(), String> {
        for node in 1..net.len() {
            if let Some(Party::Pull { got, .. }) = net.node(node)
                && !got.is_sorted()
            {
                return Err(format!("order: node {node} got {got:?}"));
            }
        }
        Ok(())
    }
}

fn pipeline(seed: u64, mix: &Mix, lazy: bool) -> Setup<Pipeline> {
    let mut rng = Rng::new(seed);
    let mut plan = mix.plan(&mut rng, 3, 2, RUN);
    plan.extend((0..300).map(|_| Step::op(rng.time(Duration::ZERO..RUN), ())));
    Setup {
        model: Pipeline { sent: 0, refused: 0, lazy },
        disks: vec![(); 3],
        routes: vec![Route::new(1, 0), Route { room: 3, ..Route::new(2, 0) }],
        plan,
        run: RUN,
        settle: Duration::from_secs(1),
    }
}

fn got(net: &Net<Party>) -> Vec<u64> {
    let mut all = Vec::new();
    for node in 1..net.len() {
        if let Some(Party::Pull { got, .. }) = net.node(node) {
            all.extend(got);
        }
    }
    all.sort_unstable();
    all
}

#[test]
fn without_faults_every_message_arrives_once_and_in_order() {
    let sim = Sim::new(|seed| pipeline(seed, &Mix::default(), false));
    for seed in 0..20 {
        let (outcome, (all, sent)) = sim.run_with(seed, |model, net| (got(net), model.sent));
        assert_eq!(outcome.failure, None);
        assert_eq!(all, (0..sent).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn who_does_not_take_stops_the_sender_at_the_sum_of_the_queues() {
    let sim = Sim::new(|seed| pipeline(seed, &Mix::default(), true));
    let (outcome, (sent, refused)) = sim.run_with(1, |model, _| (model.sent, model.refused));
    assert_eq!(outcome.failure, None);
    // Two pipes, each with 4 messages at either end, and on their way 32 and 3.
    assert!((50..=56).contains(&sent), "{sent} were taken");
    assert_eq!(sent + refused, 300);
}

#[test]
fn the_same_seed_gives_the_same_events_and_another_gives_others() {
    let mix = Mix {
        breaks: 4,
        cuts: 2,
        half_opens: 2,
        delays: 2,
        stalls: 2,
        crashes: 2,
        longest: Duration::from_secs(1),
        ..Mix::default()
    };
    let sim = Sim::new(|seed| pipeline(seed, &mix, false));
    let hashes: Vec<u64> = (0..30).map(|seed| sim.run(seed).hash).collect();
    let again: Vec<u64> = (0..30).map(|seed| sim.run(seed).hash).collect();
    assert_eq!(hashes, again);
    let mut distinct = hashes.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), hashes.len());
}

#[test]
fn a_plan_is_shortened_to_the_lines_that_matter() {
    // Faults of every kind; only a message that comes twice can break the order.
    let mix = Mix {
        breaks: 6,
        delays: 6,
        replays: 3,
        stalls: 3,
        longest: Duration::from_secs(1),
        ..Mix::default()
    };
    let found = Sim::new(|seed| pipeline(seed, &mix, false)).find(0..200).expect("replays break the order");
    let replays = found.plan.iter().filter(|s| matches!(s.what, What::Fault(Fault::Replay { .. }))).count();
    let other = found.plan.iter().filter(|s| matches!(s.what, What::Fault(_))).count() - replays;
    assert_eq!((replays, other), (1, 0), "{found}");
    assert!(found.lines > 300 && found.plan.len() <= 12, "{found}");
    let text = found.to_string();
    assert!(
        text.starts_with(&format!("seed {}: order: node", found.seed)) && text.contains("Replay"),
        "{text}"
    );
}

#[test]
fn a_disk_keeps_what_was_synced_and_loses_the_rest_with_the_power() {
    let mut disk = Disk::new(1);
    *disk.write() = 2;
    assert_eq!((*disk.read(), *disk.durable()), (2, 1));
    disk.sync().expect("no fault was asked for");
    *disk.write() = 3;
    assert_eq!((*disk.read(), *disk.durable()), (3, 2));
}
