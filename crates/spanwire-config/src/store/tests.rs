//! The state folder, damaged and whole.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::sign::Secret;
use crate::{Entry, Epoch, Key};

fn revision(rev: u64, value: &str) -> (Head, State) {
    let mut state = State::new();
    state.put(Key::new("k").expect("short"), Entry::new(0, value.to_owned()));
    let position = Position { epoch: Epoch { number: 1, incarnation: Id([1; 16]) }, rev };
    let head = Head {
        position,
        digest: state.digest(),
        keys: state.keys(),
        bytes: state.bytes(),
        ..Head::default()
    };
    (head, state)
}

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(&dir.path().join("state")).expect("a writable folder")
}

#[test]
fn the_newest_whole_revision_comes_back_with_permissions_0600() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(&dir);
    for rev in 1..=3 {
        let (head, state) = revision(rev, &rev.to_string());
        store.save(&head, &state).expect("saved");
    }
    drop(store);
    let mut store = open(&dir);
    let loaded = store.load(1 << 20);
    assert_eq!(loaded.newest, Some(revision(3, "3")));
    assert_eq!(loaded.before, Some(revision(2, "2")));
    assert!(loaded.damaged.is_empty());
    for file in fs::read_dir(store.dir()).expect("it exists") {
        let meta = file.and_then(|f| f.metadata()).expect("readable");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(store.dir()).expect("it exists").permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_later_head_of_the_newest_revision_takes_the_slot_of_that_and_of_no_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(&dir);
    let ((one, s1), (mut two, s2), (three, s3)) = (revision(1, "1"), revision(2, "2"), revision(3, "3"));
    store.save(&one, &s1).expect("saved");
    store.save(&two, &s2).expect("saved");
    for (seq, again) in [(7, false), (8, true)] {
        if again {
            // What was written before is known.
            drop(store);
            store = open(&dir);
            store.load(1 << 20);
        }
        two.seq = seq;
        store.save(&two, &s2).expect("saved");
        let loaded = store.load(1 << 20);
        assert_eq!(loaded.newest, Some((two.clone(), s2.clone())));
        assert_eq!(loaded.before, Some((one.clone(), s1.clone())));
    }
    store.save(&three, &s3).expect("saved");
    let loaded = store.load(1 << 20);
    assert_eq!((loaded.newest, loaded.before), (Some((three, s3)), Some((two, s2))));
}

#[test]
fn a_torn_or_tampered_slot_is_refused_and_reported_and_the_other_serves() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(&dir);
    let ((h1, s1), (h2, s2)) = (revision(1, "one"), revision(2, "two"));
    store.save(&h1, &s1).expect("saved");
    store.save(&h2, &s2).expect("saved");
    let path = store.path(SLOTS[1]);
    let whole = fs::read(&path).expect("written");
    // Every byte counts, and so does every length.
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).expect("writable");
        let loaded = store.load(1 << 20);
        assert_eq!(
            (loaded.newest.map(|(h, _)| h.position.rev), loaded.damaged.len()),
            (Some(1), 1),
            "byte {at}"
        );
        fs::write(&path, &whole[..at]).expect("writable");
        assert_eq!(store.load(1 << 20).newest.map(|(h, _)| h.position.rev), Some(1), "cut at {at}");
    }
    // A right hash does not help content that is not what the HEAD names.
    let mut forged = whole[..whole.len() - 32].to_vec();
    let last = forged.len() - 1;
    forged[last] = b'X';
    let hash = blake3::hash(&forged);
    forged.extend_from_slice(hash.as_bytes());
    fs::write(&path, &forged).expect("writable");
    let loaded = store.load(1 << 20);
    assert_eq!(loaded.newest.map(|(h, _)| h.position.rev), Some(1));
    assert!(loaded.damaged[0].contains("digest"), "{:?}", loaded.damaged);
    // The next save takes the damaged slot's place, not the good one's.
    store.save(&h2, &s2).expect("saved");
    assert_eq!(store.load(1 << 20).before.map(|(h, _)| h.position.rev), Some(1));
}

#[test]
fn invariant_05_a_slot_is_believed_under_the_key_that_it_was_accepted_under_until_that_is_revoked() {
    let dir = tempfile::tempdir().expect("a folder");
    let (old, new) = (Secret::from_seed(1, &[1; 32]), Secret::from_seed(1, &[2; 32]));
    let (mut head, state) = revision(1, "one");
    old.sign(&mut head);
    let mut store = open(&dir);
    store.set_trust(old.public());
    store.save(&head, &state).expect("saved");
    let found = |store: &mut Store, trust: Keyring| {
        store.set_trust(trust);
        let loaded = store.load(1 << 20);
        (loaded.newest.is_some(), loaded.damaged.join(" "))
    };
    // Retired, and another key has its number; no keys any more; revoked.
    assert_eq!(found(&mut store, new.public()), (true, String::new()));
    assert_eq!(found(&mut store, Keyring::new()), (true, String::new()));
    let mut trust = new.public();
    trust.revoke(&old.public());
    let (there, why) = found(&mut store, trust);
    assert!(!there && why.contains("revoked"), "{why}");
    // What was stored before there were keys has to be signed by one of them.
    let (head, state) = revision(2, "two");
    store.set_trust(Keyring::new());
    store.save(&head, &state).expect("saved");
    let (there, why) = found(&mut store, new.public());
    assert!(there && why.contains("no trusted key"), "the older slot serves: {why}");
    assert_eq!(store.load(1 << 20).newest.map(|(head, _)| head.position.rev), Some(1));
}

#[test]
fn a_slot_of_the_form_before_is_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(&dir);
    let (head, state) = revision(1, "one");
    store.save(&head, &state).expect("saved");
    let path = store.path(SLOTS[0]);
    let now = fs::read(&path).expect("written");
    let mut old = [&OLD_MAGIC[..], &now[8 + 32..now.len() - 32]].concat();
    let hash = blake3::hash(&old);
    old.extend_from_slice(hash.as_bytes());
    fs::write(&path, &old).expect("writable");
    assert_eq!(store.load(1 << 20).newest, Some((head, state)));
}

#[test]
fn every_start_has_a_higher_number_and_the_same_id() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = open(&dir).identity();
    let mut store = open(&dir);
    let second = store.identity();
    assert_eq!((first.id, first.opened + 1), (second.id, second.opened));
    assert!(first.boot < second.boot);
    let third = store.raise_above(second.boot + (9 << 32)).expect("raised");
    assert!(third.boot > second.boot + (9 << 32));
    drop(store);
    assert!(open(&dir).identity().boot > third.boot);
}

#[test]
fn a_folder_is_used_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(&dir);
    assert!(matches!(Store::open(store.dir()), Err(StoreError::InUse(_))));
}

#[test]
fn what_was_applied_is_remembered_unless_damaged() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(&dir);
    assert_eq!(store.applied(), None);
    let base = revision(7, "x").0.base();
    store.set_applied(base).expect("written");
    assert_eq!(store.applied(), Some(base));
    fs::write(store.path("applied"), b"garbage").expect("writable");
    assert_eq!(store.applied(), None);
}

/// What a process finds that starts upon a copy of the folder as it is now.
fn found(store: &Store) -> (Option<u64>, Option<u64>) {
    let copy = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(store.dir()).expect("it exists") {
        let file = file.expect("readable");
        fs::copy(file.path(), copy.path().join(file.file_name())).expect("writable");
    }
    let loaded = Store::open(copy.path()).expect("writable").load(1 << 20);
    let rev = |found: Option<(Head, State)>| found.map(|(head, _)| head.position.rev);
    (rev(loaded.newest), rev(loaded.applied))
}

#[test]
fn the_revision_acted_on_last_is_there_after_each_step_however_many_newer_ones_failed() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(&dir);
    let (mut newest, mut applied) = (None, None);
    // Which of them are acted on: every pattern of four.
    for (round, pattern) in (0..16_u32).enumerate() {
        for step in 0..4 {
            let rev = round as u64 * 4 + step + 1;
            let (head, state) = revision(rev, &rev.to_string());
            // Killed in the midst of writing.
            fs::write(store.path(&format!("{}.new", SLOTS[0])), b"half").expect("writable");
            assert_eq!(found(&store), (newest, applied));
            store.save(&head, &state).expect("saved");
            newest = Some(rev);
            assert_eq!(found(&store), (newest, applied));
            if pattern >> step & 1 == 1 {
                store.set_applied(head.base()).expect("written");
                applied = Some(rev);
                assert_eq!(found(&store), (newest, applied));
            }
            if rev.is_multiple_of(7) {
                drop(store);
                store = open(&dir);
                store.load(1 << 20);
            }
        }
    }
    // Where all are acted on, two are kept.
    for rev in 3000..3004 {
        let (head, state) = revision(rev, "x");
        store.save(&head, &state).expect("saved");
        store.set_applied(head.base()).expect("written");
    }
    let there: Vec<bool> = SLOTS.iter().map(|name| store.path(name).exists()).collect();
    assert_eq!(there, [true, true, false]);
}

#[test]
fn a_newer_revision_never_takes_the_slot_of_one_that_is_needed_though_two_hold_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(&dir);
    let (head, state) = revision(1, "one");
    store.set_applied(head.base()).expect("written");
    for _ in 0..3 {
        store.save(&head, &state).expect("saved");
    }
    for rev in 2..6 {
        let (head, state) = revision(rev, "more");
        let newest = store.newest.expect("saved");
        store.save(&head, &state).expect("saved");
        assert_ne!(store.newest, Some(newest));
        assert_eq!(found(&store), (Some(rev), Some(1)));
    }
}

#[test]
fn what_is_damaged_is_told_when_the_folder_is_opened() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(&dir);
    assert!(store.damaged().is_empty());
    let (first, [identity, applied]) = (store.identity(), ["identity", "applied"].map(|n| store.path(n)));
    drop(store);
    fs::write(identity, b"spwnode").expect("writable");
    fs::write(applied, b"").expect("writable");
    let store = open(&dir);
    assert_ne!(store.identity().id, first.id);
    let told = store.damaged();
    assert!(told[0].contains("identity") && told[1].contains("applied"), "{told:?}");
    drop(store);
    // The identity is whole again; nobody has written the other.
    assert_eq!(open(&dir).damaged().len(), 1);
}
