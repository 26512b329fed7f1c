//! The command line: which options each socket type has.
//!
//! An option that means nothing for a type does not exist there, so clap refuses it with a text that names it.
//!
//! Owns: names, defaults and help of all options. Never: opens a socket.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
  0    all that was asked for happened; without --count, also an end by signal or by a closed output
  1    an error; or the output was closed before --count was reached
  2    wrong usage, or an address that cannot be one
  3    a timeout passed
  4    messages were still undelivered at the end of --linger
  130  stopped by a signal before it was done (4 if messages were left)

URL is tcp://HOST:PORT, ipc://PATH or the like; SEC is seconds, fractions allowed.";

/// Scalability-protocol sockets from the shell: sends, receives, asks and answers.
#[derive(Debug, Parser)]
#[command(name = "spanwire", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) socket: Type,
}

/// The socket types.
#[derive(Debug, Subcommand)]
pub(crate) enum Type {
    /// Send each message to one of the pull peers
    Push(Sender),
    /// Print what push peers send
    Pull(Receiver),
    /// Send each message to all sub peers that are there: to none, too; --peers waits for some
    Pub(Sender),
    /// Print what pub peers send, as far as it is subscribed
    Sub(Subscriber),
    /// Send a request and print its reply
    Req(Requester),
    /// Print requests, and answer each with the data; without data none is answered
    Rep(Replier),
    /// Talk with one peer: send the data, if any, and print what comes
    Pair(Both),
}

#[derive(Debug, Args)]
#[command(mut_group("source", |source| source.required(true)))]
pub(crate) struct Sender {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) sending: Sending,
    /// Send N times; with no interval one right after the other [default: 1, or for ever with --interval]
    #[arg(long, short = 'C', value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Receiver {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) receiving: Receiving,
    /// End after N messages [default: never]
    #[arg(long, short = 'C', value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Subscriber {
    #[command(flatten)]
    pub(crate) receiver: Receiver,
    /// Subscribe to messages that begin with PREFIX; repeatable [default: everything]
    #[arg(long, value_name = "PREFIX", allow_hyphen_values = true)]
    pub(crate) subscribe: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(mut_group("source", |source| source.required(true)))]
pub(crate) struct Requester {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) sending: Sending,
    #[command(flatten)]
    pub(crate) receiving: Receiving,
    /// Repeat an unanswered request every SEC; 0: never, not even when its connection ends [default: 60]
    #[arg(long, value_name = "SEC", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) resend: Option<Duration>,
    /// Send N requests [default: 1, or for ever with --interval]
    #[arg(long, short = 'C', value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Replier {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) receiving: Receiving,
    /// End after N requests [default: never]
    #[arg(long, short = 'C', value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Both {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) sending: Sending,
    #[command(flatten)]
    pub(crate) receiving: Receiving,
    /// End after N messages have come; 0: once the data is sent [default: never]
    #[arg(long, short = 'C', value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) ends: Ends,
    /// After the last send wait up to SEC until everything is handed over (for the sends: --send-timeout)
    #[arg(long, value_name = "SEC", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    pub(crate) linger: Duration,
    /// Tell on the error output what the socket sees: addresses, peers, drops
    #[arg(long)]
    pub(crate) events: bool,
}

/// Where to. All are repeatable and may be mixed.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Ends {
    /// Listen at URL; repeatable
    #[arg(long, value_name = "URL")]
    pub(crate) bind: Vec<String>,
    /// Connect to URL, again and again until it is there; repeatable
    #[arg(long, value_name = "URL")]
    pub(crate) connect: Vec<String>,
    /// Listen at tcp://127.0.0.1:PORT
    #[arg(long, short = 'L', value_name = "PORT")]
    bind_local: Vec<u16>,
    /// Connect to tcp://127.0.0.1:PORT
    #[arg(long, short = 'l', value_name = "PORT")]
    connect_local: Vec<u16>,
    /// Listen at ipc://PATH
    #[arg(long, short = 'X', value_name = "PATH")]
    bind_ipc: Vec<String>,
    /// Connect to ipc://PATH
    #[arg(long, short = 'x', value_name = "PATH")]
    connect_ipc: Vec<String>,
}

impl Ends {
    /// All addresses to listen at.
    pub(crate) fn binds(&self) -> impl Iterator<Item = String> + '_ {
        urls(&self.bind, &self.bind_local, &self.bind_ipc)
    }

    /// All addresses to connect to.
    pub(crate) fn connects(&self) -> impl Iterator<Item = String> + '_ {
        urls(&self.connect, &self.connect_local, &self.connect_ipc)
    }
}

fn urls<'a>(full: &'a [String], ports: &'a [u16], paths: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let ports = ports.iter().map(|port| format!("tcp://127.0.0.1:{port}"));
    full.iter().cloned().chain(ports).chain(paths.iter().map(|path| format!("ipc://{path}")))
}

/// What to send; who cannot do without it requires the group.
#[derive(Debug, Args)]
#[group(id = "source", multiple = false)]
pub(crate) struct Source {
    /// Send STR
    #[arg(long, short = 'D', value_name = "STR", allow_hyphen_values = true)]
    pub(crate) data: Option<OsString>,
    /// Send what is in the file, as one message; - is the standard input
    #[arg(long, short = 'F', value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Sending {
    /// Send again every SEC
    #[arg(long, short = 'i', value_name = "SEC", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) interval: Option<Duration>,
    /// Wait for SEC before sending
    #[arg(long, short = 'd', value_name = "SEC", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) delay: Option<Duration>,
    /// Before sending wait until N peers are there, for --send-timeout at most
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) peers: usize,
    /// Give up when a message cannot be sent for SEC [default: never: push to nobody waits for ever]
    #[arg(long, value_name = "SEC", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) send_timeout: Option<Duration>,
}

impl Sending {
    /// Whether any was given.
    pub(crate) fn any(&self) -> bool {
        let Sending { interval, delay, peers, send_timeout } = self;
        interval.is_some() || delay.is_some() || *peers > 0 || send_timeout.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Receiving {
    #[command(flatten)]
    format: Formats,
    /// Give up when nothing comes for SEC [default: never]
    #[arg(long, value_name = "SEC", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) recv_timeout: Option<Duration>,
    /// Close a connection whose peer announces a message of more than BYTES [default: 1 MiB]
    #[arg(long, short = 'Z', value_name = "BYTES")]
    pub(crate) recv_max: Option<usize>,
}

impl Receiving {
    /// The one format that was chosen.
    pub(crate) fn format(&self) -> Format {
        let Formats { format, raw: _, ascii, quoted, hex } = &self.format;
        match (format, ascii, quoted, hex) {
            (Some(format), ..) => *format,
            (_, true, ..) => Format::Ascii,
            (_, _, true, _) => Format::Quoted,
            (_, _, _, true) => Format::Hex,
            _ => Format::Raw,
        }
    }
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Formats {
    /// How to print a message [default: raw]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// As it is, with nothing in between
    #[arg(long)]
    raw: bool,
    /// A line each; what is not printable ASCII becomes a dot
    #[arg(long, short = 'A')]
    ascii: bool,
    /// A line each, in double quotes, with C-like escapes
    #[arg(long, short = 'Q')]
    quoted: bool,
    /// A line each, in double quotes, all bytes as \xNN
    #[arg(long)]
    hex: bool,
}

/// How a message is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// As it is, with nothing in between
    Raw,
    /// A line each; what is not printable ASCII becomes a dot
    Ascii,
    /// A line each, in double quotes, with C-like escapes
    Quoted,
    /// A line each, in double quotes, all bytes as \xNN
    Hex,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|_| "must be 0 or more, and not endless".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[track_caller]
    fn refused(line: &str, names: &str) {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(names), "{error}");
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_option_that_does_not_fit_the_type_is_refused_by_name() {
        refused("spanwire push -L 1 --data x --subscribe a", "--subscribe");
        refused("spanwire push -L 1 --data x --ascii", "--ascii");
        refused("spanwire pull -L 1 --data x", "--data");
        refused("spanwire sub -L 1 --interval 1", "--interval");
        refused("spanwire rep -L 1 --data x --interval 1", "--interval");
        refused("spanwire pub -L 1 --data x --recv-timeout 1", "--recv-timeout");
        refused("spanwire pull -L 1 --recv-timeout -1", "--recv-timeout <SEC>': must be 0 or more");
    }

    #[test]
    fn an_address_is_needed_and_data_where_it_is_sent() {
        refused("spanwire pull", "--bind");
        refused("spanwire push -L 1", "--data");
        refused("spanwire req -l 1", "--data");
        refused("spanwire push -L 1 --data x --file y", "--file");
        assert!(parse("spanwire rep -L 1").is_ok());
        assert!(parse("spanwire pair -L 1").is_ok());
    }

    #[test]
    fn addresses_of_all_forms_mix() {
        let cli = parse(
            "spanwire pull --bind tcp://a:1 -L 2 -X /s --connect tcp://b:3 -l 4 -x /t --bind tcp://c:5",
        );
        let Ok(Cli { socket: Type::Pull(args) }) = cli else { panic!("{cli:?}") };
        let ends = &args.common.ends;
        let binds: Vec<_> = ends.binds().collect();
        assert_eq!(binds, ["tcp://a:1", "tcp://c:5", "tcp://127.0.0.1:2", "ipc:///s"]);
        assert_eq!(ends.connects().collect::<Vec<_>>(), ["tcp://b:3", "tcp://127.0.0.1:4", "ipc:///t"]);
    }

    #[test]
    fn one_format_is_chosen_and_two_are_refused() {
        let format = |line: &str| match parse(line).expect(line).socket {
            Type::Pull(args) => args.receiving.format(),
            other => panic!("{other:?}"),
        };
        assert_eq!(format("spanwire pull -L 1"), Format::Raw);
        assert_eq!(format("spanwire pull -L 1 -A"), Format::Ascii);
        assert_eq!(format("spanwire pull -L 1 -Q"), Format::Quoted);
        assert_eq!(format("spanwire pull -L 1 --hex"), Format::Hex);
        assert_eq!(format("spanwire pull -L 1 --format ascii"), Format::Ascii);
        refused("spanwire pull -L 1 --hex --ascii", "--ascii");
    }

    #[test]
    fn seconds_may_have_a_fraction_and_must_be_sane() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for bad in ["-1", "nan", "inf", "1e300", "soon", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
