//! The examples run, and print what their first lines say that one should see.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What stands in the source between "You should see" and the end of the block after it.
fn promised(source: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(source).expect("the example's source");
    let after = text.lines().skip_while(|line| !line.contains("You should see")).skip(1);
    let block = after.skip_while(|line| *line != "//! ```text").skip(1);
    block
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//! ").to_owned())
        .collect()
}

/// Cargo puts examples beside the folder of the tests, and builds them before the tests of a package are run.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program");
    let folder = test.ancestors().nth(2).expect("it lies in target/debug/deps");
    folder.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

#[track_caller]
fn check(name: &str, source: &str) {
    let promised = promised(&Path::new(env!("CARGO_MANIFEST_DIR")).join(source));
    assert!(!promised.is_empty(), "{name} does not say what one should see");
    let output = Command::new(program(name)).stdin(Stdio::null()).output().expect("the example starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.lines().collect::<Vec<_>>(), promised);
}

macro_rules! examples {
    ($($name:ident: $source:literal,)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), $source);
        })*
    };
}

examples! {
    pushpull: "pushpull.rs",
    reqrep: "reqrep.rs",
    pubsub: "pubsub.rs",
    pair: "pair.rs",
    poller: "poller.rs",
    async_tokio: "async_tokio.rs",
}

#[cfg(unix)]
examples! {
    custom_transport: "custom_transport/main.rs",
}

#[cfg(unix)]
#[path = "run/config_sync/mod.rs"]
mod config_sync;

#[cfg(unix)]
#[path = "run/tour.rs"]
mod tour;
