//! How the operator's verbs say things: lines and tables for people, JSON for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use spanwire_config::wire::client::{CommitLine, Holding, Named, NodeLine, Nodes, Tip, Waited, Writable};
use spanwire_config::{Change, Entry, Key, NodeKind, Place, State};

use super::operate::{text, writable};
use super::rollout;

/// `EPOCH:REV`; `-` for none.
pub(crate) fn place(place: Place) -> String {
    if place == Place::default() { "-".into() } else { format!("{}:{}", place.epoch, place.rev) }
}

pub(crate) fn place_json(at: Place) -> Value {
    if at == Place::default() { Value::Null } else { json!({"epoch": at.epoch, "revision": at.rev}) }
}

/// What ends a line or moves the cursor must not come from a node or a key.
pub(crate) fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        // Words of a command have several lines.
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

/// A key so that it can be told from every other and pasted into a shell: what is not text, or would not stay on its line, is
/// written as bash and others take it, `$'b\xff'`.
pub(crate) fn key(key: &Key) -> String {
    let bytes = key.as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) && !text.starts_with("$'") => return text.to_owned(),
        _ => {}
    }
    let mut quoted = "$'".to_owned();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '\\' => quoted.extend(['\\', c]),
                c if c.is_control() => escape(&mut quoted, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => quoted.push(c),
            }
        }
        escape(&mut quoted, chunk.invalid());
    }
    quoted + "'"
}

fn escape(out: &mut String, bytes: &[u8]) {
    bytes.iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
}

/// Milliseconds since 1970 as a date and time of day in UTC.
pub(crate) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years of 365.2425 days that begin in March, so that the leap day is the last (Hinnant's algorithm).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Columns as wide as their widest, the last one free.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c: &String| c.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

pub(crate) fn list(of: &Tip, state: &State, json: bool) -> String {
    if json {
        let entries: Vec<Value> = (state.iter())
            .map(|(key, entry)| {
                let mut line =
                    json!({"key": key.to_string(), "flags": entry.flags(), "bytes": entry.value().len()});
                if std::str::from_utf8(key.as_bytes()).is_err() {
                    // The text has other characters in the place of some bytes.
                    let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                    line["key_hex"] = hex.into();
                }
                line
            })
            .collect();
        return format!("{}\n", json!({"at": place_json(of.position.into()), "entries": entries}));
    }
    let rows: Vec<Vec<String>> =
        (state.iter()).map(|(name, entry)| vec![entry.value().len().to_string(), key(name)]).collect();
    table(&rows)
}

pub(crate) fn commit(commit: &CommitLine, keys: bool, json: bool) -> String {
    let CommitLine { at, request, author, note, stamp, digest, puts, deletes, keys: listed } = commit;
    if json {
        let keys = |put| {
            let keys = listed.iter().filter(move |(_, is_put)| *is_put == put);
            keys.map(|(key, _)| key.to_string()).collect::<Vec<_>>()
        };
        let line = json!({
            "at": place_json(*at), "request": request.to_string(), "author": author, "note": note, "time": (*stamp > 0).then(|| time(*stamp)),
            "digest": format!("{digest}"), "puts": puts, "deletes": deletes, "put": keys(true), "deleted": keys(false),
        });
        return format!("{line}\n");
    }
    let when = if *stamp == 0 { "-".into() } else { time(*stamp) };
    let who = if author.is_empty() { "-" } else { author };
    let (at, who, note) = (place(*at), plain(who), plain(note));
    let mut out = format!("{at:8} {when:20}  {who:12}  +{puts} -{deletes}  {note}").trim_end().to_owned();
    out.push('\n');
    if keys {
        for (name, put) in listed {
            out.push_str(&format!("    {} {}\n", if *put { '+' } else { '-' }, key(name)));
        }
        let more = (*puts as usize + *deletes as usize).saturating_sub(listed.len());
        if more > 0 {
            out.push_str(&format!("    and {more} more\n"));
        }
    }
    out
}

/// What leads from one state to the other: keys, and the lines of texts.
pub(crate) fn diff(old: &State, new: &State) -> String {
    let mut out = String::new();
    for (name, change) in old.diff(new).iter() {
        let before = old.get(name.as_bytes());
        let (mark, after) = match change {
            Change::Put(entry) => (if before.is_some() { "changed" } else { "added" }, Some(entry)),
            Change::Delete => ("deleted", None),
        };
        out.push_str(&format!("{mark} {}\n", key(name)));
        let flags = |entry: Option<&Entry>| entry.map_or(0, Entry::flags);
        if before.is_some() && after.is_some() && flags(before) != flags(after) {
            out.push_str(&format!("  flags {:#x} -> {:#x}\n", flags(before), flags(after)));
        }
        match (text(before), text(after)) {
            (Some(before), Some(after)) => lines(&mut out, before, after),
            _ => {
                let size = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.value().len());
                out.push_str(&format!("  {} -> {} bytes\n", size(before), size(after)));
            }
        }
    }
    out
}

/// The lines between those that both begin and end with.
fn lines(out: &mut String, before: &str, after: &str) {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let (before, after) = (&before[head..], &after[head..]);
    let tail = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
    before[..before.len() - tail].iter().for_each(|line| out.push_str(&format!("  - {}\n", plain(line))));
    after[..after.len() - tail].iter().for_each(|line| out.push_str(&format!("  + {}\n", plain(line))));
}

/// What nodes hold.
pub(crate) fn holdings(holdings: &[Holding], json: bool) -> String {
    if json {
        let one = |h: &Holding| {
            json!({"at": place_json(h.position.into()), "incarnation": h.position.epoch.incarnation.to_string(),
                   "digest": h.digest.to_string(), "for_all": h.for_all, "nodes": h.nodes})
        };
        return format!("{}\n", json!({"holdings": holdings.iter().map(one).collect::<Vec<_>>()}));
    }
    if holdings.is_empty() {
        return String::new();
    }
    let mut rows = vec![["REVISION", "NODES", "FOR", "DIGEST"].map(str::to_owned).to_vec()];
    rows.extend(holdings.iter().map(|h| {
        let whom = if h.for_all { "all" } else { "some" };
        vec![place(h.position.into()), h.nodes.to_string(), whom.into(), format!("{:?}", h.digest)]
    }));
    table(&rows)
}

fn lag(tip: Place, node: &NodeLine) -> Option<u64> {
    (node.applied.epoch == tip.epoch).then(|| tip.rev.saturating_sub(node.applied.rev))
}

pub(crate) fn status(namespace: &str, status: &Nodes, json: bool) -> String {
    let tip = Place::from(status.tip.position);
    if json {
        let nodes: Vec<Value> = status.nodes.iter().map(|node| node_json(tip, node)).collect();
        let status = json!({
            "namespace": namespace, "at": place_json(tip), "digest": status.tip.digest.to_string(),
            "keys": status.tip.keys, "bytes": status.tip.bytes, "writable": writable(status.writable),
            "why": status.text, "oldest": place_json(status.oldest), "nodes": nodes,
            "conflicts": status.nodes.iter().filter(|node| node.conflict).count(),
            "rollout": status.rollout.as_ref().map(rollout::as_json),
        });
        return format!("{status}\n");
    }
    let (relays, nodes): (Vec<_>, Vec<_>) =
        status.nodes.iter().partition(|node| node.kind == NodeKind::Relay);
    let here = |nodes: &[&NodeLine]| nodes.iter().filter(|node| node.connected).count();
    let relays = match &relays[..] {
        [] => String::new(),
        all => format!(", {} of {} relays", here(all), all.len()),
    };
    let mut out = format!(
        "{namespace}: revision {}, {} keys, {} bytes; {}; {} of {} nodes{relays} here\n",
        place(tip),
        status.tip.keys,
        status.tip.bytes,
        writable(status.writable),
        here(&nodes),
        nodes.len()
    );
    if !status.text.is_empty() {
        out.push_str(&format!("  {}\n", plain(&status.text)));
    }
    warnings(&mut out, status);
    if let Some(line) = &status.rollout {
        out.push_str(&rollout::lines(line));
    }
    if status.nodes.is_empty() {
        return out;
    }
    let head = ["NODE", "", "STORED", "VISIBLE", "APPLIED", "LAG", "REFUSED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let counted = counted(status.nodes.iter().map(|node| &node.node));
    for node in &status.nodes {
        let refused = match node.refused.last() {
            _ if node.conflict => "holds another history".into(),
            Some((at, code, text)) => format!("{} {code:?}: {}", place(*at), plain(text.trim_end())),
            None => String::new(),
        };
        let here = if node.connected { "here" } else { "away" };
        rows.push(vec![
            named(&node.node, &counted),
            format!("{here}{}", if node.is_volatile() { ", volatile" } else { "" }),
            place(node.stored),
            place(node.visible),
            place(node.applied),
            lag(tip, node).map_or("-".into(), |lag| lag.to_string()),
            refused,
        ]);
    }
    out + &table(&rows)
}

/// What the lines of single nodes mean for all.
fn warnings(out: &mut String, status: &Nodes) {
    let conflicts = status.nodes.iter().filter(|node| node.conflict).count();
    // With keys the server says so itself.
    if conflicts > 0 && status.writable != Writable::Old {
        let hold = if conflicts == 1 { "node holds" } else { "nodes hold" };
        out.push_str(&format!(
            "  {conflicts} {hold} another history: this store may be an old copy (then begin a new epoch above theirs), \
             or they met another server (then resync them)\n"
        ));
    }
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    for node in status.nodes.iter().filter(|node| node.connected) {
        *named.entry(&node.node.name).or_default() += 1;
    }
    for (name, count) in named.into_iter().filter(|(_, count)| *count > 1) {
        let name = plain(name);
        out.push_str(&format!(
            "  {count} nodes that are here have the name {name}: name each apart, and see that none runs with a copy of \
             another's state folder\n"
        ));
    }
}

fn node_json(tip: Place, node: &NodeLine) -> Value {
    let refused: Vec<Value> = (node.refused.iter())
        .map(|(at, code, text)| json!({"at": place_json(*at), "code": format!("{code:?}"), "text": text}))
        .collect();
    let labels: serde_json::Map<String, Value> =
        node.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "id": node.node.node.to_string(), "name": node.node.name, "labels": labels, "here": node.connected,
        "kind": if node.kind == NodeKind::Relay { "relay" } else { "replica" },
        "conflict": node.conflict, "volatile": node.is_volatile(), "stored": place_json(node.stored),
        "visible": place_json(node.visible), "applied": place_json(node.applied), "lag": lag(tip, node), "refused": refused,
    })
}

/// How often each name is there.
fn counted<'n>(nodes: impl Iterator<Item = &'n Named>) -> BTreeMap<&'n str, usize> {
    let mut counted = BTreeMap::new();
    nodes.for_each(|node| *counted.entry(&node.name[..]).or_default() += 1);
    counted
}

/// The name of a node, with the first bytes of its id where others have that name, as logs have it.
fn named(node: &Named, counted: &BTreeMap<&str, usize>) -> String {
    let name = if node.name.is_empty() { "-".into() } else { plain(&node.name) };
    let alone = counted.get(&node.name[..]).is_none_or(|count| *count < 2);
    if alone { name } else { format!("{name} ({:?})", node.node) }
}

/// The names that several of those have who were waited for, and how many.
pub(crate) fn namesakes(waited: &Waited) -> Vec<String> {
    let several = counted(all(waited)).into_iter().filter(|(_, count)| *count > 1);
    several.map(|(name, count)| format!("{count} nodes have the name {}", plain(name))).collect()
}

fn all(waited: &Waited) -> impl Iterator<Item = &Named> {
    let Waited { ok, refused, behind, silent } = waited;
    ok.iter().chain(refused.iter().map(|r| &r.node)).chain(behind).chain(silent)
}

pub(crate) fn waited(at: Place, waited: &Waited, json: bool) -> String {
    let Waited { ok, refused, behind, silent } = waited;
    if json {
        let listed = |nodes: &[Named]| {
            let one = |node: &Named| json!({"id": node.node.to_string(), "name": node.name});
            nodes.iter().map(one).collect::<Vec<_>>()
        };
        let refused: Vec<Value> = (refused.iter())
            .map(|r| {
                json!({"id": r.node.node.to_string(), "name": r.node.name, "at": place_json(r.position),
                       "code": format!("{:?}", r.code), "text": r.text})
            })
            .collect();
        let lists = json!({"at": place_json(at), "ok": listed(ok), "refused": refused, "behind": listed(behind),
                           "silent": listed(silent)});
        return format!("{lists}\n");
    }
    let mut rows = Vec::new();
    let counted = counted(all(waited));
    let list = |what: &str, nodes: &[Named]| {
        nodes.iter().map(|node| vec![what.to_owned(), named(node, &counted)]).collect::<Vec<_>>()
    };
    rows.extend(list("ok", ok));
    rows.extend(refused.iter().map(|r| {
        let why = format!("{} {:?}: {}", place(r.position), r.code, plain(r.text.trim_end()));
        vec!["refused".into(), named(&r.node, &counted), why]
    }));
    rows.extend(list("behind", behind));
    rows.extend(list("silent", silent));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_can_be_pasted() {
        for (bytes, shown) in [
            (&b"etc/a b"[..], "etc/a b"),
            ("\u{fffd}".as_bytes(), "\u{fffd}"),
            (b"b\xff", r"$'b\xff'"),
            (b"b\xffe'\\\n", r"$'b\xffe\'\\\x0a'"),
            (br"$'b\xff'", r"$'$\'b\\xff\''"),
        ] {
            assert_eq!(key(&Key::new(bytes).expect("short")), shown);
        }
    }

    #[test]
    fn what_comes_from_a_node_is_one_line() {
        assert_eq!(
            plain("unknown directive\ntest failed\u{1b}[2J"),
            "unknown directive test failed\u{fffd}[2J"
        );
    }
}
