//! The store against a disk that crashes at every operation, loses, tears, fills up and rots.

use std::sync::Arc;

use super::sim::{After, Faults, SimDisk};
use super::*;
use crate::{ChangeSet, ClusterId, Epoch, Id, Key, Position, chain};

const CLUSTER: ClusterId = Id([7; 16]);

fn open(disk: SimDisk) -> Embedded<SimDisk> {
    Embedded::new(disk, CLUSTER, "config")
}

/// What was asked of a store, in order, and what each step leads to.
#[derive(Clone, Default)]
struct Model {
    records: Vec<Record>,
    /// State after each record.
    after: Vec<Option<Snapshot>>,
}

impl Model {
    fn last(&self) -> Option<&Snapshot> {
        self.after.last().and_then(Option::as_ref)
    }

    /// A batch of `commits` commits, on what is last; in a new epoch if asked.
    fn batch(&mut self, commits: u64, new_epoch: bool) -> Record {
        let last = self.last().cloned();
        let mut state = last.as_ref().map(|l| l.state.clone()).unwrap_or_default();
        let number = last.as_ref().map_or(0, |l| l.head.position.epoch.number);
        let begins = new_epoch || last.is_none();
        let number = number + u64::from(begins);
        let epoch = Epoch { number, incarnation: Id([number as u8; 16]) };
        let mut rev = last.as_ref().map_or(0, |l| l.head.position.rev);
        let mut log = Vec::new();
        for _ in 0..commits {
            rev += 1;
            let mut changes = ChangeSet::new();
            changes.put(Key::new(format!("k{}", rev % 5)).expect("short"), 0, format!("value {rev}"));
            if rev.is_multiple_of(3) {
                changes.delete(Key::new(format!("k{}", (rev + 1) % 5)).expect("short"));
            }
            state.apply(&changes);
            log.push(LogCommit {
                rev,
                request: Id([rev as u8; 16]),
                author: "someone".into(),
                note: format!("note {rev}"),
                stamp: rev,
                digest: state.digest(),
                changes: Arc::new(changes),
            });
        }
        let digest = state.digest();
        let (prev_rev, previous) = match &last {
            Some(last) if !begins => (last.head.position.rev, last.head.chain),
            _ => (0, [0; 32]),
        };
        let head = Head {
            cluster: CLUSTER,
            namespace: "config".into(),
            position: Position { epoch, rev },
            prev_rev,
            digest,
            keys: state.keys(),
            bytes: state.bytes(),
            chain: chain(&previous, rev, &digest),
            ..Head::default()
        };
        let record = Record::Batch(Batch { head: head.clone(), commits: log, plan: None });
        self.records.push(record.clone());
        self.after.push(Some(Snapshot { head, state }));
        record
    }

    fn frozen(&mut self) -> Record {
        let record = Record::Frozen(self.last().map(|l| l.head.clone()).unwrap_or_default());
        self.records.push(record.clone());
        self.after.push(self.last().cloned());
        record
    }
}

/// How far a run of [`script`] came.
#[derive(Clone, Default)]
struct Run {
    model: Model,
    /// Records of which the store said that they are durable.
    acknowledged: usize,
    /// Highest open count that the store gave.
    opened: u32,
}

/// A life with everything in it; ends at the first error.
fn script(disk: &mut SimDisk) -> Run {
    let mut run = Run::default();
    let _ = steps(disk, &mut run);
    run
}

fn append(store: &mut Embedded<SimDisk>, run: &mut Run, record: &Record) -> Result<(), SourceError> {
    store.append_durable(record)?;
    run.acknowledged = run.model.records.len();
    run.opened = run.opened.max(1);
    Ok(())
}

/// Runs `act` on a store of `disk`, and gives the disk back whatever happens.
fn with(
    disk: &mut SimDisk,
    act: impl FnOnce(&mut Embedded<SimDisk>) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut store = open(std::mem::take(disk));
    let done = act(&mut store);
    *disk = store.into_disk();
    done
}

fn steps(disk: &mut SimDisk, run: &mut Run) -> Result<(), SourceError> {
    with(disk, |store| {
        assert_eq!(store.load()?, None);
        for commits in [1, 3, 1, 2] {
            let record = run.model.batch(commits, false);
            append(store, run, &record)?;
        }
        let base = run.model.after[1].clone().expect("a batch");
        store.compact(&base)?;
        let record = run.model.batch(1, false);
        append(store, run, &record)?;
        run.opened = store.raise_opened(5)?;
        let base = run.model.after[3].clone().expect("a batch");
        store.compact(&base)
    })?;
    with(disk, |store| {
        run.opened = store.load()?.map_or(run.opened, |r| r.opened);
        let record = run.model.batch(2, false);
        append(store, run, &record)?;
        let record = run.model.frozen();
        append(store, run, &record)?;
        let record = run.model.batch(1, true);
        append(store, run, &record)?;
        let base = run.model.after[5].clone().expect("a batch");
        store.compact(&base)?;
        for commits in [1, 1] {
            let record = run.model.batch(commits, false);
            append(store, run, &record)?;
        }
        let base = run.model.after[8].clone().expect("a batch");
        store.compact(&base)
    })
}

/// Opens what a run left and holds it against the model; returns the store and how many records it has.
#[track_caller]
fn verify(disk: SimDisk, run: &Run, what: &dyn std::fmt::Debug) -> (Embedded<SimDisk>, usize) {
    let mut store = open(disk);
    let found = match store.load() {
        Ok(None) => {
            assert_eq!(run.acknowledged, 0, "{what:?}: all is gone");
            return (store, 0);
        }
        Ok(Some(found)) => found,
        Err(error) => panic!("{what:?}: a crash alone is no damage: {error}"),
    };
    assert!(found.opened > run.opened, "{what:?}: open count {} again", found.opened);
    let model = &run.model;
    let at = (0..=model.records.len())
        .rev()
        .find(|n| match n {
            0 => found.last.is_none() && found.frozen.is_none(),
            n => {
                model.after[n - 1] == found.last
                    && matches!(model.records[n - 1], Record::Frozen(_)) == found.frozen.is_some()
            }
        })
        .unwrap_or_else(|| panic!("{what:?}: a state that never was"));
    assert!(at >= run.acknowledged, "{what:?}: {} acknowledged, {at} there", run.acknowledged);
    assert!(model.records[..at].ends_with(&found.records), "{what:?}");
    let below = at - found.records.len();
    let base = below.checked_sub(1).and_then(|i| model.after[i].clone());
    assert_eq!(found.base, base, "{what:?}");
    // The chain of every HEAD of the epoch is there, and of nothing else.
    if let Some(last) = &found.last {
        let epoch = last.head.position.epoch;
        let heads: Vec<&Head> = (model.records[..at].iter())
            .filter_map(|r| match r {
                Record::Batch(batch) => Some(&batch.head),
                Record::Frozen(_) | Record::Mark(_) => None,
            })
            .filter(|head| head.position.epoch == epoch)
            .collect();
        for rev in 0..=last.head.position.rev + 2 {
            let expected = heads.iter().find(|h| h.position.rev == rev).map(|h| h.chain);
            assert_eq!(store.chain_at(rev).expect("readable"), expected, "{what:?}: chain of {rev}");
        }
    }
    (store, at)
}

/// Verifies, commits once more, cuts the power, and verifies that this is there.
#[track_caller]
fn verify_and_go_on(disk: SimDisk, run: &Run, what: &dyn std::fmt::Debug) {
    let (mut store, at) = verify(disk, run, what);
    let mut run = run.clone();
    run.model.records.truncate(at);
    run.model.after.truncate(at);
    // A frozen store takes nothing but a new epoch.
    let frozen = matches!(run.model.records.last(), Some(Record::Frozen(_)));
    let record = run.model.batch(2, frozen);
    store.append_durable(&record).unwrap_or_else(|e| panic!("{what:?}: {e}"));
    run.acknowledged = at + 1;
    let disk = store.into_disk();
    let (_, again) = verify(disk.restart(After::Nothing), &run, what);
    assert_eq!(again, at + 1, "{what:?}");
    verify(disk.restart(After::Kill), &run, what);
}

fn afters(seed: u64, count: u64) -> impl Iterator<Item = After> {
    [After::Kill, After::Nothing, After::Everything]
        .into_iter()
        .chain((0..count).map(move |i| After::Some(seed.wrapping_mul(1_000_003).wrapping_add(i))))
}

#[test]
fn invariant_06_a_crash_at_every_operation_leaves_all_that_was_acknowledged_and_nothing_half() {
    let mut disk = SimDisk::new();
    let whole = script(&mut disk);
    assert_eq!((whole.acknowledged, whole.model.records.len()), (10, 10), "the script runs through");
    let operations = disk.operations();
    let mut points = 0;
    for at in 0..operations {
        for part in [0, 40, 128, 254, 255] {
            let mut disk = SimDisk::new();
            disk.set_faults(Faults { crash_at: Some(at), crash_part: part, ..Faults::default() });
            let run = script(&mut disk);
            assert!(run.model.records.len() - run.acknowledged <= 1);
            for after in afters(at * 7 + u64::from(part), 30) {
                // To go on costs three more starts, so a part of them does.
                if points % 5 == 0 {
                    verify_and_go_on(disk.restart(after), &run, &(at, part, after));
                } else {
                    verify(disk.restart(after), &run, &(at, part, after));
                }
                points += 1;
            }
        }
    }
    assert!(points >= 10_000, "{points} crash points");
}

#[test]
fn a_crash_during_the_recovery_from_a_crash_is_no_worse() {
    let mut disk = SimDisk::new();
    script(&mut disk);
    let operations = disk.operations();
    for at in 0..operations {
        let mut first = SimDisk::new();
        first.set_faults(Faults { crash_at: Some(at), crash_part: 200, ..Faults::default() });
        let run = script(&mut first);
        for after in afters(at, 2) {
            let found = first.restart(after);
            for again in 0.. {
                let mut disk = found.clone();
                disk.set_faults(Faults { crash_at: Some(again), crash_part: 100, ..Faults::default() });
                let mut store = open(disk);
                if store.load().is_ok() {
                    break;
                }
                let disk = store.into_disk();
                for last in afters(at ^ again, 2) {
                    verify(disk.restart(last), &run, &(at, after, again, last));
                }
            }
        }
    }
}

#[test]
fn every_byte_flip_is_refused_or_changes_nothing() {
    let mut disk = SimDisk::new();
    let run = script(&mut disk);
    let files = disk.list().expect("in memory");
    assert!(["log", "mark", "opens"].iter().all(|f| files.iter().any(|name| name == f)), "{files:?}");
    assert!(files.iter().any(|f| f.starts_with("chain-")), "{files:?}");
    let mut refused = 0;
    for file in &files {
        let whole = disk.bytes(file).expect("listed").to_vec();
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut rotten = disk.restart(After::Kill);
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                rotten.replace(file, bytes);
                if open(rotten.clone()).load().is_err() {
                    // A mark is a hint, and open counts are there twice.
                    assert!(file != "mark" && file != "opens", "{file} {at}");
                    refused += 1;
                } else {
                    let (_, there) = verify(rotten, &run, &(file, at, flip));
                    assert_eq!(there, 10);
                }
            }
        }
        // And every length.
        for len in 0..whole.len() {
            let mut cut = disk.restart(After::Kill);
            cut.replace(file, whole[..len].to_vec());
            let loaded = open(cut.clone()).load();
            match file.as_str() {
                "mark" => drop(verify(cut, &run, &(file, len))),
                "opens" => assert!(loaded.is_err() || verify(cut, &run, &(file, len)).1 == 10),
                _ => assert!(loaded.is_err(), "{file} cut to {len}"),
            }
        }
    }
    assert!(refused > 1_000, "{refused}");
}

#[test]
fn without_its_mark_every_byte_flip_is_refused_or_costs_the_last_record_at_most() {
    let mut disk = SimDisk::new();
    let run = script(&mut disk);
    disk.lose("mark");
    let whole = disk.bytes("log").expect("there").to_vec();
    let mut cut = 0;
    for at in 0..whole.len() {
        let mut rotten = disk.restart(After::Kill);
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        rotten.replace("log", bytes);
        if let Ok(Some(found)) = open(rotten).load() {
            // The very last frame alone can be taken for torn.
            assert_eq!(found.last, run.model.after[8], "byte {at}");
            cut += 1;
        }
    }
    // In this script the last frames came in by compaction, which tells how many there are.
    assert_eq!(cut, 0);
    // Frames that were appended since are known to have been durable by what follows them.
    let mut store = open(disk);
    store.load().expect("whole").expect("there");
    let mut model = run.model.clone();
    let mut start = 0;
    for _ in 0..3 {
        start = store.disk().bytes("log").expect("there").len();
        store.append_durable(&model.batch(1, false)).expect("written");
    }
    let mut disk = store.into_disk();
    disk.lose("mark");
    let before = &model.after[model.after.len() - 2];
    let whole = disk.bytes("log").expect("there").to_vec();
    for at in 0..whole.len() {
        let mut rotten = disk.restart(After::Kill);
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        rotten.replace("log", bytes);
        match open(rotten).load() {
            Ok(Some(found)) => {
                assert!(at >= start, "byte {at}");
                assert_eq!(&found.last, before);
                assert!(found.cut > 0);
            }
            Ok(None) => panic!("byte {at}"),
            Err(_) => assert!(at < start, "byte {at}"),
        }
    }
}

#[test]
fn a_lost_file_is_refused() {
    let mut disk = SimDisk::new();
    script(&mut disk);
    for file in disk.list().expect("in memory") {
        let mut rotten = disk.restart(After::Kill);
        rotten.lose(&file);
        assert_eq!(open(rotten).load().is_err(), file != "mark", "{file}");
    }
}

#[test]
fn a_failed_sync_stops_the_store_and_is_never_tried_again() {
    let mut disk = SimDisk::new();
    script(&mut disk);
    let operations = disk.operations();
    let mut failed = 0;
    for at in 0..operations {
        let mut disk = SimDisk::new();
        disk.set_faults(Faults { fail_sync_at: Some(at), ..Faults::default() });
        let mut run = Run::default();
        if steps(&mut disk, &mut run).is_ok() {
            continue;
        }
        failed += 1;
        // The process goes on living: whatever it asks now is refused, and nothing more is written.
        for after in afters(at, 20) {
            let found = disk.restart(after);
            verify_and_go_on(found, &run, &(at, after));
        }
        // The page cache shows what the disk does not have. A start from it, and only then a power cut:
        // what the start believed must be there.
        let (store, at_start) = verify(disk.restart(After::Kill), &run, &at);
        let disk = store.into_disk();
        let (_, after_cut) = verify(disk.restart(After::Nothing), &run, &at);
        assert_eq!(at_start, after_cut, "sync {at}: what was served is gone");
    }
    assert!(failed >= 30, "{failed}");
    // And the store itself says so.
    let mut store = open(SimDisk::new());
    store.load().expect("empty");
    let mut model = Model::default();
    store.append_durable(&model.batch(1, false)).expect("written");
    let mut disk = store.into_disk().restart(After::Kill);
    let next = {
        let mut store = open(disk.clone());
        store.load().expect("whole");
        store.into_disk().operations()
    };
    disk.set_faults(Faults { fail_sync_at: Some(next + 1), ..Faults::default() });
    let mut store = open(disk);
    store.load().expect("whole");
    let record = model.batch(1, false);
    assert!(matches!(store.append_durable(&record), Err(SourceError::Io { .. })));
    assert!(store.health().stopped.is_some());
    let before = store.disk().operations();
    assert!(matches!(store.append_durable(&record), Err(SourceError::Stopped(_))));
    assert!(matches!(store.raise_opened(0), Err(SourceError::Stopped(_))));
    assert_eq!(store.disk().operations(), before);
}

/// One that has this many records, the model of it, and the last record that was not appended yet.
fn opened<D: Disk>(disk: D, records: u64) -> (Embedded<D>, Model, Record) {
    let mut store = Embedded::new(disk, CLUSTER, "config");
    store.load().expect("empty");
    let mut model = Model::default();
    (0..records).for_each(|_| store.append_durable(&model.batch(1, false)).expect("written"));
    let next = model.batch(1, false);
    (store, model, next)
}

/// Its folder is gone: nothing is acknowledged, then it has stopped.
#[track_caller]
fn refuses_for_good<D: Disk>(mut store: Embedded<D>, next: &Record) {
    let first = store.append_durable(next);
    assert!(matches!(first, Err(SourceError::Gone { .. })), "{first:?}");
    assert!(store.health().stopped.is_some_and(|why| why.contains("removed, moved or replaced")));
    assert!(matches!(store.append_durable(next), Err(SourceError::Stopped(_))));
    assert!(matches!(store.raise_opened(0), Err(SourceError::Stopped(_))));
}

#[test]
fn a_folder_that_is_taken_away_stops_the_store_and_nothing_is_acknowledged_that_is_lost() {
    for records in [0, 1, 3] {
        let (mut store, _, next) = opened(SimDisk::new(), records);
        store.disk_mut().take_away();
        refuses_for_good(store, &next);
    }
    // What was open went on taking writes and syncs: the check alone tells.
    let (mut store, _, next) = opened(SimDisk::new(), 1);
    store.disk_mut().take_away();
    let syncs = store.disk().syncs();
    assert!(store.append_durable(&next).is_err());
    assert_eq!(store.disk().syncs(), syncs + 1);
    assert_eq!(open(store.into_disk().restart(After::Kill)).load().expect("empty"), None);
    // Its open count is as much a promise, and a compaction stops instead of trying again and again.
    let (mut store, ..) = opened(SimDisk::new(), 1);
    store.disk_mut().take_away();
    assert!(matches!(store.raise_opened(0), Err(SourceError::Gone { .. })));
    let (mut store, model, next) = opened(SimDisk::new(), 3);
    store.disk_mut().take_away();
    let base = model.after[1].clone().expect("a batch");
    assert!(matches!(store.compact(&base), Err(SourceError::Gone { .. })));
    assert!(matches!(store.append_durable(&next), Err(SourceError::Stopped(_))));
}

#[cfg(all(unix, feature = "sync"))]
#[test]
fn a_folder_of_the_file_system_that_is_taken_away_stops_the_store() {
    use std::fs;

    let temp = tempfile::tempdir().expect("a folder");
    let path = temp.path().join("store");
    let away: [(&str, &dyn Fn()); 5] = [
        ("removed", &|| fs::remove_dir_all(&path).expect("ours")),
        ("moved", &|| fs::rename(&path, temp.path().join("moved")).expect("ours")),
        ("replaced by an empty one", &|| {
            fs::rename(&path, temp.path().join("replaced")).expect("ours");
            fs::create_dir(&path).expect("ours");
        }),
        ("replaced by a copy", &|| {
            let old = temp.path().join("old");
            fs::rename(&path, &old).expect("ours");
            fs::create_dir(&path).expect("ours");
            for file in fs::read_dir(&old).expect("readable") {
                let file = file.expect("readable");
                fs::copy(file.path(), path.join(file.file_name())).expect("writable");
            }
        }),
        ("its log replaced", &|| {
            let Ok(bytes) = fs::read(path.join("log")) else {
                return fs::remove_dir_all(&path).expect("ours");
            };
            fs::write(path.join("copy"), bytes).expect("writable");
            fs::rename(path.join("copy"), path.join("log")).expect("ours");
        }),
    ];
    for records in [0, 2] {
        for (what, take_away) in &away {
            let (store, _, next) = opened(FsDisk::open(&path).expect("writable"), records);
            eprintln!("{records} records, {what}");
            take_away();
            refuses_for_good(store, &next);
            let _ = fs::remove_dir_all(&path);
            for moved in ["moved", "replaced", "old"] {
                let _ = fs::remove_dir_all(temp.path().join(moved));
            }
        }
    }
}

#[test]
fn a_full_disk_stops_commits_and_loses_none() {
    let mut disk = SimDisk::new();
    script(&mut disk);
    let all: u64 =
        disk.list().expect("in memory").iter().filter_map(|f| disk.bytes(f)).map(|b| b.len() as u64).sum();
    for space in (0..all + 4_000).step_by(97) {
        let mut disk = SimDisk::new();
        disk.set_faults(Faults { space: Some(space), ..Faults::default() });
        let run = script(&mut disk);
        for after in afters(space, 3) {
            verify_and_go_on(disk.restart(after), &run, &(space, after));
        }
        // Still full, a store can be opened and read: counting the start takes no room.
        if run.acknowledged > 0 {
            let mut full = disk.restart(After::Kill);
            full.set_faults(Faults { space: Some(space), ..Faults::default() });
            verify(full, &run, &space);
        }
    }
}

#[test]
fn a_full_disk_during_compaction_leaves_the_store_writing() {
    let mut store = open(SimDisk::new());
    store.load().expect("empty");
    let mut model = Model::default();
    for _ in 0..5 {
        store.append_durable(&model.batch(1, false)).expect("written");
    }
    let mut disk = store.into_disk();
    let used: u64 =
        disk.list().expect("in memory").iter().filter_map(|f| disk.bytes(f)).map(|b| b.len() as u64).sum();
    disk = disk.restart(After::Kill);
    disk.set_faults(Faults { space: Some(used + 600), ..Faults::default() });
    let mut store = open(disk);
    store.load().expect("whole");
    let base = model.after[2].clone().expect("a batch");
    assert!(matches!(store.compact(&base), Err(SourceError::Io { .. })));
    assert_eq!(store.health().stopped, None);
    store.append_durable(&model.batch(1, false)).expect("there is room for one");
    let run = Run { acknowledged: 6, opened: 1, model };
    verify_and_go_on(store.into_disk().restart(After::Nothing), &run, &"full");
}

#[test]
fn one_batch_costs_one_sync() {
    let mut store = open(SimDisk::new());
    store.load().expect("empty");
    let mut model = Model::default();
    store.append_durable(&model.batch(1, false)).expect("written");
    let before = store.disk().syncs();
    store.append_durable(&model.batch(100, false)).expect("written");
    assert_eq!(store.disk().syncs() - before, 1);
}

#[test]
fn a_range_begins_anywhere_above_the_base_and_below_it_is_compacted() {
    let mut disk = SimDisk::new();
    let run = script(&mut disk);
    let mut store = open(disk);
    let base = store.load().expect("whole").and_then(|r| r.base).expect("compacted").head.position.rev;
    let all: Vec<&Batch> = (run.model.records.iter())
        .filter_map(|r| match r {
            Record::Batch(batch) => Some(batch),
            Record::Frozen(_) | Record::Mark(_) => None,
        })
        .collect();
    for rev in 0..=all.last().map_or(0, |b| b.head.position.rev) {
        match store.range_since(rev) {
            Ok(found) => {
                assert!(rev >= base);
                let expected: Vec<&Batch> =
                    all.iter().copied().filter(|b| b.head.position.rev > rev).collect();
                assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            }
            Err(SourceError::Compacted { oldest }) => assert!(rev < base && oldest == base),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn what_does_not_follow_and_what_is_foreign_is_refused() {
    let mut store = open(SimDisk::new());
    assert!(matches!(store.range_since(0), Err(SourceError::Misuse(_))));
    store.load().expect("empty");
    let mut model = Model::default();
    let first = model.batch(1, false);
    store.append_durable(&first).expect("written");
    assert!(matches!(store.append_durable(&first), Err(SourceError::Misuse(_))), "twice");
    model.batch(1, false);
    let gap = model.batch(1, false);
    assert!(matches!(store.append_durable(&gap), Err(SourceError::Misuse(_))), "a gap");
    let Record::Batch(mut forged) = first.clone() else { panic!("a batch") };
    forged.head.position.rev = 2;
    forged.head.prev_rev = 1;
    assert!(
        matches!(store.append_durable(&Record::Batch(forged)), Err(SourceError::Misuse(_))),
        "another chain"
    );
    let disk = store.into_disk();
    let mut other = Embedded::new(disk, CLUSTER, "another");
    assert!(matches!(other.load(), Err(SourceError::Foreign { .. })));
}

#[test]
fn a_value_that_holds_a_copy_of_the_log_is_not_taken_for_damage() {
    let mut store = open(SimDisk::new());
    store.load().expect("empty");
    let mut model = Model::default();
    store.append_durable(&model.batch(1, false)).expect("written");
    let copy = store.disk().bytes("log").expect("there").to_vec();
    let last = model.last().cloned().expect("a batch");
    let mut changes = ChangeSet::new();
    changes.put(Key::new("backup").expect("short"), 0, copy);
    let Record::Batch(mut batch) = model.batch(1, false) else { panic!("a batch") };
    let mut state = last.state.clone();
    state.apply(&changes);
    let digest = state.digest();
    batch.commits[0].changes = Arc::new(changes);
    batch.commits[0].digest = digest;
    batch.head = Head {
        digest,
        keys: state.keys(),
        bytes: state.bytes(),
        chain: chain(&last.head.chain, 2, &digest),
        ..batch.head
    };
    store.append_durable(&Record::Batch(batch)).expect("written");
    let mut disk = store.into_disk();
    disk.lose("mark");
    let mut torn = disk.bytes("log").expect("there").to_vec();
    torn.pop();
    disk.replace("log", torn);
    let found = open(disk).load().expect("torn, not damaged").expect("there");
    assert_eq!(found.last, Some(last));
}

#[cfg(all(unix, feature = "sync"))]
#[test]
fn a_folder_of_the_file_system_holds_it_too_and_one_process_at_a_time() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("store");
    let mut model = Model::default();
    let mut store = Embedded::new(FsDisk::open(&path).expect("writable"), CLUSTER, "config");
    assert_eq!(store.load().expect("empty"), None);
    for _ in 0..4 {
        store.append_durable(&model.batch(2, false)).expect("written");
    }
    store.compact(&model.after[1].clone().expect("a batch")).expect("written");
    store.append_durable(&model.batch(1, false)).expect("written");
    assert_eq!(FsDisk::open(&path).map(drop).map_err(|e| e.kind()), Err(std::io::ErrorKind::WouldBlock));
    store.close().expect("synced");
    for file in std::fs::read_dir(&path).expect("it exists") {
        let meta = file.and_then(|f| f.metadata()).expect("readable");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    let mut store = Embedded::new(FsDisk::open(&path).expect("free again"), CLUSTER, "config");
    let found = store.load().expect("whole").expect("there");
    assert_eq!((found.opened, found.last.as_ref()), (2, model.last()));
    assert_eq!(found.records, model.records[2..]);
    assert!(store.chain_at(2).expect("readable").is_some());
    assert_eq!(store.chain_at(1).expect("readable"), None);
}
