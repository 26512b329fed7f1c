//! The machine over a store in memory, driven by hand: the caller decides when a sync ends, fails or crashes.

use std::collections::BTreeMap;

use super::*;
use crate::Key;
use crate::sign::Secret;
use crate::source::sim::{After, Faults, SimDisk};
use crate::source::{Embedded, Source, perform};

const CLUSTER: ClusterId = Id([7; 16]);

fn settings() -> NsSettings {
    NsSettings { cluster: CLUSTER, ..NsSettings::default() }
}

fn secret() -> Secret {
    Secret::from_seed(1, &[5; 32])
}

fn with_keys() -> NsSettings {
    NsSettings { keys: secret().public(), ..settings() }
}

/// As a sender issues it.
fn signed(head: &Head) -> Head {
    let mut head = head.clone();
    secret().sign(&mut head);
    head
}

/// Highest `seq` issued, as far as the tests of the machine go.
const ISSUED: u64 = 1 << SEQ_BITS | 5;

fn id(n: u64) -> Id {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    Id(id)
}

fn key(k: &str) -> Key {
    Key::new(k).expect("1 to 1,024 bytes")
}

fn put(n: u64, k: &str, v: &str) -> Request {
    let mut changes = ChangeSet::new();
    changes.put(key(k), 0, v.to_owned());
    request(n, Intent::Change(changes))
}

fn request(n: u64, intent: Intent) -> Request {
    Request { request: id(n), expect: None, intent, author: "a".into(), note: "n".into(), stamp: n }
}

fn place(epoch: u64, rev: u64) -> Place {
    Place { epoch, rev }
}

/// A machine, its store, and what it said.
struct Rig {
    machine: NsAuthority,
    store: Option<Embedded<SimDisk>>,
    settings: NsSettings,
    /// The record that the store is writing.
    pending: Option<Record>,
    replies: Vec<(Ticket, Answer)>,
    published: Vec<Published>,
    verdicts: Vec<(Id, Verdict)>,
    alarms: Vec<Alarm>,
    /// Open counts that the sender was told.
    reopened: Vec<u32>,
    offers: Vec<(Id, Head)>,
    compactions: usize,
    tickets: u64,
}

impl Rig {
    fn start(settings: NsSettings, disk: SimDisk, absent: Opening, incarnation: u64) -> Rig {
        let mut store = Embedded::new(disk, CLUSTER, "config");
        let opening = match store.load().expect("whole") {
            Some(recovered) => Opening::Restored(Box::new(recovered)),
            None => absent,
        };
        let (machine, actions) = NsAuthority::new(settings.clone(), opening, id(1_000_000 + incarnation));
        let mut rig = Rig {
            machine,
            store: Some(store),
            settings,
            pending: None,
            replies: Vec::new(),
            published: Vec::new(),
            verdicts: Vec::new(),
            alarms: Vec::new(),
            reopened: Vec::new(),
            offers: Vec::new(),
            compactions: 0,
            tickets: 0,
        };
        rig.act(actions);
        rig
    }

    fn fresh(settings: NsSettings) -> Rig {
        Rig::start(settings, SimDisk::new(), Opening::Unknown, 1)
    }

    /// One that has an empty first revision.
    fn serving(settings: NsSettings) -> Rig {
        let mut rig = Rig::start(settings, SimDisk::new(), Opening::NoStore, 1);
        let answer = rig.ask_now(|t| AuthorityEvent::Init(t, id(900), State::new()));
        assert!(matches!(answer, Answer::Begun { .. }), "{answer:?}");
        rig
    }

    fn store(&mut self) -> &mut Embedded<SimDisk> {
        self.store.as_mut().expect("there between calls")
    }

    fn say(&mut self, event: AuthorityEvent) {
        let actions = self.machine.handle(event, Time::default());
        self.act(actions);
    }

    fn act(&mut self, actions: Actions) {
        for action in actions {
            if let AuthorityAction::Append(record) = action {
                assert!(self.pending.replace(record).is_none(), "two at once");
                continue;
            }
            self.compactions += usize::from(matches!(action, AuthorityAction::Compact(_)));
            let action = match perform(self.store(), action) {
                Ok(event) => {
                    self.say(event);
                    continue;
                }
                Err(action) => action,
            };
            match action {
                AuthorityAction::Reply(ticket, answer) => self.replies.push((ticket, answer)),
                AuthorityAction::Publish(published) => {
                    assert!(self.published.last().is_none_or(|p| p.head.position < published.head.position));
                    assert_eq!(published.state.recompute(), published.head.digest);
                    self.published.push(published);
                }
                AuthorityAction::Judge { node, verdict, .. } => self.verdicts.push((node, verdict)),
                AuthorityAction::Reopened(opened) => self.reopened.push(opened),
                AuthorityAction::Offer(node, head) => self.offers.push((node, head)),
                AuthorityAction::Alarm(alarm) => self.alarms.push(alarm),
                other => panic!("the store's: {other:?}"),
            }
        }
    }

    fn ask(&mut self, event: impl FnOnce(Ticket) -> AuthorityEvent) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.say(event(ticket));
        ticket
    }

    fn commit(&mut self, request: Request) -> Ticket {
        self.ask(|ticket| AuthorityEvent::Commit(ticket, request))
    }

    /// The sync under way ends.
    fn sync(&mut self) {
        let Some(record) = self.pending.take() else { return };
        let done = self.store().append_durable(&record).map_err(|e| e.to_string());
        self.say(AuthorityEvent::Durable(done));
    }

    fn sync_all(&mut self) {
        while self.pending.is_some() {
            self.sync();
        }
    }

    fn answer(&self, ticket: Ticket) -> Option<Answer> {
        let mut found = self.replies.iter().filter(|(to, _)| *to == ticket);
        let answer = found.next().map(|(_, answer)| answer.clone());
        assert!(found.next().is_none(), "answered twice");
        answer
    }

    fn ask_now(&mut self, event: impl FnOnce(Ticket) -> AuthorityEvent) -> Answer {
        let ticket = self.ask(event);
        self.sync_all();
        self.answer(ticket).expect("an answer once all is durable")
    }

    fn commit_now(&mut self, request: Request) -> Answer {
        self.ask_now(|ticket| AuthorityEvent::Commit(ticket, request))
    }

    #[track_caller]
    fn committed(&mut self, request: Request) -> Position {
        match self.commit_now(request) {
            Answer::Committed { position, .. } => position,
            other => panic!("{other:?}"),
        }
    }

    fn show(&mut self, node: u64, head: &Head) -> Verdict {
        let before = self.verdicts.len();
        self.say(AuthorityEvent::Shown { node: id(node), head: head.clone(), issued: ISSUED });
        assert_eq!(self.verdicts.len(), before + 1);
        assert_eq!(self.verdicts[before].0, id(node));
        self.verdicts[before].1
    }

    fn disk(&self) -> &SimDisk {
        self.store.as_ref().expect("there between calls").disk()
    }

    fn restart(&self, after: After) -> Rig {
        Rig::start(self.settings.clone(), self.disk().restart(after), Opening::NoStore, 2)
    }

    /// The newest that is durable, as a sender issues it.
    fn head(&self) -> Head {
        signed(&self.machine.durable().expect("durable").head)
    }
}

#[test]
fn invariant_06_nothing_is_said_of_a_commit_before_it_is_durable() {
    let mut rig = Rig::serving(settings());
    let published = rig.published.len();
    let ticket = rig.commit(put(1, "a", "1"));
    assert_eq!((rig.answer(ticket), rig.published.len()), (None, published));
    assert_eq!(rig.machine.read(None).expect("durable").1.keys(), 0, "and so does a read");
    rig.sync();
    let Some(Answer::Committed { position, replay: false, digest }) = rig.answer(ticket) else { panic!() };
    assert_eq!(position, rig.head().position);
    assert_eq!(digest, rig.head().digest);
    // And it survives a power cut right after.
    let again = rig.restart(After::Nothing);
    assert_eq!(again.head().position, position);
}

#[test]
fn one_sync_serves_all_that_gathered_during_the_one_before_and_they_share_one_head() {
    let mut rig = Rig::serving(settings());
    let (syncs, published) = (rig.disk().syncs(), rig.published.len());
    let tickets: Vec<Ticket> = (1..=100).map(|n| rig.commit(put(n, &format!("k{n}"), "x"))).collect();
    rig.sync_all();
    assert_eq!(rig.disk().syncs() - syncs, 2);
    let heads: Vec<&Head> = rig.published[published..].iter().map(|p| &p.head).collect();
    assert_eq!(heads.iter().map(|h| (h.prev_rev, h.position.rev)).collect::<Vec<_>>(), [(1, 2), (2, 101)]);
    assert_eq!(heads[1].chain, chain(&heads[0].chain, 101, &heads[1].digest));
    for (n, ticket) in tickets.iter().enumerate() {
        let Some(Answer::Committed { position, .. }) = rig.answer(*ticket) else { panic!("{n}") };
        assert_eq!(position.rev, n as u64 + 2, "a writer's commits keep their order");
    }
    // Revisions inside a batch can be read, and each commit has its own digest.
    for (position, commit) in rig.machine.history() {
        let (at, state) = rig.machine.read(Some(position.into())).expect("kept");
        assert_eq!((at, state.digest()), (position, commit.digest));
    }
    // What was published is the whole of the batch.
    let last = rig.published.last().expect("published");
    assert_eq!(last.changes.len(), 99);
}

#[test]
fn a_batch_has_bounds_and_so_has_what_gathers() {
    let mut rig = Rig::serving(NsSettings { batch_commits: 4, waiting_commits: 10, ..settings() });
    let tickets: Vec<Ticket> = (1..=12).map(|n| rig.commit(put(n, "k", &n.to_string()))).collect();
    assert_eq!(rig.answer(tickets[11]), Some(Answer::Busy), "one is with the store, ten wait");
    assert_eq!(rig.machine.gathered.len(), 3, "a state for each batch, not for each commit");
    rig.sync_all();
    let prev: Vec<u64> = rig.published.iter().map(|p| p.head.position.rev).collect();
    assert_eq!(prev, [1, 2, 6, 10, 12]);
}

#[test]
fn invariant_15_a_repeat_gets_the_first_outcome_during_the_sync_after_it_and_after_a_restart() {
    let mut rig = Rig::serving(settings());
    let first = rig.commit(put(1, "a", "1"));
    let second = rig.commit(put(2, "a", "2"));
    // While 1 is with the store and 2 waits.
    let (again1, again2) = (rig.commit(put(1, "a", "1")), rig.commit(put(2, "a", "2")));
    assert!([first, second, again1, again2].iter().all(|t| rig.answer(*t).is_none()));
    rig.sync();
    let Some(Answer::Committed { position, digest, .. }) = rig.answer(first) else { panic!() };
    let replay = Answer::Committed { position, digest, replay: true };
    assert_eq!(rig.answer(again1), Some(replay.clone()), "as soon as its own revision is durable");
    assert_eq!(rig.answer(again2), None);
    rig.sync();
    let Some(Answer::Committed { position: other, .. }) = rig.answer(again2) else { panic!() };
    assert_eq!((position.rev, other.rev), (2, 3));
    assert_eq!(rig.commit_now(put(1, "a", "1")), replay, "afterwards");
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(rig.commit_now(put(1, "a", "1")), replay, "after a power cut");
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(3));
}

#[test]
fn invariant_15_a_crash_between_durable_and_answer_is_covered_by_the_repeat() {
    let mut rig = Rig::serving(settings());
    let lost = rig.commit(put(1, "a", "1"));
    let record = rig.pending.take().expect("under way");
    rig.store().append_durable(&record).expect("written");
    assert_eq!(rig.answer(lost), None);
    let mut rig = rig.restart(After::Nothing);
    let answer = rig.commit_now(put(1, "a", "1"));
    assert!(matches!(answer, Answer::Committed { position, replay: true, .. } if position.rev == 2));
}

#[test]
fn a_request_older_than_the_window_conflicts_by_its_number_or_is_a_new_commit() {
    let mut rig = Rig::serving(NsSettings { log_commits: 5, ..settings() });
    let old = Request { expect: Some(place(1, 1)), ..put(1, "a", "1") };
    rig.committed(old.clone());
    for n in 2..=10 {
        rig.committed(put(n, "a", &n.to_string()));
    }
    assert_eq!(rig.commit_now(old), Answer::Conflict { head: place(1, 11) });
    assert_eq!(rig.committed(put(1, "a", "1")).rev, 12);
    // What the log still has is remembered, as durably.
    let answer = rig.commit_now(put(9, "a", "9"));
    assert!(matches!(answer, Answer::Committed { position, replay: true, .. } if position.rev == 10));
}

#[test]
fn invariant_16_of_two_writers_one_wins_and_the_other_waits_for_what_beat_it() {
    let mut rig = Rig::serving(settings());
    let on = |n: u64, v: &str| Request { expect: Some(place(1, 1)), ..put(n, "a", v) };
    let (won, lost) = (rig.commit(on(1, "x")), rig.commit(on(2, "y")));
    assert_eq!(rig.answer(lost), None, "it depends on a commit that is not durable");
    rig.sync();
    assert!(matches!(rig.answer(won), Some(Answer::Committed { position, .. }) if position.rev == 2));
    assert_eq!(rig.answer(lost), Some(Answer::Conflict { head: place(1, 2) }));
    // The loser is not remembered: the same request on the right base goes through.
    let again = Request { expect: Some(place(1, 2)), ..put(2, "a", "y") };
    assert_eq!(rig.committed(again).rev, 3);
}

#[test]
fn invariant_16_a_conflict_with_what_failed_is_no_conflict_but_read_only() {
    let mut rig = Rig::serving(settings());
    let on = |n: u64| Request { expect: Some(place(1, 1)), ..put(n, "a", "x") };
    let (won, lost) = (rig.commit(on(1)), rig.commit(on(2)));
    rig.pending = None;
    rig.say(AuthorityEvent::Durable(Err("no".into())));
    for ticket in [won, lost] {
        assert!(matches!(rig.answer(ticket), Some(Answer::ReadOnly(ReadOnly::Store(_)))));
    }
}

#[test]
fn a_failed_sync_ends_in_read_only_serving_goes_on_and_a_restart_heals() {
    let mut rig = Rig::serving(settings());
    rig.committed(put(1, "a", "1"));
    let tickets: Vec<Ticket> = (2..6).map(|n| rig.commit(put(n, "a", &n.to_string()))).collect();
    let repeat = rig.commit(put(3, "a", "3"));
    let published = rig.published.len();
    // The next operation is the write of the record, the one after it its sync.
    let fail_sync_at = Some(rig.disk().operations() + 1);
    rig.store().disk_mut().set_faults(Faults { fail_sync_at, ..Faults::default() });
    rig.sync_all();
    for ticket in tickets.into_iter().chain([repeat]) {
        assert!(matches!(rig.answer(ticket), Some(Answer::ReadOnly(ReadOnly::Store(_)))));
    }
    assert!(matches!(rig.alarms.last(), Some(Alarm::Store(_))));
    assert_eq!(rig.published.len(), published);
    // Serving goes on from the last durable head; a known request is answered, others are not taken.
    assert_eq!(rig.head().position.rev, 2);
    assert!(matches!(rig.commit_now(put(1, "a", "1")), Answer::Committed { replay: true, .. }));
    assert!(matches!(rig.commit_now(put(9, "a", "9")), Answer::ReadOnly(ReadOnly::Store(_))));
    let new_epoch = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(901)));
    assert!(matches!(new_epoch, Answer::ReadOnly(ReadOnly::Store(_))), "a restart alone leaves it");
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    assert_eq!(rig.committed(put(9, "a", "9")).rev, 3);
}

#[test]
fn invariant_13_a_vacant_authority_says_no_head_and_takes_no_commit() {
    let mut rig = Rig::start(with_keys(), SimDisk::new(), Opening::NoStore, 1);
    let first = Request { expect: Some(place(0, 0)), ..put(1, "a", "1") };
    assert_eq!(rig.commit_now(first.clone()), Answer::ReadOnly(ReadOnly::Vacant));
    assert!(rig.published.is_empty() && rig.pending.is_none());
    // Where the namespace alone is unknown, a first commit begins it, if it says that it is the first.
    let mut rig = Rig::fresh(with_keys());
    assert_eq!(rig.commit_now(put(1, "a", "1")), Answer::ReadOnly(ReadOnly::Vacant));
    assert_eq!(rig.committed(first.clone()).rev, 1);
    assert!(matches!(rig.commit_now(first.clone()), Answer::Committed { replay: true, .. }));
    let mut known = rig.head();
    // But not where a node has shown a HEAD of it.
    let mut rig = Rig::fresh(with_keys());
    assert_eq!(rig.show(1, &known), Verdict::Recorded);
    assert_eq!(rig.commit_now(first.clone()), Answer::ReadOnly(ReadOnly::Vacant));
    // A HEAD that does not verify shows nothing.
    let mut rig = Rig::fresh(with_keys());
    known.seq += 1;
    assert_eq!(rig.show(1, &known), Verdict::Disregard);
    assert_eq!(rig.committed(first).rev, 1);
}

#[test]
fn a_node_that_shows_a_head_while_the_first_commit_is_written_freezes_what_came_of_it() {
    let mut other = Rig::serving(with_keys());
    other.committed(put(1, "a", "1"));
    let mut rig = Rig::fresh(with_keys());
    let ticket = rig.commit(Request { expect: Some(place(0, 0)), ..put(1, "a", "1") });
    assert_eq!(rig.show(1, &other.head()), Verdict::Recorded);
    rig.sync_all();
    assert!(matches!(rig.answer(ticket), Some(Answer::Committed { .. })));
    assert!(matches!(rig.machine.mode(), Mode::ReadOnly(ReadOnly::Old { .. })));
}

/// HEADs that contradict the history of `rig`, one of each kind.
fn contradictions(rig: &mut Rig) -> Vec<Head> {
    let (prev, head) = (signed(&rig.published[rig.published.len() - 2].head), rig.head());
    let change = |head: &Head, change: &dyn Fn(&mut Head)| {
        let mut head = head.clone();
        change(&mut head);
        secret().sign(&mut head);
        head
    };
    vec![
        change(&head, &|h| h.position.epoch.number += 1),
        change(&head, &|h| h.position.epoch.incarnation = id(66)),
        change(&prev, &|h| h.position.epoch.incarnation = id(66)),
        change(&head, &|h| h.position.rev += 1),
        change(&head, &|h| h.chain[0] ^= 1),
        change(&prev, &|h| h.chain[0] ^= 1),
        // Inside a batch: no HEAD was issued for it.
        change(&head, &|h| h.position.rev -= 1),
    ]
}

/// Revisions 1, 2 and 3..=6, the last in one batch.
fn some_history(settings: NsSettings) -> Rig {
    let mut rig = Rig::serving(settings);
    for n in 1..=5 {
        rig.commit(put(n, &format!("k{n}"), "x"));
    }
    rig.sync_all();
    rig
}

#[test]
fn invariant_07_a_signed_head_of_a_lost_history_freezes_commits_until_a_new_epoch_over_restarts() {
    let count = contradictions(&mut some_history(with_keys())).len();
    for i in 0..count {
        let mut rig = some_history(with_keys());
        let shown = contradictions(&mut rig).swap_remove(i);
        let waiting = rig.commit(put(20, "a", "under way"));
        let gathered = rig.commit(put(21, "a", "gathered"));
        assert_eq!(rig.show(1, &shown), Verdict::Conflict, "{i}");
        // The sync under way ends first, what only gathered is refused at once.
        assert_eq!(rig.answer(waiting), None);
        assert!(matches!(rig.answer(gathered), Some(Answer::ReadOnly(ReadOnly::Old { .. }))), "{i}");
        rig.sync_all();
        assert!(matches!(rig.answer(waiting), Some(Answer::Committed { .. })), "{i}");
        assert!(matches!(rig.commit_now(put(22, "a", "x")), Answer::ReadOnly(ReadOnly::Old { .. })));
        assert!(matches!(rig.alarms.last(), Some(Alarm::OldStore { .. })));
        assert_eq!(rig.machine.conflicts().collect::<Vec<_>>(), [id(1)]);
        assert_eq!(rig.head().position.rev, 7, "serving goes on");
        // A restart does not forget it.
        let mut rig = rig.restart(After::Nothing);
        assert!(matches!(rig.commit_now(put(22, "a", "x")), Answer::ReadOnly(ReadOnly::Old { .. })), "{i}");
        let content = rig.machine.durable().expect("served").state.clone();
        let begun = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902)));
        let Answer::Begun { position, .. } = begun else { panic!("{begun:?}") };
        assert!(position.epoch.number > shown.position.epoch.number && position.rev > shown.position.rev);
        assert_eq!((rig.head().position, rig.head().prev_rev), (position, 0));
        assert_eq!(rig.machine.durable().map(|d| &d.state), Some(&content), "it repeats the content");
        assert_eq!(rig.show(1, &shown), Verdict::Fine, "an older epoch by now");
        rig.committed(put(22, "a", "x"));
    }
}

#[test]
fn invariant_07_without_keys_a_claim_is_counted_and_freezes_nobody_unless_strict() {
    let count = contradictions(&mut some_history(settings())).len();
    for i in 0..count {
        let mut rig = some_history(settings());
        let shown = contradictions(&mut rig).swap_remove(i);
        assert_eq!(rig.show(1, &shown), Verdict::Conflict, "{i}");
        assert!(matches!(rig.alarms.last(), Some(Alarm::Claim { .. })));
        assert_eq!(rig.machine.conflicts().count(), 1);
        rig.committed(put(22, "a", "x"));
        let mut rig = some_history(NsSettings { strict: true, ..settings() });
        assert_eq!(rig.show(1, &shown), Verdict::Conflict);
        assert!(matches!(rig.commit_now(put(22, "a", "x")), Answer::ReadOnly(ReadOnly::Old { .. })));
    }
}

#[test]
fn a_number_far_beyond_all_known_is_believed_only_if_it_is_signed() {
    let mut rig = some_history(settings());
    let mut far = rig.head();
    far.position.epoch.number += LEAP + 1;
    assert_eq!(rig.show(1, &far), Verdict::Conflict);
    assert!(matches!(rig.alarms.last(), Some(Alarm::Leap { .. })));
    let Answer::Begun { position, .. } = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902))) else {
        panic!()
    };
    assert_eq!(position.epoch.number, 2);
    let mut rig = some_history(with_keys());
    let mut far = rig.head();
    far.position.epoch.number += LEAP + 1;
    secret().sign(&mut far);
    assert_eq!(rig.show(1, &far), Verdict::Conflict);
    let Answer::Begun { position, .. } = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902))) else {
        panic!()
    };
    assert_eq!(position.epoch.number, far.position.epoch.number + 1);
    // Numbers that are used up are no panic.
    let mut rig = some_history(with_keys());
    far.position.rev = u64::MAX;
    secret().sign(&mut far);
    assert_eq!(rig.show(1, &far), Verdict::Conflict);
    let answer = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902)));
    assert!(matches!(answer, Answer::Invalid(Invalid::NotNow(_))), "{answer:?}");
}

#[test]
fn every_head_of_the_epoch_is_known_for_ever_though_its_commit_is_not() {
    let mut rig = Rig::serving(NsSettings { log_commits: 4, ..with_keys() });
    for n in 1..=40 {
        rig.committed(put(n, "a", &n.to_string()));
        // Two commits in one batch now and then, so that there are revisions without a HEAD.
        if n % 5 == 0 {
            let tickets = [1, 2, 3].map(|i| rig.commit(put(100 * n + i, "b", &n.to_string())));
            rig.sync_all();
            assert!(tickets.iter().all(|t| rig.answer(*t).is_some()));
        }
    }
    assert!(rig.compactions > 3, "{}", rig.compactions);
    assert!(rig.machine.log_size().0 <= 4 + 2);
    let heads: Vec<Head> = rig.published.iter().map(|p| signed(&p.head)).collect();
    let mut rig = rig.restart(After::Nothing);
    for head in &heads {
        assert_eq!(rig.show(1, head), Verdict::Fine, "{}", head.position);
    }
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    let issued: Vec<u64> = heads.iter().map(|h| h.position.rev).collect();
    let inside = (1..=40).find(|rev| !issued.contains(rev)).expect("a revision inside a batch");
    let mut forged = [heads[3].clone(), heads[3].clone()];
    forged[0].chain[5] ^= 1;
    forged[1].position.rev = inside;
    for head in &mut forged {
        secret().sign(head);
        assert_eq!(rig.restart(After::Kill).show(1, head), Verdict::Conflict);
    }
}

#[test]
fn a_head_with_a_higher_seq_raises_the_open_count_durably() {
    let mut rig = some_history(with_keys());
    let mut shown = rig.head();
    shown.seq = 9 << SEQ_BITS | 77;
    secret().sign(&mut shown);
    assert_eq!(rig.show(1, &shown), Verdict::Fine);
    assert_eq!((&rig.reopened[..], rig.machine.opened()), (&[10][..], 10));
    assert!(rig.restart(After::Nothing).machine.opened() > 10);
    // What was issued raises nothing, though every node shows it.
    let mut rig = some_history(with_keys());
    shown.seq = ISSUED;
    assert_eq!(rig.show(1, &signed(&shown)), Verdict::Fine);
    assert_eq!(rig.reopened, []);
    // Without keys a claim could use the count up.
    let mut rig = some_history(settings());
    shown.seq = 9 << SEQ_BITS;
    assert_eq!(rig.show(1, &shown), Verdict::Fine);
    assert_eq!(rig.reopened, []);
}

#[test]
fn a_lost_store_is_adopted_from_the_nodes_in_a_new_epoch_with_what_is_lost_listed() {
    let mut old = some_history(with_keys());
    let (low, low_state) = (signed(&old.published[1].head), old.published[1].state.clone());
    let (high, state) = (old.head(), old.machine.durable().expect("served").state.clone());
    old.committed(put(30, "a", "the newest"));
    let mut canary = Head { audience: bytes::Bytes::from_static(b"canary"), ..old.head() };
    secret().sign(&mut canary);

    let mut rig = Rig::start(with_keys(), SimDisk::new(), Opening::NoStore, 3);
    let nobody = rig.ask_now(|t| AuthorityEvent::Adopt(t, id(903), None));
    assert!(matches!(nobody, Answer::Invalid(Invalid::NotNow(_))));
    for (node, head) in [(1, &low), (2, &high), (3, &high), (4, &canary)] {
        assert_eq!(rig.show(node, head), Verdict::Recorded);
    }
    assert_eq!(rig.machine.holdings().len(), 3);
    // The highest for all, not the canary's. The first who is asked sends something else.
    let ticket = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), None));
    assert_eq!(rig.offers.last().map(|(n, h)| (*n, h.position)), Some((id(3), high.position)));
    rig.say(AuthorityEvent::Offered(id(9), Some(state.clone())));
    rig.say(AuthorityEvent::Offered(id(3), Some(low_state)));
    assert_eq!(rig.offers.last().map(|(n, _)| *n), Some(id(2)));
    rig.say(AuthorityEvent::Offered(id(2), Some(state.clone())));
    assert!(rig.published.is_empty(), "not durable yet");
    rig.sync_all();
    let Some(Answer::Begun { position, lost }) = rig.answer(ticket) else { panic!() };
    assert_eq!(lost, [(canary.position, 1)]);
    assert_eq!((position.epoch.number, position.rev), (2, canary.position.rev + 1));
    assert_eq!(rig.machine.durable().map(|d| &d.state), Some(&state));
    assert_eq!(rig.committed(put(31, "a", "on")).rev, position.rev + 1);
    // It is a store like any other now.
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(rig.committed(put(32, "a", "on")).rev, position.rev + 2);
}

#[test]
fn a_canary_is_adopted_by_name_alone_and_nobody_who_sends_rubbish() {
    let old = some_history(settings());
    let state = old.machine.durable().expect("served").state.clone();
    let canary = Head { audience: bytes::Bytes::from_static(b"canary"), ..old.head() };
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    rig.show(1, &canary);
    let unnamed = rig.ask_now(|t| AuthorityEvent::Adopt(t, id(903), None));
    assert!(matches!(unnamed, Answer::Invalid(Invalid::NotNow(_))));
    let failed = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), Some(canary.base())));
    rig.say(AuthorityEvent::Offered(id(1), None));
    assert!(matches!(rig.answer(failed), Some(Answer::Invalid(Invalid::NotNow(_)))));
    let named = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), Some(canary.base())));
    rig.say(AuthorityEvent::Offered(id(1), Some(state)));
    rig.sync_all();
    assert!(matches!(rig.answer(named), Some(Answer::Begun { .. })));
    // Two histories under one number are the operator's to choose from.
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    let mut rival = old.head();
    rival.position.epoch.incarnation = id(66);
    rig.show(1, &old.head());
    rig.show(2, &rival);
    let answer = rig.ask_now(|t| AuthorityEvent::Adopt(t, id(904), None));
    assert!(matches!(answer, Answer::Invalid(Invalid::NotNow(_))));
}

#[test]
fn init_takes_numbers_above_all_that_nodes_show_and_works_once() {
    let old = some_history(with_keys());
    let mut rig = Rig::start(with_keys(), SimDisk::new(), Opening::NoStore, 3);
    rig.show(1, &old.head());
    let Answer::Begun { position, lost } = rig.ask_now(|t| AuthorityEvent::Init(t, id(905), State::new()))
    else {
        panic!()
    };
    assert_eq!((position.epoch.number, position.rev), (2, 7));
    assert_eq!(lost, [(old.head().position, 1)]);
    assert!(rig.machine.durable().is_some_and(|d| d.state.is_empty()));
    let again = rig.ask_now(|t| AuthorityEvent::Init(t, id(906), State::new()));
    assert!(matches!(again, Answer::Invalid(_)));
}

#[test]
fn a_new_epoch_waits_for_what_gathers_and_commits_wait_for_it() {
    let mut rig = Rig::serving(settings());
    let before: Vec<Ticket> = (1..4).map(|n| rig.commit(put(n, "a", &n.to_string()))).collect();
    let epoch = rig.ask(|t| AuthorityEvent::NewEpoch(t, id(907)));
    let busy = rig.commit(put(9, "a", "9"));
    assert_eq!(rig.answer(busy), Some(Answer::Busy));
    rig.sync_all();
    assert!(before.iter().all(|t| matches!(rig.answer(*t), Some(Answer::Committed { .. }))));
    let Some(Answer::Begun { position, .. }) = rig.answer(epoch) else { panic!() };
    assert_eq!((position.epoch.number, position.rev), (2, 5));
    // What was committed in the old epoch is still known by its request, read and reverted to.
    assert!(matches!(rig.commit_now(put(2, "a", "2")), Answer::Committed { replay: true, .. }));
    rig.committed(request(20, Intent::Revert(place(1, 3))));
    assert_eq!(
        rig.machine.read(None).expect("served").1.get("a").map(|e| e.value().as_ref()),
        Some(&b"2"[..])
    );
}

#[test]
fn revert_is_a_new_commit_and_what_is_compacted_says_so() {
    let mut rig = Rig::serving(NsSettings { log_commits: 6, ..settings() });
    for n in 1..=12 {
        rig.committed(put(n, "a", &n.to_string()));
    }
    let Answer::Invalid(Invalid::Compacted { oldest }) =
        rig.commit_now(request(20, Intent::Revert(place(1, 2))))
    else {
        panic!()
    };
    assert_eq!(oldest, place(1, 7));
    assert_eq!(rig.machine.read(Some(place(1, 2))), Err(Invalid::Compacted { oldest }));
    assert_eq!(rig.machine.read(Some(place(1, 99))), Err(Invalid::NoSuch(place(1, 99))));
    assert_eq!(rig.machine.read(Some(place(2, 8))), Err(Invalid::NoSuch(place(2, 8))));
    for rev in oldest.rev..=13 {
        let (at, state) = rig.machine.read(Some(place(1, rev))).expect("kept");
        assert_eq!(at.rev, rev);
        assert_eq!(state.get("a").map(|e| e.value().to_vec()), Some((rev - 1).to_string().into_bytes()));
    }
    assert_eq!(rig.committed(request(21, Intent::Revert(oldest))).rev, 14);
    let now = rig.machine.read(None).expect("served").1;
    assert_eq!(now.get("a").map(|e| e.value().to_vec()), Some(b"6".to_vec()));
    // All the same after a restart.
    let rig = rig.restart(After::Nothing);
    assert_eq!(rig.machine.read(None).expect("served").1, now);
    assert_eq!(rig.machine.history().next().map(|(at, c)| (at.rev, c.author.as_str())), Some((14, "a")));
}

#[test]
fn what_exceeds_a_limit_is_invalid_and_changes_nothing() {
    let limits = Limits { value: 8, keys: 2, bytes: 24 };
    let mut rig = Rig::serving(NsSettings { limits, ..settings() });
    rig.committed(put(1, "a", "12345678"));
    let invalid = |rig: &mut Rig, request| matches!(rig.commit_now(request), Answer::Invalid(_));
    assert!(invalid(&mut rig, put(2, "a", "123456789")));
    assert!(invalid(&mut rig, Request { author: "x".repeat(257), ..put(4, "b", "1") }));
    assert!(invalid(&mut rig, Request { note: "x".repeat(1025), ..put(5, "b", "1") }));
    rig.committed(put(6, "b", "12345678"));
    assert!(invalid(&mut rig, put(7, "c", "1")));
    assert!(invalid(&mut rig, put(8, &"k".repeat(30), "1")));
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(3));
    // A request that was invalid is not remembered.
    let mut delete = ChangeSet::new();
    delete.delete(key("b"));
    rig.committed(request(9, Intent::Change(delete.clone())));
    assert_eq!(rig.committed(put(7, "c", "1")).rev, 5);
    // What changes nothing is a commit: its repeat must get the same answer whatever came between.
    let nothing = rig.committed(request(10, Intent::Change(delete)));
    assert_eq!(nothing.rev, 6);
}

#[test]
fn an_epoch_that_begins_while_a_node_shows_the_old_history_is_not_frozen_after_a_restart() {
    let mut rig = some_history(with_keys());
    let shown = contradictions(&mut rig).swap_remove(3);
    rig.ask(|t| AuthorityEvent::NewEpoch(t, id(907)));
    assert_eq!(rig.show(1, &shown), Verdict::Conflict);
    rig.sync_all();
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    rig.committed(put(20, "a", "x"));
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    rig.committed(put(21, "a", "x"));
}

#[test]
fn a_state_that_is_adopted_late_does_not_replace_what_has_begun() {
    let old = some_history(settings());
    let state = old.machine.durable().expect("served").state.clone();
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    rig.show(1, &old.head());
    let adopt = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), None));
    rig.ask(|t| AuthorityEvent::Init(t, id(904), State::new()));
    rig.sync_all();
    rig.committed(put(20, "a", "mine"));
    rig.say(AuthorityEvent::Offered(id(1), Some(state)));
    rig.sync_all();
    assert!(matches!(rig.answer(adopt), Some(Answer::Invalid(Invalid::NotNow(_)))));
    let now = rig.machine.read(None).expect("served").1;
    assert_eq!(now.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn of_two_chains_at_one_position_the_operator_names_one() {
    let old = some_history(settings());
    let state = old.machine.durable().expect("served").state.clone();
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    let mut rival = old.head();
    rival.chain[0] ^= 1;
    rig.show(1, &old.head());
    rig.show(2, &rival);
    assert_eq!(rig.machine.holdings().len(), 2);
    let named = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), Some(old.head().base())));
    rig.say(AuthorityEvent::Offered(id(1), Some(state)));
    rig.sync_all();
    assert!(matches!(rig.answer(named), Some(Answer::Begun { .. })));
}

#[test]
fn repeats_of_what_is_not_durable_yet_are_bounded_as_commits_are() {
    let mut rig = Rig::serving(NsSettings { waiting_commits: 4, ..settings() });
    let tickets: Vec<Ticket> = (0..9).map(|_| rig.commit(put(1, "a", "1"))).collect();
    let busy = tickets.iter().filter(|ticket| rig.answer(**ticket) == Some(Answer::Busy)).count();
    assert_eq!(busy, 4, "the first, four repeats, and no more");
    rig.sync_all();
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).is_some()));
}

#[test]
fn a_sender_begins_with_the_log_that_the_store_had() {
    let rig = some_history(settings());
    let sender = crate::Distributor::new(crate::Settings::default(), rig.machine.origin());
    assert_eq!(sender.log_size().0, 2, "from 1 to 2, and the batch above it");
    assert_eq!(sender.head().map(|head| head.position), rig.machine.position());
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What was ever said, held against what is said next.
#[derive(Default)]
struct Oracle {
    /// (epoch, rev) of HEADs → digest and chain.
    heads: BTreeMap<Place, (Digest, [u8; 32])>,
    /// Request → where it was committed.
    requests: BTreeMap<Id, Place>,
    /// What clients were told is there.
    told: Place,
    looked: (usize, usize),
}

impl Oracle {
    fn look(&mut self, rig: &Rig, expects: &BTreeMap<Ticket, (Id, Option<Place>)>, what: &str) {
        let (replies, published) = self.looked;
        for published in &rig.published[published..] {
            let (at, names) = (published.head.position.into(), (published.head.digest, published.head.chain));
            assert_eq!(*self.heads.entry(at).or_insert(names), names, "{what}: 7, one history");
            assert!(at >= self.told, "{what}: 6, {at:?} after {:?} was acknowledged", self.told);
        }
        for (ticket, answer) in &rig.replies[replies..] {
            let Some((request, expect)) = expects.get(ticket) else { continue };
            if let Answer::Committed { position, replay, .. } = answer {
                let at = Place::from(*position);
                assert_eq!(*self.requests.entry(*request).or_insert(at), at, "{what}: 15, once");
                self.told = self.told.max(at);
                let before = Place { rev: at.rev - 1, ..at };
                if let (Some(expect), false) = (expect, replay) {
                    assert_eq!(*expect, before, "{what}: 16");
                }
            }
            if let (Answer::Conflict { head }, Some(expect)) = (answer, expect) {
                assert_ne!(head, expect, "{what}: 16");
            }
        }
        self.looked = (rig.replies.len(), rig.published.len());
        let now = rig.machine.position().map(Place::from).unwrap_or_default();
        assert!(now >= self.told, "{what}: 6, {now:?} after {:?} was acknowledged", self.told);
    }
}

#[test]
fn invariants_06_07_15_16_hold_over_random_lives_with_crashes_at_any_moment() {
    let (mut commits, mut crashes, mut replays, mut conflicts) = (0, 0, 0, 0);
    for seed in 0..400u64 {
        let mut random = seed;
        let what = format!("seed {seed}");
        let settings = NsSettings { log_commits: 200, batch_commits: 5, ..settings() };
        let mut rig = Rig::serving(settings);
        let (mut oracle, mut expects) = (Oracle::default(), BTreeMap::new());
        let mut tickets = 0;
        for step in 0..60 {
            match next(&mut random) % 12 {
                0..6 => {
                    // Few names, so that repeats are many; the content follows from the name.
                    let n = next(&mut random) % 30;
                    let now = rig.machine.position().map(Place::from).unwrap_or_default();
                    let expect = match next(&mut random) % 4 {
                        0 => Some(now),
                        1 => Some(Place { rev: now.rev + next(&mut random) % 3, ..now }),
                        _ => None,
                    };
                    let request = Request { expect, ..put(n, &format!("k{}", n % 7), &n.to_string()) };
                    rig.tickets = tickets;
                    let ticket = rig.commit(request);
                    tickets = rig.tickets;
                    expects.insert(ticket, (id(n), expect));
                    commits += 1;
                }
                6..11 => rig.sync(),
                _ => {
                    // The record under way may have reached the cache, or the disk, or neither.
                    if let (Some(record), true) = (rig.pending.take(), next(&mut random).is_multiple_of(2)) {
                        let _ = rig.store().append_durable(&record);
                    }
                    replays += rig
                        .replies
                        .iter()
                        .filter(|(_, a)| matches!(a, Answer::Committed { replay: true, .. }))
                        .count();
                    conflicts +=
                        rig.replies.iter().filter(|(_, a)| matches!(a, Answer::Conflict { .. })).count();
                    let after = match next(&mut random) % 3 {
                        0 => After::Kill,
                        1 => After::Nothing,
                        _ => After::Some(next(&mut random)),
                    };
                    rig = rig.restart(after);
                    oracle.looked = (0, 0);
                    crashes += 1;
                }
            }
            oracle.look(&rig, &expects, &format!("{what}, step {step}"));
        }
        // All that was acknowledged is there, by its request.
        rig = rig.restart(After::Nothing);
        let kept: BTreeMap<Id, Place> = rig.machine.history().map(|(at, c)| (c.request, at.into())).collect();
        for (request, at) in &oracle.requests {
            assert_eq!(kept.get(request), Some(at), "{what}");
        }
    }
    assert!(
        commits > 10_000 && crashes > 1_000 && replays > 500 && conflicts > 500,
        "{commits} {crashes} {replays} {conflicts}"
    );
}
