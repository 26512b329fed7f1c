//! The program as a user starts it, with the contestants that every build has.

use std::process::{Command, Output, Stdio};

fn versus(args: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_versus"));
    command.args(args).arg("--out").arg(dir.path());
    (command.output().unwrap(), dir)
}

#[test]
fn chosen_cells_give_a_table_each_and_a_line_for_each_number_and_plots() {
    let args = "--seconds 0.02 --rounds 2 --contestants spanwire,framed,channel";
    let words: Vec<&str> = args.split(' ').chain(["--only", "stream 64", "--only", "stream 8"]).collect();
    let (output, dir) = versus(&words);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for cell in ["stream tcp 64B", "stream ipc 8B", "stream inproc 64B", "All targets", "CPUs"] {
        assert!(text.contains(cell), "{cell} is missing in\n{text}");
    }
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).collect();
    let with =
        |ending: &'static str| files.iter().filter(move |f| f.extension().is_some_and(|e| e == ending));
    let csv = std::fs::read_to_string(with("csv").next().unwrap()).unwrap();
    assert_eq!(csv.lines().filter(|l| l.starts_with("stream,tcp,64,framed,2,rate,")).count(), 1, "{csv}");
    assert_eq!(csv.lines().filter(|l| l.contains(",cpu,")).count(), 2 * 2 * (2 + 2 + 2), "{csv}");
    let plots: Vec<_> = with("svg").collect();
    assert_eq!(plots.len(), 3 * 2, "rate and CPU for each transport: {plots:?}");
}

#[test]
fn promise_25_every_shape_is_measured_and_nothing_is_lost() {
    let cells = ["rtt 64B", "pub-8", "pipeline-16", "fanin-10", "senders-2", "topics-100", "full", "idle-1"];
    let args = ["--seconds", "0.02", "--idle-seconds", "0.05", "--rounds", "1", "--contestants"];
    let args = args.into_iter().chain(["spanwire,spanwire-batch"]);
    let words: Vec<&str> = args.chain(cells.iter().flat_map(|cell| ["--only", cell])).collect();
    let (output, _dir) = versus(&words);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn who_has_seen_enough_of_the_list_ends_it_without_a_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_versus"));
    let output = command.arg("--list").stdout(Stdio::from(writer)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_contestant_that_this_build_has_not_is_refused() {
    let (output, _dir) = versus(&["--contestants", "raw,pigeons"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("pigeons") && text.contains("channel"), "{text}");
}

#[test]
fn words_that_mean_no_cell_are_refused_and_cells_for_which_there_is_no_time_fail_the_run() {
    let (output, _dir) = versus(&["--only", "stream pigeon"]);
    assert!(!output.status.success());
    let (output, _dir) = versus(&["--only", "stream tcp 64", "--minutes", "0"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("NOT RUN, out of time: stream tcp 64B"), "{text}");
}
