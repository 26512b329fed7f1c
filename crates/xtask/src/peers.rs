//! The peers that the interop tests talk to: nanocat, nngcat, libnanomsg, and pynng in an environment of its own; and
//! etcd, beside which config-broadcast is measured.
//!
//! Owns: finding and installing them. Never: lets a missing one pass; the tests against it would fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run;

/// Pinned: it carries its own nng 1.11, and the tests know what that one does.
const PYNNG: &str = "pynng==0.9.0";

/// What each of Debian's packages is wanted for: a program, or a file of it that must be found.
const PACKAGES: [(&str, &str); 3] =
    [("nanomsg-utils", "nanocat"), ("nng-utils", "nngcat"), ("python3-venv", "python3 -m venv")];

/// What config-broadcast is measured beside: the server, and what its client is compiled with.
const ETCD: [(&str, &str); 2] = [("etcd-server", "etcd"), ("protobuf-compiler", "protoc")];

/// Installs what is missing of etcd.
///
/// # Errors
/// Says what to install by hand.
pub(crate) fn ensure_etcd() -> Result<(), String> {
    install(|| ETCD.into_iter().filter(|(_, program)| !on_path(program)).collect())
}

/// Installs the packages that `missing` finds to be.
fn install(missing: impl Fn() -> Vec<(&'static str, &'static str)>) -> Result<(), String> {
    let found = missing();
    if found.is_empty() {
        return Ok(());
    }
    apt(&found)?;
    match missing() {
        still if still.is_empty() => Ok(()),
        still => Err(by_hand(&still, "they were installed and are still not found")),
    }
}

/// Installs what is missing.
///
/// # Errors
/// Says what to install by hand.
pub(crate) fn ensure(root: &Path) -> Result<(), String> {
    install(|| missing_packages(root))?;
    let python = python(root);
    if has_pynng(&python) {
        return Ok(());
    }
    let venv = root.join("target/peers-venv");
    let why = |e: String| format!("pynng is missing ({e}); make it by hand: {}", venv_by_hand());
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).map_err(why)?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYNNG])).map_err(why)?;
    match has_pynng(&python) {
        true => Ok(()),
        false => Err(why("installed, but it cannot be imported".to_owned())),
    }
}

fn python(root: &Path) -> PathBuf {
    root.join("target/peers-venv/bin/python")
}

fn venv_by_hand() -> String {
    format!("python3 -m venv target/peers-venv && target/peers-venv/bin/python -m pip install {PYNNG}")
}

fn missing_packages(root: &Path) -> Vec<(&'static str, &'static str)> {
    let found = |what: &str| match what {
        // An environment that works already needs no module to make one.
        "python3 -m venv" => {
            has_pynng(&python(root))
                || succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]))
        }
        program => on_path(program),
    };
    PACKAGES.into_iter().filter(|(_, what)| !found(what)).collect()
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn has_pynng(python: &Path) -> bool {
    let wanted = PYNNG.rsplit('=').next().unwrap_or_default();
    let check = format!("import pynng; assert pynng.__version__ == '{wanted}'");
    succeeds(Command::new(python).args(["-c", &check]))
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn apt(missing: &[(&str, &str)]) -> Result<(), String> {
    let names = missing.iter().map(|(package, _)| *package);
    let install = || {
        let mut install = root_command("apt-get");
        install.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(names.clone());
        run(&mut install)
    };
    // The package lists may be missing or old, but where they are good nothing needs to be reached.
    install()
        .or_else(|_| run(root_command("apt-get").args(["update", "--quiet"])).and_then(|()| install()))
        .map_err(|why| by_hand(missing, &why))
}

/// A command as root: with sudo, if this is somebody else. It asks nothing, since nobody may be there to answer.
fn root_command(program: &str) -> Command {
    let id = Command::new("id").arg("-u").output();
    if id.is_ok_and(|out| out.stdout.trim_ascii() == b"0") {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        return command;
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", program]);
    command
}

fn by_hand(missing: &[(&str, &str)], why: &str) -> String {
    let mut text = format!("peers are missing ({why}); install by hand:\n");
    for (package, what) in missing {
        text += &format!("  {what}: Debian's package {package}\n");
    }
    text + "and then the same command again"
}
