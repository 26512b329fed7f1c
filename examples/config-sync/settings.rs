//! Settings from a file: what neither the command line nor the environment says.
//!
//! The file is TOML. A table named like a verb holds its options under their long names; what stands above all tables
//! is for every verb that has such an option. They become defaults of the command line, so an option goes before the
//! environment, and that before the file.
//!
//! Owns: the form of the file. Never: a secret, which is always in a file of its own that an option names; nor what has
//! to be meant each time.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use super::operate::Rev;

/// What destroys something if it is meant once and stays: only on the command line.
const EACH_TIME: [&str; 7] = ["new-epoch", "replace", "take-over", "discard", "settings", "tied", "request"];

/// Gives `command` the defaults that the file has which the arguments or the environment name. `Err`: exit code and why.
pub(crate) fn apply(command: Command, arguments: &[OsString]) -> Result<Command, (u8, String)> {
    let Some(file) = file(arguments) else { return Ok(command) };
    let text = std::fs::read_to_string(&file).map_err(|error| (3, format!("{}: {error}", file.display())))?;
    let said = |why: String| (2, format!("{}: {why}", file.display()));
    let table: Table = text.parse().map_err(|error: toml::de::Error| said(error.to_string()))?;
    with(command, &table).map_err(said)
}

/// An address that the environment has empty is none: `CONFIG_SYNC_CONTROL=` is as good as not set.
pub(crate) fn without_empty(mut command: Command) -> Command {
    let empty = |arg: &Arg| {
        let addresses = arg.get_long().is_some_and(|name| ["control", "bind", "connect"].contains(&name));
        addresses && arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty())
    };
    let mut found = Vec::new();
    for verb in command.get_subcommands() {
        for arg in verb.get_arguments().filter(|arg| empty(arg)) {
            found.push((verb.get_name().to_owned(), arg.get_id().clone()));
        }
    }
    for (verb, id) in found {
        command = command
            .mut_subcommand(verb, |verb| verb.mut_arg(id, |arg| arg.env(clap::builder::Resettable::Reset)));
    }
    command
}

/// The file named by `--settings`, or by the environment. Clap, which would know better, comes after it.
fn file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = arguments.next() {
        if argument == "--settings" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(file) = argument.to_str().and_then(|text| text.strip_prefix("--settings=")) {
            return Some(file.into());
        }
    }
    std::env::var_os("CONFIG_SYNC_SETTINGS").filter(|file| !file.is_empty()).map(PathBuf::from)
}

fn with(mut command: Command, table: &Table) -> Result<Command, String> {
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let tables = |value: &Value| value.is_table();
    // What is for all first, so that a verb's own goes over it.
    for (name, value) in table.iter().filter(|(_, value)| !tables(value)) {
        let having: Vec<&String> = (verbs.iter())
            .filter(|verb| command.find_subcommand(verb).is_some_and(|verb| option(verb, name).is_some()))
            .collect();
        if having.is_empty() {
            return Err(format!("no verb has an option {name:?}"));
        }
        // What is wrong with it is so for all, and not for the first that there is.
        let wrong = |why: &str| format!("{name}, above all tables: {why}");
        let lists = lists(&command, &having, name);
        if value.is_array() && !lists.is_empty() && lists.len() < having.len() {
            return Err(wrong(&format!(
                "is for every verb that has it, and some take one: put the list into {}",
                lists.join(" or ")
            )));
        }
        for verb in having {
            command = set(command, verb, name, value).map_err(|why| wrong(&why))?;
        }
    }
    for (verb, own) in table.iter().filter_map(|(verb, value)| Some((verb, value.as_table()?))) {
        if !verbs.contains(verb) {
            return Err(match command.get_subcommands().any(|other| option(other, verb).is_some()) {
                true => format!("{verb}, above all tables: a text or a number, and no table"),
                false => format!("there is no verb {verb:?}"),
            });
        }
        for (name, value) in own {
            command = set(command, verb, name, value).map_err(|why| format!("{verb}: {name}: {why}"))?;
        }
    }
    Ok(command)
}

/// The option of a verb that a file may set.
fn option<'c>(verb: &'c Command, name: &str) -> Option<&'c Arg> {
    verb.get_arguments().find(|arg| arg.get_long() == Some(name) && !EACH_TIME.contains(&name))
}

/// The tables of those of these verbs that take a list of this option.
fn lists(command: &Command, verbs: &[&String], name: &str) -> Vec<String> {
    let takes = |verb: &&&String| {
        let arg = command.find_subcommand(verb).and_then(|verb| option(verb, name));
        arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Append))
    };
    verbs.iter().filter(takes).map(|verb| format!("[{verb}]")).collect()
}

/// `Err`: what is wrong, with an option that the caller names.
fn set(command: Command, verb: &str, name: &str, value: &Value) -> Result<Command, String> {
    let found = command.find_subcommand(verb).and_then(|verb| option(verb, name));
    let Some(arg) = found else {
        return Err(match EACH_TIME.contains(&name) {
            true => "only on the command line".into(),
            false => "there is no such option".into(),
        });
    };
    let (id, kind) = (arg.get_id().clone(), Kind::of(arg));
    let several = matches!(arg.get_action(), ArgAction::Append);
    let texts: Vec<String> = match value {
        Value::Array(values) if several => values.iter().map(|value| kind.text(value)).collect::<Option<_>>(),
        value => kind.text(value).map(|text| vec![text]),
    }
    .ok_or_else(|| match (kind.name(), several, value.is_array()) {
        (name, true, _) => format!("{name}, or a list of those"),
        (name, false, true) => format!("{name}, and no list"),
        (name, false, false) => name.to_owned(),
    })?;
    Ok(command.mut_subcommand(verb, |verb| verb.mut_arg(id, |arg| arg.required(false).default_values(texts))))
}

/// What a value has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Flag,
    Whole,
    Seconds,
    /// `7`, or `"2:7"`.
    Revision,
    Text,
}

impl Kind {
    fn of(arg: &Arg) -> Kind {
        let holds = arg.get_value_parser().type_id();
        let is = |of: &[TypeId]| of.iter().any(|of| holds == *of);
        match () {
            () if matches!(arg.get_action(), ArgAction::SetTrue) => Kind::Flag,
            () if is(&[TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]) => Kind::Whole,
            () if is(&[TypeId::of::<Duration>()]) => Kind::Seconds,
            () if is(&[TypeId::of::<Rev>()]) => Kind::Revision,
            () => Kind::Text,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Flag => "true or false",
            Kind::Whole => "a whole number, without quotes",
            Kind::Seconds => "a number, without quotes",
            Kind::Revision => "a number, or a text in quotes",
            Kind::Text => "a text in quotes",
        }
    }

    /// The value as it would stand on the command line, if it is of this kind.
    fn text(self, value: &Value) -> Option<String> {
        match (value, self) {
            (Value::Boolean(is), Kind::Flag) => Some(is.to_string()),
            (Value::Integer(number), Kind::Whole | Kind::Seconds | Kind::Revision) => {
                Some(number.to_string())
            }
            (Value::Float(number), Kind::Seconds) => Some(number.to_string()),
            (Value::String(text), Kind::Text | Kind::Revision) => Some(text.clone()),
            _ => None,
        }
    }
}
