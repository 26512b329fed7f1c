//! Links the peers' C libraries, and only when the feature `peers` asks for them.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_PEERS").is_none() {
        return;
    }
    for library in ["zmq", "nanomsg", "nng"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    // The others tell their version when asked; nanomsg only knows that of its ABI.
    println!("cargo::rustc-env=VERSUS_NANOMSG_VERSION={}", installed("nanomsg"));
}

/// The version that pkg-config knows, or "unknown version".
fn installed(library: &str) -> String {
    match Command::new("pkg-config").args(["--modversion", library]).output() {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown version".to_owned(),
    }
}
