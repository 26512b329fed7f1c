//! Builds what comes later while tests run that mostly wait.
//!
//! Owns: that this is in nobody's way. Never: decides anything; a step builds what is not there, and says why it fails.

use std::process::{Command, Stdio};
use std::thread::JoinHandle;

/// Builds that go on.
pub(crate) struct Ahead(JoinHandle<()>);

/// Builds these tests one after the other, whenever the machine has nothing else to do.
pub(crate) fn build(tests: Vec<Command>) -> Ahead {
    Ahead(std::thread::spawn(|| {
        for mut command in tests.into_iter().map(|tests| idle(&tests)) {
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Where there is no `nice`, nothing is built ahead.
            let _ = quiet.status();
        }
    }))
}

fn idle(tests: &Command) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(tests.get_program()).args(tests.get_args()).arg("--no-run");
    command.envs(tests.get_envs().filter_map(|(name, value)| Some((name, value?))));
    tests.get_current_dir().map(|folder| command.current_dir(folder));
    command
}

impl Ahead {
    /// Until all is built or has failed to.
    pub(crate) fn wait(self) {
        let _ = self.0.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tests_are_built_in_the_same_place_and_not_run() {
        let mut tests = Command::new("cargo");
        tests.args(["test", "--package", "a"]).env("CARGO_TARGET_DIR", "b").current_dir("c");
        let idle = idle(&tests);
        let args: Vec<_> = idle.get_args().collect();
        assert_eq!(args, ["-n", "19", "cargo", "test", "--package", "a", "--no-run"]);
        assert_eq!(idle.get_envs().collect::<Vec<_>>(), tests.get_envs().collect::<Vec<_>>());
        assert_eq!(idle.get_current_dir(), tests.get_current_dir());
    }
}
