//! Settings from a file: what neither the command line nor the environment says.
//!
//! The file is TOML. A table named like a verb holds its options under their long names; what stands above all tables
//! is for every verb that has such an option. They become defaults of the command line, so an option goes before the
//! environment, and that before the file.
//!
//! Owns: the form of the file. Never: a secret, which is always in a file of its own that an option names; nor what has
//! to be meant each time.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

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
    let (id, is_flag) = (arg.get_id().clone(), matches!(arg.get_action(), ArgAction::SetTrue));
    let several = matches!(arg.get_action(), ArgAction::Append);
    let texts: Vec<String> = match value {
        Value::Array(values) if several => values.iter().map(text).collect::<Option<_>>(),
        value => text(value).map(|text| vec![text]),
    }
    .filter(|_| !is_flag || value.is_bool())
    .ok_or(match (is_flag, several) {
        (true, _) => "true or false",
        (_, true) => "a text, a number, or a list of those",
        (_, false) => "a text or a number, and no list",
    })?;
    Ok(command.mut_subcommand(verb, |verb| verb.mut_arg(id, |arg| arg.required(false).default_values(texts))))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}
