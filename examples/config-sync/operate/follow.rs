//! The verbs that follow what happens: what was committed, who has it, what comes.
//!
//! Owns: pages and time. Never: a change.

use std::time::{Duration, Instant};

use serde_json::json;
use spanwire_config::client::{Client, ClientError};
use spanwire_config::wire::client::{InvalidCode, Selector, Waited};
use spanwire_config::{Id, Level};

use super::{Failed, LevelArg, REFUSED, Res, Rev, TIMEOUT, To, place, print};
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
    let at = match at {
        Some(rev) => place(&client, rev)?,
        None => client.status()?.tip.position.into(),
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
    let few = (known < min).then(|| format!("{known} nodes; at least {min} were asked for"));
    let late = (known > ok.len()).then(|| format!("{} behind, {} silent", behind.len(), silent.len()));
    let why: Vec<String> = late.into_iter().chain(few).collect();
    if why.is_empty() { Ok(()) } else { Err(Failed(TIMEOUT, why.join("; "))) }
}

pub(super) fn watch(client: &Client, after: Option<Rev>, json: bool) -> Res<()> {
    let mut after = match after {
        Some(rev) => place(client, rev)?,
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
