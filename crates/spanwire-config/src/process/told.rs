//! Which connections a person is told of: each change once, not each attempt.
//!
//! Who is turned away dials again, and is turned away again: relays in a loop, a node of another cluster. Its first end is
//! told with its reason. From then on a connection from the same place is told of only when it has lasted for a moment, or
//! ended for another reason.
//!
//! Owns: what was told of a place. Never: a clock, a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What has not lasted so long was turned away.
const MOMENT: Duration = Duration::from_secs(1);
/// Most places that are remembered; then all are forgotten, and told of anew.
const MOST: usize = 1024;

/// Where a connection comes from or leads to: the endpoint, and the address there without its port, which is another
/// each time for who dials.
type Place = (u32, String);

#[derive(Debug)]
struct Open {
    place: Place,
    remote: String,
    since: Instant,
    told: bool,
}

/// Why connections of a place end at once, and how often that was not told.
#[derive(Debug)]
struct Turned {
    why: String,
    untold: u64,
}

/// The connections of one socket, by their pipes.
#[derive(Debug)]
pub(super) struct Connections<K> {
    open: BTreeMap<K, Open>,
    /// Those that are not told of, by their begin.
    held: BTreeSet<(Instant, K)>,
    turned: BTreeMap<Place, Turned>,
}

impl<K> Default for Connections<K> {
    fn default() -> Self {
        Connections { open: BTreeMap::new(), held: BTreeSet::new(), turned: BTreeMap::new() }
    }
}

fn place(endpoint: u32, remote: &str) -> Place {
    (endpoint, remote.rsplit_once(':').map_or(remote, |(host, _port)| host).to_owned())
}

/// Who dials over ipc has no address.
fn named(remote: &str) -> &str {
    if remote.is_empty() { "a local peer" } else { remote }
}

impl<K: Ord + Copy> Connections<K> {
    /// There is a connection; the line that tells of it, if it is told now.
    pub(super) fn connected(&mut self, pipe: K, endpoint: u32, remote: &str, now: Instant) -> Option<String> {
        let place = place(endpoint, remote);
        let told = !self.turned.contains_key(&place);
        if !told {
            self.held.insert((now, pipe));
        }
        self.open.insert(pipe, Open { place, remote: remote.to_owned(), since: now, told });
        told.then(|| format!("connected: {}", named(remote)))
    }

    /// It has ended; the lines that tell of that.
    pub(super) fn ended(&mut self, pipe: K, remote: &str, reason: &str, now: Instant) -> Vec<String> {
        let line = format!("disconnected: {}: {reason}", named(remote));
        let Some(open) = self.open.remove(&pipe) else { return vec![line] };
        if open.told && now.saturating_duration_since(open.since) >= MOMENT {
            self.turned.remove(&open.place);
            return vec![line];
        }
        self.held.remove(&(open.since, pipe));
        let first = (!open.told).then(|| format!("connected: {}", named(&open.remote)));
        match self.turn(open.place, reason) {
            true => first.into_iter().chain([line]).collect(),
            false => Vec::new(),
        }
    }

    /// There was none: its handshake was refused.
    pub(super) fn rejected(&mut self, endpoint: u32, remote: &str, reason: &str) -> Option<String> {
        let is_news = self.turn(place(endpoint, remote), reason);
        is_news.then(|| format!("refused: {}: {reason}", named(remote)))
    }

    /// A place was turned away; whether that is news.
    fn turn(&mut self, place: Place, reason: &str) -> bool {
        if let Some(turned) = self.turned.get_mut(&place).filter(|turned| turned.why == reason) {
            turned.untold += 1;
            return false;
        }
        if self.turned.len() >= MOST {
            self.turned.clear();
        }
        self.turned.insert(place, Turned { why: reason.to_owned(), untold: 0 });
        true
    }

    /// When to call [`lasted`](Self::lasted) next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.held.first().map(|(since, _)| *since + MOMENT)
    }

    /// Connections that were not told of and have lasted by now.
    pub(super) fn lasted(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some((_, pipe)) = self.held.first().filter(|(since, _)| *since + MOMENT <= now).copied() {
            self.held.pop_first();
            let Some(open) = self.open.get_mut(&pipe) else { continue };
            open.told = true;
            let untold = match self.turned.remove(&open.place) {
                Some(Turned { why, untold }) if untold > 0 => {
                    format!("; {untold} more before it ended at once: {why}")
                }
                _ => String::new(),
            };
            lines.push(format!("connected: {}{untold}", named(&open.remote)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_turned_away_again_and_again_is_told_of_once_until_that_changes() {
        let mut at = Connections::default();
        let began = Instant::now();
        // Each a while after the one before.
        let time = |n: u32| began + 5 * n * MOMENT;
        let redial = |at: &mut Connections<u32>, n: u32, endpoint: u32, why: &str| {
            let remote = match endpoint {
                1 => "tcp://10.0.0.1:7700".to_owned(),
                _ => format!("tcp://10.0.0.2:{n}"),
            };
            let end = time(n) + MOMENT - Duration::from_millis(1);
            let mut told: Vec<String> = at.connected(n, endpoint, &remote, time(n)).into_iter().collect();
            told.extend(at.lasted(end));
            told.extend(at.ended(n, &remote, why, end));
            told
        };
        let loops = "servers form a loop";
        for endpoint in [1, 2] {
            let first = redial(&mut at, 1, endpoint, loops);
            assert_eq!(first.len(), 2, "{first:?}");
            assert!(first[0].starts_with("connected: tcp://10.") && first[1].ends_with(loops), "{first:?}");
            assert!((2..9).all(|n| redial(&mut at, n, endpoint, loops).is_empty()));
            let other = redial(&mut at, 9, endpoint, "closed by the peer");
            assert!(other.len() == 2 && other[1].ends_with("closed by the peer"), "{other:?}");
            assert!(redial(&mut at, 10, endpoint, "closed by the peer").is_empty());
        }
        // One that lasts is told of, with those before it, and then the first that is turned away.
        assert_eq!(at.due(), None);
        let now = time(20);
        assert_eq!(at.connected(20, 1, "tcp://10.0.0.1:7700", now), None);
        assert_eq!(at.due(), Some(now + MOMENT));
        assert_eq!(at.lasted(now), [""; 0]);
        assert_eq!(
            at.lasted(now + MOMENT),
            ["connected: tcp://10.0.0.1:7700; 1 more before it ended at once: closed by the peer"]
        );
        let end = at.ended(20, "tcp://10.0.0.1:7700", "closed by the peer", now + 2 * MOMENT);
        assert_eq!(end, ["disconnected: tcp://10.0.0.1:7700: closed by the peer"]);
        assert_eq!(redial(&mut at, 21, 1, loops).len(), 2);
    }

    #[test]
    fn handshakes_that_are_refused_alike_are_told_of_once_for_each_place() {
        let mut at = Connections::<u32>::default();
        assert_eq!(at.rejected(1, "", "x").as_deref(), Some("refused: a local peer: x"));
        assert_eq!((at.rejected(1, "", "x"), at.rejected(1, "", "y").is_some()), (None, true));
        for n in 0..3 * MOST {
            let host = format!("tcp://10.0.{}.{}:1", n / 256, n % 256);
            assert!(at.rejected(1, &host, "x").is_some() && at.rejected(1, &host, "x").is_none());
            assert!(at.turned.len() <= MOST);
        }
    }
}
