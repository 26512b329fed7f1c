//! Keys: agents and relays take only what they signed.

use spanwire_config::serve;
use spanwire_config::sign::{Keyring, Secret};

use super::harness::{Running, World};

#[test]
fn invariant_05_an_agent_with_keys_takes_only_what_they_signed() {
    let w = World::with(&[("a", "1")]);
    let (old, new) = (Secret::from_seed(1, &[1; 32]), Secret::from_seed(2, &[2; 32]));
    let mut config = w.serve_config();
    (config.secret, config.keys) = (Some(old.clone()), old.public());
    let server = Running::serve(config.clone());
    let trusting = |name: &str, trust: &Keyring| {
        let mut config = w.agent_config(name);
        config.trust = trust.clone();
        Running::agent(config)
    };
    let mut agent = trusting("n", &old.public());
    server.await_line("applied 1/");
    w.await_equal("n");
    let stranger = trusting("m", &new.public());
    stranger.await_line("no trusted key signed");
    assert!(!w.path("m/a").exists());
    // The key is replaced: both are trusted for a while, and then what is in the folder is believed under the old one.
    agent.ends();
    server.ends();
    agent = trusting("n", &new.public());
    agent.await_line("last good revision in place");
    agent.ends();
    let mut revoked = new.public();
    revoked.revoke(&old.public());
    agent = trusting("n", &revoked);
    agent.await_line("is revoked");
    agent.await_line("state: Empty");
    (config.secret, config.keys) = (Some(new.clone()), new.public());
    config.keys.add(&old.public());
    let _server = Running::serve(config);
    stranger.await_line("state: Live");
    agent.await_line("state: Live");
    w.await_equal("n");
}

#[test]
fn invariant_05_a_relay_with_keys_passes_nothing_on_that_they_did_not_sign() {
    let w = World::with(&[("a", "1")]);
    let (key, other) = (Secret::generate(1).expect("random"), Secret::generate(1).expect("random"));
    let mut config = w.serve_config();
    config.secret = Some(key.clone());
    let server = Running::serve(config);
    let stranger = w.relay("stranger", &["src"], other.public());
    stranger.await_line("no trusted key signed");
    let _relay = w.relay("relay", &["src"], key.public());
    let _agent = w.agent_below("n", &["relay"]);
    server.await_line("applied 1/");
    w.await_equal("n");
    assert!(!stranger.lines().iter().any(|line| line.starts_with("revision ")), "{:#?}", stranger.lines());
}

#[test]
fn who_trusts_no_key_but_has_revoked_some_is_told_that_nothing_is_taken() {
    let w = World::with(&[("a", "1")]);
    let key = Secret::from_seed(1, &[1; 32]);
    let mut trust = key.public();
    trust.revoke(&key.public());
    let mut config = w.agent_config("n");
    config.trust = trust.clone();
    let warned = "every key that is named is revoked";
    Running::agent(config).await_line(warned);
    w.relay("r", &["src"], trust.clone()).await_line(warned);
    let server = serve::Config { keys: trust, secret: Some(key.clone()), ..w.serve_config() };
    Running::serve(server).await_line(warned);
    // Where one is left there is nothing to say.
    let mut trust = Secret::from_seed(2, &[2; 32]).public();
    trust.revoke(&key.public());
    let relay = w.relay("r", &["src"], trust);
    relay.await_line("listening at");
    assert!(relay.lines().iter().all(|line| !line.contains(warned)));
}
