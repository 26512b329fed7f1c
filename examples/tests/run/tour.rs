//! The ten minutes of `docs/config-sync.md`, block by block as they stand there, with what they print.
//!
//! Only what is a machine's own is put in its place: the folder, the address, the build. Waiting is made longer, for
//! machines that have other work.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::program;

const GUIDE: &str = include_str!("../../../docs/config-sync.md");
/// Before what each block prints.
const MARK: &str = "@@block";
/// A `sleep` takes so many times as long.
const SLOWLY: &str = "sleep() { command sleep $(($1 * 3)); }";

/// Commands, and what is to come of them, if it is said.
struct Block {
    commands: String,
    printed: Option<String>,
}

/// What stands below the heading.
fn blocks(heading: &str) -> Vec<Block> {
    let (_, rest) = GUIDE.split_once(&format!("\n## {heading}\n")).expect("the guide has this part");
    let part = rest.split("\n## ").next().unwrap_or_default();
    let mut blocks: Vec<Block> = Vec::new();
    // Before, inside, after, inside, …
    for fenced in part.split("```").skip(1).step_by(2) {
        let (kind, text) = fenced.split_once('\n').expect("a fence ends its line");
        match (kind, blocks.last_mut()) {
            ("sh", _) => blocks.push(Block { commands: text.to_owned(), printed: None }),
            ("text", Some(block)) => block.printed = Some(text.to_owned()),
            other => panic!("what is {:?} for?", other.0),
        }
    }
    blocks
}

/// Without what differs from run to run: digests, and how long something lasts.
fn alike(text: &str) -> String {
    let word = |word: &str| match word {
        digest if digest.len() == 14 && digest.ends_with("..") => "DIGEST".to_owned(),
        word => word.to_owned(),
    };
    let line = |line: &str| {
        let line = line.split_once(", for ").map_or(line, |(line, _)| line);
        line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
    };
    text.lines().map(line).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Ends all that it started with it.
struct Group(std::process::Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-9", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn the_ten_minutes_of_the_guide_print_what_it_says() {
    let blocks = blocks("Ten minutes");
    assert!(blocks.len() >= 8, "{} blocks", blocks.len());
    let temp = tempfile::tempdir().expect("a folder");
    let place = temp.path().to_str().expect("a path in UTF-8");
    let program = program("config-sync");
    let programs = program.parent().expect("it is in a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut script = format!("exec 2>&1\nPATH={programs}:{path}\n{SLOWLY}\n");
    for (n, block) in blocks.iter().enumerate() {
        script += &format!("echo '{MARK} {n}'\n");
        for line in
            block.commands.lines().filter(|line| !line.starts_with("cargo ") && !line.starts_with("PATH="))
        {
            let line = line.replace("mkdir /tmp/tour && ", "").replace("/tmp/tour", place);
            script += &line.replace("tcp://127.0.0.1:7700", &format!("ipc://{place}/nodes.ipc"));
            script.push('\n');
        }
    }
    script += &format!("echo '{MARK} end'\n");
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", "150", "sh", "-c"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut group = Group(command.spawn().expect("a shell"));
    let lines = BufReader::new(group.0.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let end = format!("{MARK} end");
    // What it started holds the pipe open until it is ended.
    let printed: Vec<String> = lines.take_while(|line| *line != end).collect();
    let printed = printed.join("\n");
    drop(group);
    let mut parts = printed.split(MARK).skip(1);
    for (n, block) in blocks.iter().enumerate() {
        let part = parts.next().unwrap_or_else(|| panic!("it ended before block {n}:\n{printed}"));
        let part = part.split_once('\n').map_or("", |(_, part)| part);
        if let Some(said) = &block.printed {
            assert_eq!(alike(part), alike(said), "block {n}:\n{}\n{printed}", block.commands);
        }
    }
}
