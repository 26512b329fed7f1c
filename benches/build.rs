//! Links the peers' C libraries, and only when a feature asks for them; finds out which versions are used.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    // Crates do not tell their version when asked.
    let lock = std::fs::read_to_string("../Cargo.lock").unwrap_or_default();
    for name in ["rzmq", "zeromq", "crossbeam-channel", "tokio"] {
        let variable = name.to_uppercase().replace('-', "_");
        println!("cargo::rustc-env=VERSUS_VERSION_{variable}={}", locked(&lock, name));
    }
    if std::env::var_os("CARGO_FEATURE_PEERS_C").is_none() {
        return;
    }
    for library in ["zmq", "nanomsg", "nng"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    // The others tell their version when asked; nanomsg only knows that of its ABI.
    println!("cargo::rustc-env=VERSUS_NANOMSG_VERSION={}", installed("nanomsg"));
}

/// The version in the lock file, or "unknown version".
fn locked(lock: &str, name: &str) -> String {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let version = lock.split_once(&entry).and_then(|(_, rest)| rest.split_once('"'));
    version.map_or("unknown version", |(version, _)| version).to_owned()
}

/// The version that pkg-config knows, or "unknown version".
fn installed(library: &str) -> String {
    match Command::new("pkg-config").args(["--modversion", library]).output() {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown version".to_owned(),
    }
}
