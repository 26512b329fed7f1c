//! The program as a user starts it, with the systems that every build has.

use std::process::{Command, Output};

fn config_versus(args: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_config-versus"));
    command.args(args).arg("--out").arg(dir.path()).arg("--memory").arg(dir.path());
    (command.output().unwrap(), dir)
}

#[test]
fn every_node_sees_every_commit_once_and_each_round_is_in_the_table_and_in_the_csv() {
    let cases = ["spread-3 50/s", "commits-2 nosync", "change-2", "stopped-2"];
    let chosen: Vec<&str> = cases.iter().flat_map(|case| ["--only", case]).collect();
    let args = ["--rounds", "1", "--seconds", "0.2", "--systems", "spanwire,spanwire-node,raw,raw-node"];
    let (output, dir) = config_versus(&[&chosen[..], &args[..]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for word in ["spread-3 50/s", "commits-2 nosync", "change-2", "stopped-2", "All targets", "CPUs"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    let mut files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let csv = files.find(|path| path.extension().is_some_and(|e| e == "csv")).expect("a CSV file");
    let csv = std::fs::read_to_string(csv).unwrap();
    for name in ["spanwire", "spanwire-node"] {
        let lines = |case: &str| csv.lines().filter(|l| l.starts_with(&format!("{case},{name},1,"))).count();
        let all = [lines("spread-3 50/s"), lines("change-2"), lines("stopped-2")];
        assert_eq!(all, [8, 3, 5], "{csv}");
        let floor = name.replace("spanwire", "raw");
        assert_eq!(csv.lines().filter(|l| l.starts_with(&format!("spread-3 50/s,{floor},1,"))).count(), 8);
    }
}

#[test]
fn what_means_no_case_or_no_system_is_refused() {
    for (args, word) in [(["--only", "spread-pigeon"], "--list"), (["--systems", "pigeon"], "spanwire")] {
        let (output, _dir) = config_versus(&args);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{output:?}");
    }
}
