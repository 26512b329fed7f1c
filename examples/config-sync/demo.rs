//! The demo: real processes, real files, real kills, and its own comparison of the trees.

mod canary;
mod lost;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spanwire_config::process::Shutdown;
use spanwire_config::{Limits, store, tree};

type Res<T> = Result<T, String>;

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn io<T>(what: impl std::fmt::Display, result: std::io::Result<T>) -> Res<T> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// A child process: killed, by its id, when this is dropped.
struct Process {
    name: String,
    child: Child,
    words: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn start(name: &str, verbose: bool, args: &[&str]) -> Res<Process> {
        let program = io("this program", std::env::current_exe())?;
        let mut command = Command::new(program);
        command.args(args).arg("--tied");
        // Settings of whoever runs the demo are none of its.
        let settings = std::env::vars_os().map(|(name, _)| name);
        let settings = settings.filter(|name| name.as_encoded_bytes().starts_with(b"CONFIG_SYNC_"));
        for name in settings {
            command.env_remove(name);
        }
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = io(name, command.spawn())?;
        let words = Arc::new(Mutex::new(Vec::new()));
        if let Some(pipe) = child.stderr.take() {
            let (words, name) = (words.clone(), name.to_owned());
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if verbose {
                        eprintln!("    {name:>8} | {line}");
                    }
                    words.lock().unwrap_or_else(|e| e.into_inner()).push(line);
                }
            });
        }
        Ok(Process { name: name.into(), child, words })
    }

    fn words(&self) -> Vec<String> {
        self.words.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// `kill -9`: no farewell, no flush.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Demo<'a> {
    verbose: bool,
    stop: &'a Shutdown,
    started: Instant,
    step: u32,
    dir: PathBuf,
    server: Option<Process>,
    agents: BTreeMap<String, Process>,
    urls: Vec<String>,
}

/// Runs all of it.
pub(crate) fn run(verbose: bool, stop: &Shutdown) -> Res<()> {
    // Removed at the end, whatever the end.
    let temp = io("a temporary directory", tempfile::tempdir())?;
    let mut demo = Demo {
        verbose,
        stop,
        started: Instant::now(),
        step: 0,
        dir: temp.path().to_owned(),
        server: None,
        agents: BTreeMap::new(),
        urls: Vec::new(),
    };
    let result = demo.play();
    if result.is_err() {
        demo.last_words();
    }
    // Children first, then their files.
    demo.agents.clear();
    demo.server = None;
    io("the temporary directory", temp.close())?;
    result
}

impl Demo<'_> {
    fn play(&mut self) -> Res<()> {
        let source = self.source();
        self.say(
            "a copy of the sample configuration; one server, three agents, nothing in their directories",
        );
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config-sync/sample"), &source)?;
        self.start_server()?;
        for name in ["web-1", "web-2", "web-3"] {
            self.start_agent(name)?;
        }
        self.await_equal(&["web-1", "web-2", "web-3"])?;

        self.say("one file edited, one added in a new directory, one deleted");
        write(&source.join("app/limits.json"), "{\n  \"requests_per_second\": 900\n}\n")?;
        write(&source.join("nginx/conf.d/eu/shop.conf"), "server { listen 8081; }\n")?;
        io("delete", fs::remove_file(source.join("nginx/conf.d/old-blog.conf")))?;
        self.await_equal(&["web-1", "web-2", "web-3"])?;

        self.say("a broken file is published; web-3 checks what it gets, refuses it, and keeps the last good revision");
        let (good, kept) = (self.revision("web-3")?, files(&self.out("web-3"))?);
        let right = io("nginx.conf", fs::read_to_string(source.join("nginx/nginx.conf")))?;
        write(&source.join("nginx/nginx.conf"), "BROKEN\n")?;
        self.await_equal(&["web-1", "web-2"])?;
        self.until("web-3 to refuse it", || Ok(self.said("web-3", " refused: ")))?;
        if self.revision("web-3")? != good || files(&self.out("web-3"))? != kept {
            return Err("web-3 does not hold what it held before".into());
        }
        self.done(format_args!("web-3 still holds revision {good}"));
        self.say("the file is put right");
        write(&source.join("nginx/nginx.conf"), &right)?;
        self.await_equal(&["web-1", "web-2", "web-3"])?;

        self.say("web-2 is killed (-9); meanwhile flags.yaml changes; then web-2 starts again");
        self.kill_agent("web-2");
        write(&source.join("feature-flags/flags.yaml"), "new-checkout: true\nsearch-v2: 100%\n")?;
        self.await_equal(&["web-1", "web-3"])?;
        if differs(&source, &self.out("web-2"))?.is_none() {
            return Err("web-2 changed while it was dead".into());
        }
        self.start_agent("web-2")?;
        self.await_equal(&["web-1", "web-2", "web-3"])?;

        self.say("the server is killed (-9); agents keep what they have, and the source changes unseen");
        let before = self.revision("web-1")?;
        self.server = None;
        write(&source.join("app/database.toml"), "[primary]\nhost = \"db-9.internal\"\n")?;
        for name in ["web-1", "web-2", "web-3"] {
            let held = self.revision(name)?;
            if held != before {
                return Err(format!("{name} holds revision {held}, not {before}"));
            }
        }
        self.done(format_args!("web-1, web-2, web-3 still hold revision {before}"));
        self.say(
            "web-3 is killed, a file of its directory edited by hand; it starts again without any server",
        );
        self.kill_agent("web-3");
        write(&self.out("web-3").join("nginx/nginx.conf"), "# edited by hand\n")?;
        write(&self.out("web-3").join("stray.txt"), "does not belong here\n")?;
        self.start_agent("web-3")?;
        let (repaired, kept) = (self.out("web-3"), self.out("web-1"));
        self.until("web-3 to repair itself from its cache", || Ok(differs(&kept, &repaired)?.is_none()))?;
        self.done("web-3 equals web-1 again, from its own cache");

        self.say("the server starts again from its state folder");
        self.start_server()?;
        self.await_equal(&["web-1", "web-2", "web-3"])?;
        let after = self.revision("web-1")?;
        if after <= before {
            return Err(format!("revision {after} after {before}"));
        }
        self.await_hooks()?;
        self.table()?;
        self.lose_the_store()
    }

    fn say(&mut self, what: &str) {
        self.step += 1;
        println!("[{:5.1} s] {}. {what}", self.started.elapsed().as_secs_f32(), self.step);
    }

    fn done(&self, what: impl std::fmt::Display) {
        println!("[{:5.1} s]    {what}", self.started.elapsed().as_secs_f32());
    }

    fn source(&self) -> PathBuf {
        self.dir.join("source")
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn start_server(&mut self) -> Res<()> {
        let source = self.source();
        self.serve(&["serve", "--dir", path(&source)?], "server.ipc")
    }

    /// Starts a server at a port and at this address below the folder of the demo.
    fn serve(&mut self, args: &[&str], ipc: &str) -> Res<()> {
        let ipc = format!("ipc://{}", self.dir.join(ipc).display());
        // The second time the agents know the port.
        let tcp = self.urls.iter().find(|url| url.starts_with("tcp")).cloned();
        let tcp = tcp.unwrap_or_else(|| "tcp://127.0.0.1:0".into());
        let args = [args, &["--bind", &tcp, "--bind", &ipc]].concat();
        let server = Process::start("server", self.verbose, &args)?;
        let listening = || {
            let words = server.words();
            words
                .iter()
                .filter_map(|w| w.strip_prefix("listening at ").map(str::to_owned))
                .collect::<Vec<_>>()
        };
        self.until("the server to listen", || Ok(listening().len() == 2))?;
        self.urls = listening();
        self.done(format_args!("server at {}", self.urls.join(" and ")));
        self.server = Some(server);
        Ok(())
    }

    fn said(&self, name: &str, part: &str) -> bool {
        self.agents.get(name).is_some_and(|agent| agent.words().iter().any(|line| line.contains(part)))
    }

    fn start_agent(&mut self, name: &str) -> Res<()> {
        let (out, log) = (self.out(name), self.dir.join(format!("{name}.hooks")));
        let hook = format!("echo \"$CONFIG_SYNC_REVISION\" >> '{}'", log.display());
        // One over ipc, the others over tcp.
        let url = self.urls.iter().find(|url| url.starts_with("ipc") == name.ends_with("-1"));
        let url = url.ok_or("the server has no address")?.clone();
        let mut args =
            vec!["agent", "--connect", &url, "--out", path(&out)?, "--name", name, "--on-change", &hook];
        let label = format!("{}={}", canary::LABEL.0, canary::LABEL.1);
        if name == canary::CANARY {
            args.extend(["--label", &label]);
        }
        if name == "web-3" || name == canary::CANARY {
            args.extend(["--validate", "! grep -rq BROKEN ."]);
        }
        let agent = Process::start(name, self.verbose, &args)?;
        self.agents.insert(name.into(), agent);
        Ok(())
    }

    fn kill_agent(&mut self, name: &str) {
        if let Some(mut agent) = self.agents.remove(name) {
            agent.kill();
        }
    }

    /// Waits until `what` holds.
    fn until(&self, what: &str, mut holds: impl FnMut() -> Res<bool>) -> Res<()> {
        let latest = Instant::now() + PATIENCE;
        while !holds()? {
            if self.stop.is_over() {
                return Err("interrupted".into());
            }
            if Instant::now() > latest {
                return Err(format!("waited {PATIENCE:?} for {what}"));
            }
            // Of files and of other processes nobody tells.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn await_equal(&self, names: &[&str]) -> Res<()> {
        let (source, began) = (self.source(), Instant::now());
        for name in names {
            let mut last = None;
            let outcome = self.until(&format!("{name} to equal the source"), || {
                last = differs(&source, &self.out(name))?;
                Ok(last.is_none())
            });
            outcome.map_err(|e| format!("{e}: {}", last.unwrap_or_default()))?;
        }
        self.done(format_args!("{} equal the source after {:.0?}", names.join(", "), began.elapsed()));
        Ok(())
    }

    /// The revision that a node has stored.
    fn revision(&self, name: &str) -> Res<u64> {
        let state = self.dir.join(format!("{name}.state"));
        let held = store::peek(&state, Limits::default().bytes);
        held.map(|(head, _)| head.position.rev).ok_or_else(|| format!("{name} has stored nothing"))
    }

    fn hooks(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(format!("{name}.hooks"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The hook of each agent has run for the revision that it holds, and never for a lower one after it.
    fn await_hooks(&self) -> Res<()> {
        for name in self.agents.keys() {
            let revision = self.revision(name)?.to_string();
            self.until(&format!("the hook of {name}"), || Ok(self.hooks(name).last() == Some(&revision)))?;
            let runs: Vec<u64> = self.hooks(name).iter().filter_map(|line| line.parse().ok()).collect();
            if !runs.is_sorted() {
                return Err(format!("hooks of {name} ran for {runs:?}"));
            }
        }
        Ok(())
    }

    fn table(&mut self) -> Res<()> {
        self.say("what everybody holds, compared byte by byte");
        let source = self.source();
        let read = |dir: &Path| tree::read(dir, &Limits::default()).map_err(|e| e.to_string());
        let wanted = read(&source)?.state;
        println!("\n  node    revision  files  bytes  hooks  digest            equal");
        println!(
            "  source         -  {:5}  {:5}      -  {}  -",
            wanted.keys(),
            wanted.bytes(),
            &wanted.digest().to_string()[..16]
        );
        let mut wrong = Vec::new();
        for name in self.agents.keys() {
            let (held, difference) = (read(&self.out(name))?.state, differs(&source, &self.out(name))?);
            println!(
                "  {name:6}  {:8}  {:5}  {:5}  {:5}  {}  {}",
                self.revision(name)?,
                held.keys(),
                held.bytes(),
                self.hooks(name).len(),
                &held.digest().to_string()[..16],
                if difference.is_none() { "yes" } else { "NO" }
            );
            wrong.extend(difference.map(|d| format!("{name}: {d}")));
        }
        println!();
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        self.done("all equal");
        Ok(())
    }

    fn last_words(&self) {
        for process in self.server.iter().chain(self.agents.values()) {
            eprintln!("last words of {}:", process.name);
            let words = process.words();
            words[words.len().saturating_sub(12)..].iter().for_each(|line| eprintln!("    {line}"));
        }
    }
}

fn path(path: &Path) -> Res<&str> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))
}

/// As an editor does it: beside, then renamed.
fn write(path: &Path, text: &str) -> Res<()> {
    let name = path.display();
    if let Some(parent) = path.parent() {
        io(&name, fs::create_dir_all(parent))?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    io(&name, fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)))
}

fn copy(from: &Path, to: &Path) -> Res<()> {
    io(to.display(), fs::create_dir_all(to))?;
    for entry in io(from.display(), fs::read_dir(from))? {
        let entry = io(from.display(), entry)?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            io(from.display(), fs::copy(&from, &to))?;
        }
    }
    Ok(())
}

/// All files below `dir` with their bytes and whether they may be run: by hand, believing no protocol.
fn files(dir: &Path) -> Res<BTreeMap<PathBuf, (Vec<u8>, bool)>> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(here) = dirs.pop() {
        let entries = match fs::read_dir(&here) {
            // Not there yet, or deleted while this looks: a difference, not a failure.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => io(here.display(), entries)?,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else if let (Ok(bytes), Ok(meta)) = (fs::read(&path), entry.metadata()) {
                let below = path.strip_prefix(dir).map(Path::to_owned).unwrap_or(path);
                found.insert(below, (bytes, meta.permissions().mode() & 0o100 != 0));
            }
        }
    }
    Ok(found)
}

/// The first difference between two trees.
fn differs(a: &Path, b: &Path) -> Res<Option<String>> {
    let (mut a, b) = (files(a)?, files(b)?);
    for (path, file) in &b {
        match a.remove(path) {
            None => return Ok(Some(format!("{} is too much", path.display()))),
            Some(other) if other != *file => return Ok(Some(format!("{} differs", path.display()))),
            Some(_) => {}
        }
    }
    Ok(a.keys().next().map(|path| format!("{} is missing", path.display())))
}
