//! A server of several namespaces: each has its store, its history, its nodes and its clients.

use std::fs;
use std::time::Duration;

use spanwire_config::client::{Client, ClientError, Commit};
use spanwire_config::wire::client::{InvalidCode, Selector};
use spanwire_config::{Level, Place, State, serve};

use super::control::{FIRST, expecting, put, state};
use super::harness::{Running, World, await_that, text};

const PATIENCE: Duration = Duration::from_secs(20);

fn further(names: &[&str]) -> Vec<serve::Further> {
    names.iter().map(|name| serve::Further { name: (*name).into(), dir: None }).collect()
}

impl World {
    /// A server of these namespaces, all without a directory.
    fn several(&self, names: &[&str]) -> serve::Config {
        let (first, more) = names.split_first().expect("at least one");
        let mut config = self.log_config();
        (config.namespace, config.further) = ((*first).into(), further(more));
        config
    }

    fn agent_of(&self, name: &str, namespace: &str) -> Running {
        let mut config = self.agent_config(name);
        config.namespace = namespace.into();
        Running::agent(config)
    }
}

fn first(client: &Client, pairs: &[(&str, &str)]) -> Place {
    client.commit(&expecting(FIRST, put(pairs))).expect("the first").at
}

fn content(client: &Client) -> State {
    client.list(b"", None).expect("read").1
}

/// Which nodes have the newest of a namespace.
fn applied(client: &Client) -> Vec<String> {
    let tip = client.status().expect("an answer").tip.position.into();
    let waited = client.wait(tip, Level::Applied, PATIENCE, &Selector::default()).expect("waited");
    waited.ok.into_iter().map(|node| node.name).collect()
}

#[test]
fn each_namespace_has_its_own_content_history_and_nodes_over_a_restart_too() {
    let w = World::new();
    let server = Running::serve(w.several(&["a", "b"]));
    let a = Client::connect(&w.control(), "a").expect("an address");
    let b = a.clone().with_namespace("b");
    assert_eq!(first(&a, &[("k", "a")]), Place { epoch: 1, rev: 1 });
    let told = b.list(b"", None).expect_err("nothing is there yet").to_string();
    assert_eq!(told, "nothing was committed here yet");
    assert_eq!(first(&b, &[("k", "b"), ("l", "b")]), Place { epoch: 1, rev: 1 });
    let agents = [w.agent_of("na", "a"), w.agent_of("nb", "b")];
    await_that("both", || w.tree("na") == content(&a) && w.tree("nb") == content(&b));
    assert_eq!(w.tree("nb"), state(&[("k", "b"), ("l", "b")]));
    // What happens in one is nothing to the other: not to its commits, its nodes, or who waits.
    let epoch = b.import(spanwire_config::Id([7; 16]), state(&[("m", "b")])).expect("imported").at;
    assert_eq!(epoch, Place { epoch: 2, rev: 2 });
    assert_eq!((applied(&a), applied(&b)), (vec!["na".to_owned()], vec!["nb".to_owned()]));
    let nodes = |client: &Client| client.status().expect("an answer").nodes.len();
    assert_eq!((nodes(&a), nodes(&b)), (1, 1));
    let follow = |client: &Client, wait| client.follow(Place { epoch: 1, rev: 1 }, wait).expect("an answer");
    assert_eq!(follow(&a, Duration::ZERO).commits.len(), 0);
    assert_eq!(follow(&b, Duration::ZERO).commits.len(), 1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| follow(&a, PATIENCE).commits.len());
        let more = Commit::new(put(&[("k", "a2")])).expect("randomness");
        assert_eq!(a.commit(&more).expect("committed").at, Place { epoch: 1, rev: 2 });
        assert_eq!(waits.join().expect("no panic"), 1);
    });
    server.await_line("b: nothing is in this store");
    server.await_line("a: revision 1/");
    server.await_line("b: node nb");
    server.ends();
    // Named in another order.
    let _server = Running::serve(w.several(&["b", "a"]));
    assert_eq!((content(&a), content(&b)), (state(&[("k", "a2")]), state(&[("m", "b")])));
    await_that("both again", || w.tree("na") == content(&a) && w.tree("nb") == content(&b));
    assert_eq!((applied(&a), applied(&b)), (vec!["na".to_owned()], vec!["nb".to_owned()]));
    agents.into_iter().for_each(|agent| drop(agent.ends()));
}

#[test]
fn what_is_asked_of_a_namespace_that_is_not_served_is_invalid_and_names_those_that_are() {
    let w = World::new();
    let server = Running::serve(w.several(&["a", "b"]));
    let other = Client::connect(&w.control(), "c").expect("an address");
    let told = other.commit(&expecting(FIRST, put(&[("k", "c")]))).expect_err("not served");
    let ClientError::Invalid { code: InvalidCode::Namespace, text, .. } = told else { panic!("{told}") };
    assert!(
        text.starts_with("there is no namespace ")
            && text.ends_with(": the 2 namespaces served here are a, b"),
        "{text}"
    );
    for told in [other.status().map(drop), other.log(None, 0).map(drop), other.holdings().map(drop)] {
        assert!(matches!(told, Err(ClientError::Invalid { code: InvalidCode::Namespace, .. })), "{told:?}");
    }
    let agent = w.agent_of("nc", "c");
    agent.await_line("this server has none of this name");
    server.ends();
    // What has started once stays, though nothing was committed.
    assert!(["a", "b"].iter().all(|name| w.path("state/namespaces").join(name).join("identity").exists()));
}

#[test]
fn what_was_served_alone_gets_company_and_each_of_several_can_be_served_alone() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    let config = w.client();
    first(&config, &[("k", "config")]);
    server.ends();
    assert!(w.path("state/log/log").is_file() && !w.path("state/namespaces").exists());
    let server = Running::serve(w.several(&["b", "config"]));
    let b = config.clone().with_namespace("b");
    first(&b, &[("k", "b")]);
    assert_eq!(content(&config), state(&[("k", "config")]));
    server.ends();
    assert!(w.path("state/namespaces/b/log/log").is_file() && !w.path("state/namespaces/config").exists());
    for (name, client, other) in [("b", &b, &config), ("config", &config, &b)] {
        let server = Running::serve(w.several(&[name]));
        assert_eq!(content(client), state(&[("k", name)]));
        assert!(other.status().is_err());
        // What is not served is named, wherever it lies.
        let (left, place) =
            if name == "b" { ("config", w.path("state/log")) } else { ("b", w.path("state/namespaces/b")) };
        let said = server.await_line("a namespace that is not served is kept in");
        assert!(said.ends_with(&format!("{}: {left}", place.display())), "{said}");
        server.ends();
    }
    // And from its folder as a state folder of its own.
    let mut alone = w.several(&["b"]);
    alone.state = w.path("state/namespaces/b");
    let server = Running::serve(alone);
    assert_eq!(content(&b), state(&[("k", "b")]));
    server.ends();
    // Its log is not left out by accident, nor hidden by another.
    let refused = |names: &[&str]| Running::serve(w.several(names)).refused().to_string();
    assert!(refused(&["a", "b"]).contains("holds the namespace config"));
    fs::create_dir_all(w.path("state/namespaces/config")).expect("writable");
    assert!(refused(&["b", "config"]).contains("two stores of the namespace config"));
    fs::remove_dir(w.path("state/namespaces/config")).expect("ours");
    fs::write(w.path("state/log/log"), "no log").expect("ours");
    assert!(refused(&["b", "config"]).contains("damaged"));
}

#[test]
fn several_directories_are_published_beside_what_clients_commit() {
    let w = World::with(&[("a", "1")]);
    w.write("web/b", "2");
    let mut config = w.serve_config();
    (config.control, config.state) = (vec![w.control()], w.path("state"));
    config.further = vec![
        serve::Further { name: "web".into(), dir: Some(w.path("web")) },
        serve::Further { name: "flags".into(), dir: None },
    ];
    let server = Running::serve(config);
    let _agents = [w.agent("n"), w.agent_of("nw", "web"), w.agent_of("nf", "flags")];
    let flags = w.client().with_namespace("flags");
    first(&flags, &[("c", "3")]);
    let files = || ["n/a", "nw/b", "nf/c"].map(|file| text(&w.path(file)));
    await_that("all", || files() == ["1", "2", "3"].map(str::to_owned));
    w.write("web/b", "4");
    w.write("src/a", "5");
    await_that("both changes", || files() == ["5", "4", "3"].map(str::to_owned));
    let change = Commit::new(put(&[("b", "6")])).expect("randomness");
    let told = flags.clone().with_namespace("web").commit(&change).expect_err("a directory is published");
    assert!(told.to_string().contains("web on the server is what is published"), "{told}");
    server.ends();
}

#[test]
fn of_several_namespaces_what_is_for_one_alone_is_advised_so() {
    let w = World::with(&[("a", "1")]);
    let server = Running::serve(w.several(&["web", "flags"]));
    let web = w.client().with_namespace("web");
    first(&web, &[("a", "2")]);
    server.ends();
    let config = || serve::Config { dir: Some(w.path("src")), ..w.several(&["web", "flags"]) };
    let refused = Running::serve(config()).refused().to_string();
    assert!(
        refused.ends_with("start with --replace, with this namespace alone (--namespace web)"),
        "{refused}"
    );
    let alone = Running::serve(serve::Config { further: Vec::new(), replace: true, ..config() });
    alone.await_line("revision 1/");
    alone.ends();
    let server = Running::serve(config());
    let agent = w.agent_of("n", "web");
    w.await_equal("n");
    server.ends();
    // Its store is lost: what begins a new epoch is for it alone, too.
    fs::remove_dir_all(w.path("state/namespaces/web")).expect("ours");
    w.write("src/a", "3");
    let server = Running::serve(config());
    let advice = "--new-epoch 2, with this namespace alone (--namespace web)";
    let said = server.await_line(advice);
    assert!(said.starts_with("web: "), "{said}");
    server.ends();
    // Served alone it is not said.
    let server = Running::serve(serve::Config { further: Vec::new(), ..config() });
    assert!(!server.await_line("--new-epoch 2").contains("alone"));
    drop((server, agent));
}

#[test]
fn a_store_of_another_namespace_or_cluster_is_told_in_names_and_with_what_to_do() {
    let w = World::new();
    let server = Running::serve(w.log_config());
    first(&w.client(), &[("a", "1")]);
    server.ends();
    let refused = |config| Running::serve(config).refused().to_string();
    let other = refused(serve::Config { namespace: "other".into(), ..w.log_config() });
    assert!(other.ends_with(
        "is of the namespace \"config\", and not of \"other\": name that (--namespace), or another folder (--state)"
    ), "{other}");
    let other = refused(serve::Config { cluster: "other".into(), ..w.log_config() });
    assert!(other.ends_with(
        "is of the cluster \"config-sync\", and not of \"other\": name that (--cluster), or another folder (--state)"
    ), "{other}");
    // Of a cluster only what its name amounts to is kept.
    let named = || serve::Config { cluster: "mine".into(), state: w.path("mine"), ..w.log_config() };
    let server = Running::serve(named());
    first(&w.client(), &[("a", "1")]);
    server.ends();
    let other = refused(serve::Config { cluster: "config-sync".into(), ..named() });
    assert!(other.ends_with(
        "is of another cluster than \"config-sync\", of a name that is not kept: give that name (--cluster), or \
         another folder (--state)"
    ), "{other}");
}

#[test]
fn what_makes_no_sense_of_several_namespaces_is_refused_before_anything_is_made() {
    let w = World::new();
    let many: Vec<String> = (0..65).map(|n| format!("n{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(129);
    let mut epoch = w.several(&["a", "b"]);
    epoch.new_epoch = Some(2);
    let mut deaf = w.several(&["a", "b"]);
    deaf.control.clear();
    for (config, why) in [
        (w.several(&["a", "b", "a"]), "the namespace a is there already"),
        (w.several(&["a", &long]), "at most 128 bytes"),
        (w.several(&[&long]), "at most 128 bytes"),
        (w.several(&many), "at most 64 namespaces"),
        (w.several(&["a", ""]), "an empty name is none"),
        (w.several(&[""]), "an empty name is none"),
        (epoch, "--new-epoch and --replace are for one namespace"),
        (deaf, "the namespace a: neither a directory to publish"),
    ] {
        let refused = Running::serve(config).refused().to_string();
        assert!(refused.contains(why), "{refused}");
        assert!(!w.path("state").exists());
    }
    let server = Running::serve(w.several(&many[..64]));
    let last = Client::connect(&w.control(), "n63").expect("an address");
    first(&last, &[("k", "1")]);
    let _agent = w.agent_of("n", "n63");
    await_that("the last of 64", || text(&w.path("n/k")) == "1");
    server.ends();
}
