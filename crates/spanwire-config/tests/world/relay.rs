//! The process between: a relay of each namespace with its cache, and what it does when it stands still in part.

use std::time::Duration;

use spanwire::protocol::Time;
use spanwire_config::relay::cached;
use spanwire_config::{
    Distributor, Kept, Level, NodeKind, NsRelay, RelayAction, RelayEvent, RelaySettings, Replica,
    ReplicaSettings, Settings,
};
use spanwire_testkit::sim::{Event, Io, Scripted, SyncError};

use super::nodes::{BEACON, FRESH, Folder, HELLO, ROOM, STALL};
use super::{NAMES, coverage};

/// What `config-sync relay` is.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) upper: Scripted<Replica>,
    pub(crate) lower: Scripted<Distributor>,
    /// One for each namespace.
    pub(crate) machines: Vec<NsRelay>,
    /// Bytes that it lets be on their way to it.
    pub(crate) window: u32,
    /// Routes by which it dials: what opens on another is from below.
    dials: Vec<usize>,
    /// It talks on, and takes notice of nothing.
    frozen: Time,
}

impl Relay {
    pub(crate) fn start(dials: Vec<usize>, log_commits: usize, io: &mut Io<'_, Folder>) -> Relay {
        io.disk.write().opened += 1;
        while io.disk.sync() == Err(SyncError::Failed) {}
        let folder = io.disk.read().clone();
        let receiver = ReplicaSettings {
            node: folder.id,
            boot: u64::from(folder.opened) << 32 | io.rng().next() & 0xffff_ffff,
            kind: NodeKind::Relay,
            window: 3_000 + io.rng().below(9_000) as u32,
            max_chunk: 4_096,
            fresh: FRESH,
            beacon: BEACON,
            ..ReplicaSettings::default()
        };
        let window = receiver.window;
        let opened = folder.spaces.iter().enumerate().map(|(at, space)| {
            let (all, canary) = cached(space.history.clone(), space.before.clone());
            let newest = canary.clone().or(all.clone());
            let kept = newest.map(|(head, state)| Kept::revision(head, state, Level::Stored));
            let (node, namespace) = (folder.id, NAMES[at].into());
            let settings = RelaySettings { node, namespace, ..RelaySettings::default() };
            (kept.unwrap_or_default(), NsRelay::new(settings, all).with_canary(canary))
        });
        let (mut kept, machines): (Vec<_>, Vec<_>) = opened.unzip();
        let first = Replica::keeping(receiver, kept.remove(0));
        let replica = kept.into_iter().zip(&NAMES[1..]).fold(first, |replica, (kept, name)| {
            replica.with_namespace(name, kept).expect("few, and each once")
        });
        let sender = Settings {
            server: folder.id,
            beacon: BEACON,
            window: 2_000 + io.rng().below(10_000) as u32,
            log_commits,
            stall: STALL,
            hello: HELLO,
            ..Settings::default()
        };
        let first = Distributor::new(sender, machines[0].origin());
        let lower = machines.iter().zip(NAMES).skip(1).fold(first, |sender, (machine, name)| {
            sender.with_namespace(name, machine.origin()).expect("few, and each once")
        });
        let (above, below) = (io.rng().next(), io.rng().next());
        Relay {
            upper: Scripted::new(replica, ROOM, above),
            lower: Scripted::new(lower, ROOM, below),
            machines,
            window,
            dials,
            frozen: Time::ZERO,
        }
    }

    pub(crate) fn freeze(&mut self, until: Time, io: &mut Io<'_, Folder>) {
        self.frozen = until;
        io.wake_at(until);
    }

    pub(crate) fn handle(&mut self, event: Event, io: &mut Io<'_, Folder>) {
        match &event {
            Event::Opened { route, .. } if self.dials.contains(route) => self.upper.handle(event, io),
            Event::Closed(link) | Event::Message(link, _) | Event::Writable(link)
                if self.upper.is_open(*link) =>
            {
                self.upper.handle(event, io);
            }
            Event::Timer => {
                self.upper.handle(Event::Timer, io);
                self.lower.handle(Event::Timer, io);
            }
            _ => self.lower.handle(event, io),
        }
        if self.frozen <= io.now() {
            self.turn(io);
        } else {
            io.wake_at(self.frozen);
        }
    }

    fn turn(&mut self, io: &mut Io<'_, Folder>) {
        (0..self.machines.len()).for_each(|at| self.turn_of(io, at));
    }

    fn turn_of(&mut self, io: &mut Io<'_, Folder>, at: usize) {
        let name = NAMES[at];
        loop {
            let mut events = Vec::new();
            if self.upper.protocol().has_relay_events() || self.lower.protocol().has_relay_events() {
                events = self.upper.call(io, |r, cx| r.namespace(name).expect("held").relay_events(cx));
                events.extend(self.lower.call(io, |d, _| d.namespace(name).expect("served").relay_events()));
            }
            if self.machines[at].due().is_some_and(|due| due <= io.now()) {
                events.push(RelayEvent::Time);
            }
            if events.is_empty() || io.disk.is_crashed() {
                break;
            }
            events.into_iter().for_each(|event| self.tell(io, at, event));
        }
        if let Some(due) = self.machines[at].due() {
            io.wake_at(due.max(io.now() + Duration::from_micros(1)));
        }
    }

    fn tell(&mut self, io: &mut Io<'_, Folder>, at: usize, event: RelayEvent) {
        let name = NAMES[at];
        coverage::told(&self.machines[at], &event);
        for action in self.machines[at].handle(event, io.now()) {
            if let RelayAction::Judge { verdict, .. } = &action {
                coverage::judged(*verdict);
            }
            let left =
                self.lower.call(io, |d, cx| d.namespace(name).expect("served").perform_relay(cx, action));
            let Some(left) = left.expect("the machine's order") else { continue };
            let left = self.upper.call(io, |r, cx| r.namespace(name).expect("held").perform_relay(cx, left));
            let Ok(Some(left)) = left else { continue };
            match left {
                RelayAction::Persist(head, state) => {
                    let (position, before) = (head.position, io.disk.read().clone());
                    let space = &mut io.disk.write().spaces[at];
                    let old = space.history.replace((head, state));
                    // A later HEAD takes the place of the one before.
                    if old.as_ref().is_none_or(|(old, _)| old.position != position) {
                        space.before = old;
                    }
                    match io.disk.sync() {
                        Ok(()) => self.tell(io, at, RelayEvent::Stored(position, Ok(()))),
                        Err(SyncError::Crashed) => return,
                        Err(SyncError::Failed) => {
                            *io.disk.write() = before;
                            self.tell(io, at, RelayEvent::Stored(position, Err("full".into())));
                        }
                    }
                }
                RelayAction::Report { whole } => self.report(io, name, whole),
                _ => {}
            }
        }
    }

    fn report(&mut self, io: &mut Io<'_, Folder>, name: &str, whole: bool) {
        if whole {
            self.lower.call(io, |d, _| d.namespace(name).expect("served").report_all());
        }
        let next = |d: &mut Distributor| d.namespace(name).expect("served").take_report();
        while let Some(report) = self.lower.call(io, |d, _| next(d)) {
            if !self.upper.call(io, |r, cx| r.report(cx, &report)) {
                return self.lower.call(io, |d, _| d.namespace(name).expect("served").put_back(&report));
            }
        }
    }
}
