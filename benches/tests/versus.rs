//! The program as a user starts it, with the contestants that every build has.

use std::process::{Command, Output};

fn versus(args: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_versus"));
    command.args(args).arg("--out").arg(dir.path());
    (command.output().unwrap(), dir)
}

#[test]
fn a_matrix_gives_a_table_for_each_cell_and_a_line_for_each_number() {
    let always = "spanwire,raw,raw+tick,channel";
    let (output, dir) = versus(&["--quick", "--seconds", "0.02", "--rounds", "2", "--only", always]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for cell in ["stream tcp 64 B", "stream ipc", "stream inproc", "rtt tcp", "rtt ipc", "rtt inproc"] {
        assert!(text.contains(cell), "{cell} is missing in\n{text}");
    }
    let csv = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let csv = std::fs::read_to_string(csv).unwrap();
    assert_eq!(csv.lines().filter(|l| l.starts_with("stream,tcp,64,raw,2,rate,")).count(), 1, "{csv}");
    assert_eq!(csv.lines().filter(|l| l.contains(",p99,")).count(), 2 * (3 + 3 + 2), "{csv}");
}

#[test]
fn a_contestant_that_this_build_has_not_is_refused() {
    let (output, _dir) = versus(&["--only", "raw,pigeons"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("pigeons") && text.contains("channel"), "{text}");
}

#[test]
fn idle_connections_are_measured_on_both_sides() {
    let args = ["--idle", "--pipes", "10", "--idle-seconds", "0.1", "--rounds", "1", "--only", "spanwire"];
    let (output, _dir) = versus(&args);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("idle-10 tcp") && text.contains("idle-10 ipc"), "{text}");
}
