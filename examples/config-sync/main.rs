//! config-sync: a directory on one machine, kept equal on many.
//!
//! ```text
//! cargo run --release --example config-sync -- demo
//! config-sync serve --dir ./conf --bind tcp://0.0.0.0:7700
//! config-sync relay --connect tcp://server:7700 --bind tcp://0.0.0.0:7700 --state /var/lib/config-relay
//! config-sync agent --connect tcp://server:7700 --out /etc/app --on-change 'systemctl reload app'
//!
//! config-sync serve --state ./state --bind tcp://0.0.0.0:7700 --control ipc:///run/config.ipc
//! config-sync set --control ipc:///run/config.ipc db/host 10.0.0.2
//! config-sync wait --control ipc:///run/config.ipc --level applied
//! ```
//!
//! With `--dir`, a server publishes a directory. Without, what it serves is what `set`, `apply` and the other verbs
//! commit.
//!
//! `demo` starts one server and three agents as real processes on a copy of the sample configuration, changes
//! and breaks things, prints what it does, and ends with 0 only if every node holds what the source holds.
//! The guide is `docs/config-sync.md`.
//!
//! Exit codes: 0 done, 1 the demo failed, or there is no such key, 2 a request that makes no sense or would do harm
//! (also: a key file that cannot be used, or that `keygen` would have to overwrite; a log of the server that cannot be used), 3 a folder, file or tree cannot be used, 4 an address cannot be
//! used, 5 conflict: another revision than expected, or the epoch changed, 6 refused, by the server or by a node,
//! 7 time was over: no answer, or nodes that are behind or silent.

mod demo;
mod files;
mod keys;
mod operate;
mod progress;
mod rollout;
mod settings;
mod show;

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use spanwire_config::process::{Log, ProcessError, shutdown};
use spanwire_config::store::Store;
use spanwire_config::{agent, relay, serve, store};

/// Keeps directories equal to one, over spanwire's config-broadcast.
#[derive(Parser, Debug)]
#[command(name = "config-sync", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// A file (TOML) with what neither options nor the environment (CONFIG_SYNC_*) say: a table for each verb.
    // An empty one in the environment is none, which clap's own paths refuse.
    #[arg(long, global = true, env = "CONFIG_SYNC_SETTINGS", value_name = "FILE",
          value_parser = clap::builder::OsStringValueParser::new())]
    settings: Option<std::ffi::OsString>,
    /// End when standard input closes (used by the demo).
    #[arg(long, hide = true, global = true)]
    tied: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Publish a directory, and again whenever it changes; or what clients commit.
    Serve(ServeArgs),
    /// Keep a directory equal to what a server publishes.
    Agent(AgentArgs),
    /// Make a key pair: FILE for the server, FILE.pub for every agent. Where one of them is there already, or cannot be
    /// written, it ends with exit code 2.
    Keygen {
        /// Where to put the secret key. Nothing is overwritten.
        file: PathBuf,
        /// Number of the key, from 1. One that replaces another has another number.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        id: u32,
    },
    /// Receive what a server publishes and serve it to others.
    Relay(RelayArgs),
    /// Let a node or relay begin anew, while its process does not run: what it holds and a conflict are thrown away, and
    /// the next start takes what its server has. The files of an agent stay until then.
    Resync {
        /// Throw it away.
        #[arg(long, required = true)]
        discard: bool,
        /// Its state folder.
        #[arg(long, env = "CONFIG_SYNC_STATE")]
        state: PathBuf,
    },
    #[command(flatten)]
    Operate(operate::Verb),
    /// Show it: a server and three agents, edits, a refused change, kills, restarts, a lost store.
    Demo {
        /// Print the words of every process.
        #[arg(long, short)]
        verbose: bool,
    },
}

#[derive(Args, Debug)]
struct ServeArgs {
    /// The directory to publish. Without it the state lives in STATE alone, and changes by commits. With several
    /// namespaces NAME=DIR, for each that publishes one; with one it may be named so.
    #[arg(long, env = "CONFIG_SYNC_DIR", value_name = "[NAME=]DIR")]
    dir: Vec<PathBuf>,
    /// Address to listen at for nodes; repeatable. Port 0 takes a free one.
    #[arg(long, env = "CONFIG_SYNC_BIND", value_delimiter = ',')]
    bind: Vec<String>,
    /// Address to listen at for operators; repeatable. Who reaches it may change everything.
    #[arg(long, env = "CONFIG_SYNC_CONTROL", value_delimiter = ',')]
    control: Vec<String>,
    /// State folder; neither of it and DIR is inside the other [default: DIR.state; none with several namespaces].
    #[arg(long, env = "CONFIG_SYNC_STATE")]
    state: Option<PathBuf>,
    /// Name of the cluster.
    #[arg(long, env = "CONFIG_SYNC_CLUSTER", default_value = "config-sync")]
    cluster: String,
    /// Name of the namespace; repeatable, up to 64. Each has its own history, store (in STATE), nodes and operators'
    /// commits.
    #[arg(long, env = "CONFIG_SYNC_NAMESPACE", default_value = "config", value_delimiter = ',', value_parser = namespace)]
    namespace: Vec<String>,
    /// Secret key that signs what is published (keygen).
    #[arg(long, env = "CONFIG_SYNC_KEY")]
    key: Option<PathBuf>,
    /// Public keys of this server before, or of its other ones; repeatable. What they signed is believed of agents.
    #[arg(long, env = "CONFIG_SYNC_TRUST")]
    trust: Vec<PathBuf>,
    /// Begin a new epoch with this number: after the state folder was lost or put back.
    #[arg(long)]
    new_epoch: Option<u64>,
    /// Publish an empty directory even where there was another.
    #[arg(long, env = "CONFIG_SYNC_ALLOW_EMPTY")]
    allow_empty: bool,
    /// Publish the directory in the place of what was committed in this state folder.
    #[arg(long)]
    replace: bool,
    /// Seconds between readings without any word of a change.
    #[arg(long, env = "CONFIG_SYNC_RESCAN", default_value_t = 5)]
    rescan: u64,
}

#[derive(Args, Debug)]
struct AgentArgs {
    /// Address of the server; repeatable: the one that answers first is used, the others stand by.
    #[arg(long, env = "CONFIG_SYNC_CONNECT", value_delimiter = ',')]
    connect: Vec<String>,
    /// The directory to keep. It holds nothing else, and is no mount point.
    #[arg(long, env = "CONFIG_SYNC_OUT")]
    out: PathBuf,
    /// State folder; neither of it and OUT is inside the other [default: OUT.state].
    #[arg(long, env = "CONFIG_SYNC_STATE")]
    state: Option<PathBuf>,
    /// How revisions lie below OUT.
    #[arg(long, env = "CONFIG_SYNC_LAYOUT", value_enum, default_value = "flat")]
    layout: LayoutArg,
    /// With --layout versioned: how many revisions stay, the newest included.
    #[arg(long, env = "CONFIG_SYNC_KEEP", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    /// A template, and the path below OUT of what is made of it with each revision; repeatable. A directory: all
    /// templates in it, and where below OUT (`.`: there itself) they go, without the ending .j2.
    #[arg(long, env = "CONFIG_SYNC_TEMPLATE", value_name = "SRC:DEST", value_parser = template)]
    template: Vec<agent::Template>,
    /// Name of this node, for people [default: last part of OUT].
    #[arg(long, env = "CONFIG_SYNC_NAME")]
    name: Option<String>,
    /// Label of this node as NAME=VALUE; repeatable.
    #[arg(long, env = "CONFIG_SYNC_LABEL", value_parser = label)]
    label: Vec<(String, String)>,
    /// Public keys (keygen): what none of them signed is not taken; repeatable.
    #[arg(long, env = "CONFIG_SYNC_TRUST")]
    trust: Vec<PathBuf>,
    /// Command for `sh -c` in the new tree, before anything of it is kept: if it fails, the last good one stays.
    #[arg(long, env = "CONFIG_SYNC_VALIDATE")]
    validate: Option<String>,
    /// Seconds that the command of --validate may take.
    #[arg(long, env = "CONFIG_SYNC_VALIDATE_LIMIT", default_value_t = 30)]
    validate_limit: u64,
    /// Command for `sh -c` after each change.
    #[arg(long, env = "CONFIG_SYNC_ON_CHANGE")]
    on_change: Option<String>,
    /// Seconds that the command may take.
    #[arg(long, env = "CONFIG_SYNC_HOOK_LIMIT", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    hook_limit: u64,
    /// What becomes of the files of a revision for which the command failed.
    #[arg(long, env = "CONFIG_SYNC_ON_FAILURE", value_enum, default_value = "keep")]
    on_failure: OnFailureArg,
    /// Name of the cluster.
    #[arg(long, env = "CONFIG_SYNC_CLUSTER", default_value = "config-sync")]
    cluster: String,
    /// Name of the namespace.
    #[arg(long, env = "CONFIG_SYNC_NAMESPACE", default_value = "config", value_parser = namespace)]
    namespace: String,
    /// Take over a directory that holds something else: that is deleted.
    #[arg(long)]
    take_over: bool,
}

#[derive(Args, Debug)]
struct RelayArgs {
    /// Address of a server or relay; repeatable: the one that answers first is used, the others stand by.
    #[arg(long, env = "CONFIG_SYNC_CONNECT", value_delimiter = ',')]
    connect: Vec<String>,
    /// Address to listen at; repeatable. Port 0 takes a free one.
    #[arg(long, env = "CONFIG_SYNC_BIND", value_delimiter = ',')]
    bind: Vec<String>,
    /// State folder: what the relay serves while no server answers.
    #[arg(long, env = "CONFIG_SYNC_STATE")]
    state: PathBuf,
    /// File with the public keys of which one must have signed what is taken; repeatable.
    #[arg(long, env = "CONFIG_SYNC_TRUST", value_name = "FILE")]
    trust: Vec<PathBuf>,
    /// Name of this relay, for people [default: last part of STATE].
    #[arg(long, env = "CONFIG_SYNC_NAME")]
    name: Option<String>,
    /// Name of the cluster.
    #[arg(long, env = "CONFIG_SYNC_CLUSTER", default_value = "config-sync")]
    cluster: String,
    /// Name of the namespace.
    #[arg(long, env = "CONFIG_SYNC_NAMESPACE", default_value = "config", value_parser = namespace)]
    namespace: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    /// The files of the newest revision, each put in place by a rename.
    Flat,
    /// A directory for each revision, and a link `current` to the newest, switched by one rename.
    Versioned,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnFailureArg {
    /// They stay.
    Keep,
    /// Those of the revision for which it succeeded last are put back, and it runs for that one.
    Restore,
}

fn template(text: &str) -> Result<agent::Template, String> {
    let (source, dest) = text.rsplit_once(':').ok_or("a template is SRC:DEST")?;
    let dest = if dest == "." { "" } else { dest };
    Ok(agent::Template { source: source.into(), dest: dest.into() })
}

/// The name of one namespace; where there may be several, commas part them before this is asked.
fn namespace(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an empty name is none".into()),
        _ if text.contains(',') => Err("a comma parts namespaces, and this is for one alone".into()),
        _ => Ok(text.into()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label is NAME=VALUE")?;
    if name.is_empty() || name.len() > 96 || value.len() > 96 {
        return Err("name and value have at most 96 bytes, the name at least 1".into());
    }
    Ok((name.into(), value.into()))
}

fn serve_config(args: ServeArgs) -> Result<serve::Config, ProcessError> {
    let (namespace, further, dir) = namespaces(args.namespace, args.dir)?;
    let mut config = match dir {
        // Of several, none names the folder of all.
        Some(dir) if further.is_empty() => serve::Config::new(dir),
        dir => serve::Config { dir, ..serve::Config::without_dir("") },
    };
    config.bind = args.bind;
    config.control = args.control;
    config.state = args.state.unwrap_or(config.state);
    config.cluster = args.cluster;
    (config.namespace, config.further) = (namespace, further);
    config.secret = args.key.as_deref().map(keys::secret).transpose()?;
    config.keys = keys::trusted(&args.trust)?;
    config.secret.iter().for_each(|secret| config.keys.add(&secret.public()));
    config.new_epoch = args.new_epoch;
    config.allow_empty = args.allow_empty;
    config.replace = args.replace;
    config.rescan = Duration::from_secs(args.rescan.max(1));
    Ok(config)
}

/// The first namespace, the others, and the directory of the first.
fn namespaces(
    names: Vec<String>,
    dirs: Vec<PathBuf>,
) -> Result<(String, Vec<serve::Further>, Option<PathBuf>), ProcessError> {
    let refuse = |why: String| Err(ProcessError::Refused(why));
    let mut served: Vec<serve::Further> =
        names.into_iter().map(|name| serve::Further { name, dir: None }).collect();
    for dir in dirs {
        let whose = match &mut served[..] {
            [alone] => {
                let named = below(&dir, &alone.name).map(Path::to_owned);
                // A path may have `=` in it.
                let other = || Some(dir.to_str()?.split_once('=')?.0.to_owned());
                if let (None, false, Some(name)) = (&named, dir.is_dir(), other()) {
                    return refuse(format!(
                        "--dir {}: there is no such directory, and no namespace of that name is served \
                         (--namespace {name})",
                        dir.display()
                    ));
                }
                Some((alone, named.unwrap_or_else(|| dir.clone())))
            }
            several => {
                let of = |name: &str| Some(below(&dir, name)?.to_owned());
                let named = several.iter_mut().filter_map(|further| Some((of(&further.name)?, further)));
                // A name may begin with another and `=`.
                named.max_by_key(|(_, further)| further.name.len()).map(|(dir, further)| (further, dir))
            }
        };
        match whose {
            None => {
                return refuse(format!(
                    "--dir {}: with several namespaces it is NAME=DIR, of one of them",
                    dir.display()
                ));
            }
            Some((serve::Further { name, dir: Some(_) }, _)) => {
                return refuse(format!("--dir {}: the namespace {name} has a directory", dir.display()));
            }
            Some((further, dir)) => further.dir = Some(dir),
        }
    }
    if served.is_empty() {
        return refuse("no namespace (--namespace)".into());
    }
    let first = served.remove(0);
    Ok((first.name, served, first.dir))
}

/// The directory in NAME=DIR.
fn below<'p>(text: &'p Path, name: &str) -> Option<&'p Path> {
    use std::os::unix::ffi::OsStrExt;
    let dir = text.as_os_str().as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    Some(Path::new(std::ffi::OsStr::from_bytes(dir)))
}

fn relay_config(args: RelayArgs) -> Result<relay::Config, ProcessError> {
    let mut config = relay::Config::new(args.state);
    config.connect = args.connect;
    config.bind = args.bind;
    config.name = args.name.unwrap_or(config.name);
    config.keys = keys::trusted(&args.trust)?;
    config.cluster = args.cluster;
    config.namespace = args.namespace;
    Ok(config)
}

fn agent_config(args: AgentArgs) -> Result<agent::Config, ProcessError> {
    let mut config = agent::Config::new(args.out);
    config.connect = args.connect;
    config.state = args.state.unwrap_or(config.state);
    config.name = args.name.unwrap_or(config.name);
    config.layout = match args.layout {
        LayoutArg::Flat => agent::Layout::Flat,
        LayoutArg::Versioned => agent::Layout::Versioned { keep: args.keep as usize },
    };
    config.templates = args.template;
    config.labels = args.label;
    config.trust = keys::trusted(&args.trust)?;
    config.validate = args.validate;
    config.validate_limit = Duration::from_secs(args.validate_limit.max(1));
    config.on_change = args.on_change;
    config.hook_limit = Duration::from_secs(args.hook_limit);
    config.on_failure = match args.on_failure {
        OnFailureArg::Keep => agent::OnFailure::Keep,
        OnFailureArg::Restore => agent::OnFailure::Restore,
    };
    config.cluster = args.cluster;
    config.namespace = args.namespace;
    config.take_over = args.take_over;
    config.progress = std::io::stderr().is_terminal();
    Ok(config)
}

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let parsed = settings::apply(settings::without_empty(Cli::command()), &arguments)
        .map(|command| Cli::from_arg_matches(&command.get_matches_from(&arguments)));
    let cli = match parsed {
        Ok(Ok(cli)) => cli,
        Ok(Err(error)) => error.exit(),
        Err((code, why)) => {
            eprintln!("config-sync: {why}");
            return ExitCode::from(code);
        }
    };
    let command = match cli.command {
        // A signal ends these at once.
        Command::Operate(verb) => return operated(verb),
        other => other,
    };
    let (stopper, stop) = shutdown();
    if cli.tied {
        std::thread::spawn(|| {
            // Whoever started this process holds the other end; its death closes it, however it died.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let mut stopper = Some(stopper);
    if let Err(error) = ctrlc::set_handler(move || drop(stopper.take())) {
        eprintln!("signals will end this process without a farewell: {error}");
    }
    let log = Log::new(|line| eprintln!("{line}"));
    let ended = match command {
        Command::Serve(args) => serve_config(args).and_then(|config| serve::run(&config, &stop, &log)),
        Command::Agent(args) => agent_config(args).and_then(|config| agent::run(&config, &stop, &log)),
        Command::Relay(args) => relay_config(args).and_then(|config| relay::run(&config, &stop, &log)),
        Command::Keygen { file, id } => keys::generate(&file, id),
        Command::Resync { discard: _, state } => resync(&state),
        Command::Operate(verb) => return operated(verb),
        Command::Demo { verbose } => {
            return match demo::run(verbose, &stop) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    eprintln!("demo failed: {why}");
                    ExitCode::FAILURE
                }
            };
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("config-sync: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// What the folder holds of history is thrown away; who it is stays.
fn resync(state: &Path) -> Result<(), ProcessError> {
    let refuse = |why: &str| Err(ProcessError::Refused(format!("{} {why}", state.display())));
    if !state.join("identity").is_file() {
        return refuse("is no state folder");
    }
    if store::role(state) == Some(store::Role::Server) {
        return refuse("is the folder of a server; to begin anew there, see `serve --new-epoch`");
    }
    let mut store = Store::open(state)?;
    let newest = store.load(u64::MAX).newest;
    let conflict = store.conflict(None);
    store.discard()?;
    match (newest, conflict) {
        (Some((head, _)), Some((_, other))) => {
            println!("discarded: {}, beside {}", head.position, other.position)
        }
        (Some((head, _)), None) => println!("discarded: {}", head.position),
        (None, _) => println!("discarded: nothing was held"),
    }
    Ok(())
}

fn operated(verb: operate::Verb) -> ExitCode {
    match operate::run(verb).and_then(|()| files::printed()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(operate::Failed(code, why)) => {
            eprintln!("config-sync: {why}");
            ExitCode::from(code)
        }
    }
}
