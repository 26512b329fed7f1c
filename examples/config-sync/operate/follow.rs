//! The verbs that follow what happens: what was committed, who has it, what comes.
//!
//! Owns: pages and time. Never: a change.

use std::time::{Duration, Instant};

use serde_json::json;
use spanwire_config::client::{Client, ClientError};
use spanwire_config::wire::client::{InvalidCode, Nodes, Selector, Waited};
use spanwire_config::{Id, Level, NodeKind, Place};

use super::{Failed, LevelArg, REFUSED, Res, Rev, TIMEOUT, To, place, print, senseless};
use crate::show;

pub(super) fn history(client: &Client, max: usize, keys: bool, json: bool) -> Res<()> {
    let (mut before, mut left) = (None, max);
    while left > 0 {
        let page = client.log(before, u16::try_from(left).unwrap_or(u16::MAX))?;
        if !page.commits.iter().all(|commit| print(&show::commit(commit, keys, json))) {
            break;
        }
        left -= page.commits.len().min(left);
        match page.commits.last() {
            Some(last) if page.more => before = Some(last.at),
            _ => break,
        }
    }
    Ok(())
}

pub(super) fn wait(
    to: &To,
    at: Option<Rev>,
    level: LevelArg,
    selector: &Selector,
    min: usize,
    json: bool,
) -> Res<()> {
    // Without a server there is nothing to wait for beyond the time; with one, a look takes a moment.
    let client = to.client()?.with_timeout(to.timeout.max(Duration::from_secs(1)));
    let seen = client.status()?;
    none_is_a_relay(selector, &seen)?;
    let at = match at {
        Some(rev) => place(&client, rev)?,
        None => seen.tip.position.into(),
    };
    let level = match level {
        LevelArg::Stored => Level::Stored,
        LevelArg::Visible => Level::Visible,
        LevelArg::Applied => Level::Applied,
    };
    // An answer may take its time beyond that of the nodes.
    let client = client.with_timeout(Duration::from_secs(10));
    let latest = Instant::now() + to.timeout.min(Duration::from_secs(1 << 30));
    let waited = loop {
        let left = latest.saturating_duration_since(Instant::now());
        let waited = client.wait(at, level, left, selector)?;
        let known = waited.ok.len() + waited.refused.len() + waited.behind.len() + waited.silent.len();
        let unseen = waited.silent.iter().any(|named| named.node == Id::default());
        if known >= min && !unseen || left.is_zero() {
            break waited;
        }
        // Who is selected is looked up once, at the start of a wait: more may come, also of a name that nobody had.
        std::thread::sleep(left.min(Duration::from_millis(100)));
    };
    print(&show::waited(at, &waited, json));
    let Waited { ok, refused, behind, silent } = &waited;
    if !refused.is_empty() {
        return Err(Failed(REFUSED, format!("{} refused", refused.len())));
    }
    let known = ok.len() + behind.len() + silent.len();
    if known < min.max(selector.names.len()) {
        // One may have come meanwhile.
        none_is_a_relay(selector, &client.status()?)?;
    }
    let few = (known < min).then(|| format!("{known} nodes; at least {min} were asked for"));
    let late = (known > ok.len()).then(|| format!("{} behind, {} silent", behind.len(), silent.len()));
    let mut why: Vec<String> = late.into_iter().chain(few).collect();
    if why.is_empty() {
        return Ok(());
    }
    // One that lost its state folder is another node, and the one before stays away.
    why.extend(show::namesakes(&waited));
    Err(Failed(TIMEOUT, why.join("; ")))
}

/// A relay applies nothing, so that whoever waits for it would wait for nobody.
fn none_is_a_relay(selector: &Selector, seen: &Nodes) -> Res<()> {
    let has = |name: &str, kind| seen.nodes.iter().any(|node| node.node.name == name && node.kind == kind);
    let is_relay = |name: &&String| has(name, NodeKind::Relay) && !has(name, NodeKind::Replica);
    match selector.names.iter().find(is_relay) {
        None => Ok(()),
        Some(name) => senseless(format!(
            "{} is a relay, and only nodes are waited for: name those behind it (--name, --label); `status` shows what \
             a relay has stored",
            show::plain(name)
        )),
    }
}

/// The same place, if it is not above the newest: nobody would hear of what comes before it does. Where there is nothing
/// yet, or nobody to ask, it may come.
fn existing(client: &Client, at: Place) -> Res<Place> {
    let newest = match client.status() {
        Ok(status) => status.tip.position.into(),
        Err(ClientError::Unanswered(_) | ClientError::Unreachable(_) | ClientError::Busy) => return Ok(at),
        Err(error) => return Err(error.into()),
    };
    if at > newest && newest != Place::default() {
        let (at, newest) = (show::place(at), show::place(newest));
        return Err(Failed(REFUSED, format!("there is no revision {at}; the newest is {newest}")));
    }
    Ok(at)
}

pub(super) fn watch(client: &Client, after: Option<Rev>, json: bool) -> Res<()> {
    let mut after = match after {
        Some(rev) => existing(client, place(client, rev)?)?,
        None => client.status()?.tip.position.into(),
    };
    loop {
        match client.follow(after, Duration::from_secs(60)) {
            Ok(page) => {
                if !page.commits.iter().all(|commit| print(&show::commit(commit, true, json))) {
                    return Ok(());
                }
                after = page.commits.last().map_or(after, |last| last.at);
            }
            Err(ClientError::Invalid { code: InvalidCode::Compacted, oldest, .. }) => {
                let (from, to) = (show::place(after), show::place(oldest));
                if json {
                    if !print(&format!("{}\n", json!({"missed": {"after": from, "to": to}}))) {
                        return Ok(());
                    }
                } else {
                    eprintln!("what came after {from} up to {to} is not kept");
                }
                after = oldest;
            }
            // It comes back, or the operator ends this.
            Err(ClientError::Unanswered(_) | ClientError::Unreachable(_) | ClientError::Busy) => {
                eprintln!("no answer; asking on")
            }
            Err(error) => return Err(error.into()),
        }
    }
}
