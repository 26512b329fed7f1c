//! Rollouts through real processes: who gets what, and what of it outlives a restart.

use std::time::Duration;

use spanwire_config::client::{ClientError, Commit, Committed};
use spanwire_config::rollout::{Gate, Plan, Stage, WHOLE};
use spanwire_config::sign::Keyring;
use spanwire_config::wire::client::{Selector, Step};
use spanwire_config::{ChangeSet, Id, Level, Place, store};

use super::control::{FIRST, expecting, put, state};
use super::harness::{Running, World, await_that};

fn canaries(gate: Option<Gate>) -> Plan {
    let labels = vec![("canary".into(), "yes".into())];
    Plan { salt: Id([1; 16]), stages: vec![Stage { labels, share: WHOLE, gate }] }
}

fn rolled(changes: ChangeSet, gate: Option<Gate>) -> Commit {
    Commit { rollout: Some(canaries(gate)), ..Commit::new(changes).expect("randomness") }
}

#[test]
fn promise_19_a_rollout_goes_to_its_cohort_is_aborted_and_the_next_passes_its_gate() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first");
    let mut config = w.agent_config("canary");
    config.labels = vec![("canary".into(), "yes".into())];
    let canary = Running::agent(config.clone());
    let _other = Running::agent(w.agent_config("other"));
    let has = |out: &str, value: &str| w.tree(out) == state(&[("a", value)]);
    await_that("the first revision", || has("canary", "1") && has("other", "1"));
    let one = client.commit(&rolled(put(&[("a", "2")]), None)).expect("opened");
    // Who is outside of the cohort is not waited for.
    let all = Selector::default();
    let waited = client.wait(one.at, Level::Applied, Duration::from_secs(10), &all).expect("waited");
    assert_eq!((waited.ok.len(), waited.ok[0].name.as_str()), (1, "canary"));
    assert!(has("canary", "2") && has("other", "1"));
    let Err(ClientError::Rollout { at }) =
        client.commit(&Commit::new(put(&[("b", "1")])).expect("randomness"))
    else {
        panic!("a commit is taken while a rollout is open");
    };
    assert_eq!(at, one.at);
    // It is there after a restart of both, and the canary stays a canary.
    server.ends();
    canary.ends();
    let _server = Running::serve(w.log_config());
    let _canary = Running::agent(config);
    let open = client.status().expect("status").rollout.expect("open");
    assert_eq!((open.at, open.for_all.rev, open.stage, open.paused), (one.at, 1, 0, false));
    let request = Id::random().expect("randomness");
    let aborted = client.rollout(request, one.at, Step::Abort).expect("aborted");
    assert_eq!(aborted.at.rev, one.at.rev + 1);
    assert_eq!(
        client.rollout(request, one.at, Step::Abort).expect("again"),
        Committed { replay: true, ..aborted }
    );
    await_that("the old content", || has("canary", "1") && has("other", "1"));
    let gone = client.wait(one.at, Level::Applied, Duration::from_secs(10), &all);
    assert!(matches!(gone, Err(ClientError::Aborted)), "{gone:?}");
    // A new release, whose gate is passed once the canary has applied it.
    let gate = Gate { applied: WHOLE, refusals: 0, bake: Duration::ZERO };
    let two = client.commit(&rolled(put(&[("a", "3")]), Some(gate))).expect("opened");
    await_that("the gate", || has("canary", "3") && has("other", "3"));
    let status = client.status().expect("status");
    assert_eq!((status.rollout, Place::from(status.tip.position)), (None, two.at), "the same revision");
}

#[test]
fn a_wait_ends_when_its_rollout_is_aborted() {
    let w = World::new();
    let _server = Running::serve(w.log_config());
    let client = w.client();
    client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first");
    let mut config = w.agent_config("canary");
    config.labels = vec![("canary".into(), "yes".into())];
    let agent = Running::agent(config);
    await_that("the node", || {
        client.status().is_ok_and(|status| status.nodes.iter().any(|n| n.applied.rev == 1))
    });
    agent.ends();
    let one = client.commit(&rolled(put(&[("a", "2")]), None)).expect("opened");
    let waiting = std::thread::spawn({
        let client = w.client();
        move || client.wait(one.at, Level::Applied, Duration::from_secs(60), &Selector::default())
    });
    let expect = Some(one.at);
    let next = Commit { expect, supersede: true, ..Commit::new(put(&[("b", "1")])).expect("randomness") };
    let done = client.commit(&next).expect("superseded");
    assert_eq!(client.list(b"", Some(done.at)).expect("read").1, state(&[("a", "1"), ("b", "1")]));
    assert!(matches!(waiting.join().expect("no panic"), Err(ClientError::Aborted)));
}

#[test]
fn a_promotion_outlives_a_restart_without_any_server_on_a_relay_and_on_nodes() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first");
    let relay = w.relay("relay", &["src"], Keyring::new());
    let mut config = w.agent_config("canary");
    config.labels = vec![("canary".into(), "yes".into())];
    let canary = Running::agent(config.clone());
    let below = w.agent_below("below", &["relay"]);
    let one = client.commit(&rolled(put(&[("a", "2")]), None)).expect("opened");
    let on_disk = |folder: &str| {
        store::peek(&w.path(folder), 1 << 20).map(|(head, _)| (head.position.rev, head.audience.is_empty()))
    };
    for folder in ["canary.state", "relay"] {
        await_that("the canary on disk", || on_disk(folder) == Some((one.at.rev, false)));
    }
    let request = Id::random().expect("randomness");
    client.rollout(request, one.at, Step::Promote).expect("promoted");
    for folder in ["canary.state", "relay", "below.state"] {
        await_that("the promotion on disk", || on_disk(folder) == Some((one.at.rev, true)));
    }
    drop((server, relay, canary, below));
    let _relay = w.relay("relay", &["src"], Keyring::new());
    let _late = w.agent_below("late", &["relay"]);
    await_that("what was promoted", || w.tree("late") == state(&[("a", "2")]));
}
