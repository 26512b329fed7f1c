//! A relay whose disk takes nothing for a while.

use spanwire::protocol::Time;
use spanwire_config::relay::RelayAlarm;
use spanwire_config::{Epoch, Position, Update};

use super::*;

fn update(rev: u64, audience: &'static [u8]) -> RelayEvent {
    let position = Position { epoch: Epoch { number: 1, incarnation: Id([1; 16]) }, rev };
    let head = Head { position, audience: audience.into(), ..Head::default() };
    RelayEvent::Verified(Update { head, changed: Vec::new(), state: State::new() })
}

/// The machine, and what it wants to be written.
struct Disk {
    machine: NsRelay,
    now: Time,
    alarms: usize,
    stored: Vec<u64>,
}

impl Disk {
    fn new(n: u8) -> Disk {
        let settings = RelaySettings { node: Id([n; 16]), ..RelaySettings::default() };
        Disk { machine: NsRelay::new(settings, None), now: Time::ZERO, alarms: 0, stored: Vec::new() }
    }

    /// Tells it, and with it how each write ended; the revisions that it tried to write.
    fn tell(&mut self, event: RelayEvent, full: bool) -> Vec<u64> {
        let (mut events, mut tried) = (vec![event], Vec::new());
        while let Some(event) = events.pop() {
            let mut writing = 0;
            for action in self.machine.handle(event, self.now) {
                match action {
                    RelayAction::Persist(head, _) => {
                        let at = head.position;
                        tried.push(at.rev);
                        writing += 1;
                        let stored = if full { Err("no room".into()) } else { Ok(()) };
                        events.push(RelayEvent::Stored(at, stored));
                    }
                    RelayAction::Ack { position, level: Level::Stored, volatile: false } => {
                        self.stored.push(position.rev);
                    }
                    RelayAction::Alarm(RelayAlarm::NotStored { .. }) => self.alarms += 1,
                    _ => {}
                }
            }
            assert!(writing < 2, "one at a time");
        }
        tried
    }

    /// What it tries when it next wants to, and how long that is from now.
    fn wait(&mut self, full: bool) -> (Vec<u64>, Duration) {
        let due = self.machine.due().expect("it tries again");
        let waited = due.saturating_since(self.now);
        self.now = due;
        (self.tell(RelayEvent::Time, full), waited)
    }
}

#[test]
fn what_the_disk_did_not_take_is_tried_again_ever_later_and_one_alarm_is_raised() {
    let mut disk = Disk::new(7);
    assert_eq!((disk.tell(update(1, b""), true), disk.alarms), (vec![1], 1));
    let waits: Vec<Duration> = (0..10)
        .map(|_| {
            let (tried, waited) = disk.wait(true);
            assert_eq!(tried, [1]);
            waited
        })
        .collect();
    assert!(waits.windows(2).all(|two| two[0] < two[1] || two[1] >= Duration::from_secs(30)), "{waits:?}");
    assert!(waits[0] <= Duration::from_secs(1) && waits[9] <= Duration::from_secs(60), "{waits:?}");
    let mut other = Disk::new(8);
    other.tell(update(1, b""), true);
    assert_ne!(other.wait(true).1, waits[0], "not all at once");
    // A new revision is a try of its own, and puts nothing off.
    let due = disk.machine.due();
    assert_eq!((disk.tell(update(2, b""), true), disk.machine.due()), (vec![2], due));
    // There is room again.
    assert_eq!(disk.wait(false).0, [2]);
    assert_eq!((disk.machine.due(), disk.alarms, &disk.stored[..]), (None, 1, &[2][..]));
    disk.tell(update(3, b""), true);
    assert_eq!(disk.alarms, 2, "another time");
    assert_eq!((disk.tell(update(4, b""), false), disk.machine.due()), (vec![4], None));
    assert_eq!(disk.stored, [2, 4]);
}

#[test]
fn the_state_of_a_cohort_is_not_kept_before_the_one_that_it_stands_on() {
    let mut disk = Disk::new(7);
    disk.tell(update(1, b""), true);
    // After a restart it would count for nothing.
    assert_eq!(disk.tell(update(2, b"cohort"), true), [1]);
    assert_eq!(disk.wait(true).0, [1]);
    assert_eq!((disk.wait(false).0, &disk.stored[..]), (vec![1, 2], &[2][..]));
    assert_eq!(disk.tell(update(3, b"cohort"), true), [3]);
    assert_eq!((disk.wait(false).0, disk.machine.due()), (vec![3], None));
}
