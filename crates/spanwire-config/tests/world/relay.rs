//! The process between: a relay with its cache, and what it does when it stands still in part.

use std::time::Duration;

use spanwire::protocol::Time;
use spanwire_config::relay::cached;
use spanwire_config::{
    Distributor, Level, NodeKind, NsRelay, RelayAction, RelayEvent, RelaySettings, Replica, ReplicaSettings,
    Settings,
};
use spanwire_testkit::sim::{Event, Io, Scripted, SyncError};

use super::coverage;
use super::nodes::{BEACON, FRESH, Folder, HELLO, ROOM, STALL};

/// What `config-sync relay` is.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) upper: Scripted<Replica>,
    pub(crate) lower: Scripted<Distributor>,
    pub(crate) machine: NsRelay,
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
        let (all, canary) = cached(folder.spaces[0].history.clone(), folder.spaces[0].before.clone());
        let replica = match canary.clone().or(all.clone()) {
            Some((head, state)) => Replica::restored(receiver, head, state, Level::Stored),
            None => Replica::new(receiver),
        };
        let settings = RelaySettings { node: folder.id, ..RelaySettings::default() };
        let machine = NsRelay::new(settings, all).with_canary(canary);
        let sender = Settings {
            server: folder.id,
            beacon: BEACON,
            window: 2_000 + io.rng().below(10_000) as u32,
            log_commits,
            stall: STALL,
            hello: HELLO,
            ..Settings::default()
        };
        let lower = Distributor::new(sender, machine.origin());
        let (above, below) = (io.rng().next(), io.rng().next());
        Relay {
            upper: Scripted::new(replica, ROOM, above),
            lower: Scripted::new(lower, ROOM, below),
            machine,
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
        loop {
            let mut events = self.upper.call(io, |r, cx| r.relay_events(cx));
            events.extend(self.lower.call(io, |d, _| d.relay_events()));
            if self.machine.due().is_some_and(|due| due <= io.now()) {
                events.push(RelayEvent::Time);
            }
            if events.is_empty() || io.disk.is_crashed() {
                break;
            }
            events.into_iter().for_each(|event| self.tell(io, event));
        }
        if let Some(due) = self.machine.due() {
            io.wake_at(due.max(io.now() + Duration::from_micros(1)));
        }
    }

    fn tell(&mut self, io: &mut Io<'_, Folder>, event: RelayEvent) {
        coverage::told(&self.machine, &event);
        for action in self.machine.handle(event, io.now()) {
            if let RelayAction::Judge { verdict, .. } = &action {
                coverage::judged(*verdict);
            }
            let left = self.lower.call(io, |d, cx| d.perform_relay(cx, action)).expect("the machine's order");
            let Some(left) = left else { continue };
            let Ok(Some(left)) = self.upper.call(io, |r, cx| r.perform_relay(cx, left)) else { continue };
            match left {
                RelayAction::Persist(head, state) => {
                    let (at, before) = (head.position, io.disk.read().clone());
                    let folder = &mut io.disk.write().spaces[0];
                    let old = folder.history.replace((head, state));
                    // A later HEAD takes the place of the one before.
                    if old.as_ref().is_none_or(|(old, _)| old.position != at) {
                        folder.before = old;
                    }
                    match io.disk.sync() {
                        Ok(()) => self.tell(io, RelayEvent::Stored(at, Ok(()))),
                        Err(SyncError::Crashed) => return,
                        Err(SyncError::Failed) => {
                            *io.disk.write() = before;
                            self.tell(io, RelayEvent::Stored(at, Err("full".into())));
                        }
                    }
                }
                RelayAction::Report { whole } => {
                    if whole {
                        self.lower.call(io, |d, _| d.report_all());
                    }
                    while let Some(report) = self.lower.call(io, |d, _| d.take_report()) {
                        if !self.upper.call(io, |r, cx| r.report(cx, &report)) {
                            self.lower.call(io, |d, _| d.put_back(&report));
                            break;
                        }
                    }
                }
                _ => {}
            }
        }
    }
}
