//! Where the store of each namespace lies in the state folder of a server.
//!
//! Served alone, a namespace has the folder itself. Of several, each has a state folder of its own in `namespaces/`,
//! but for the one whose log lies in the folder itself since it was served alone. So what was served alone may get
//! company, and each of several may be served alone again.
//!
//! Owns: names of folders. Never: creates one, or opens a store.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Config;
use super::open::LOG_DIR;
use crate::process::ProcessError;
use crate::source::namespace_of;
use crate::store::{self, StoreError};

/// What is in the state folder for each of several namespaces.
const NAMESPACES: &str = "namespaces";
/// Longest name of a folder, but for what tells two apart that begin with the same.
const MAX_FOLDER: usize = 160;

/// Of which namespace the store in the state folder itself is.
enum Held {
    /// There is none.
    Nothing,
    Of(String),
    /// It is damaged, where it says that.
    Unknown,
}

/// The folder of each namespace that is served, in their order.
pub(super) fn places(config: &Config) -> Result<Vec<PathBuf>, ProcessError> {
    let root = &config.state;
    let held = held(root, config.limits.bytes)?;
    let alone = config.further.is_empty();
    if !alone {
        let log = root.join(LOG_DIR);
        let other = match &held {
            Held::Of(name) if config.names().all(|served| served != name) => {
                format!(
                    "holds the namespace {name}: name that too (--namespace), or another state folder (--state)"
                )
            }
            Held::Unknown => "is damaged: start with its namespace alone, which says what to do".into(),
            _ => String::new(),
        };
        if !other.is_empty() {
            return Err(ProcessError::Refused(format!("{} {other}", log.display())));
        }
    }
    let several = root.join(NAMESPACES).is_dir();
    config.names().map(|name| place(root, name, &held, alone, several)).collect()
}

fn place(root: &Path, name: &str, held: &Held, alone: bool, several: bool) -> Result<PathBuf, ProcessError> {
    let own = root.join(NAMESPACES).join(folder(name));
    match held {
        Held::Of(held) if held == name && own.is_dir() => Err(ProcessError::Refused(format!(
            "there are two stores of the namespace {name}, in {} and {}: take one of them away",
            root.join(LOG_DIR).display(),
            own.display()
        ))),
        Held::Of(held) if held == name => Ok(root.to_owned()),
        Held::Nothing if alone && !several => Ok(root.to_owned()),
        // What it is of is said where it is opened.
        Held::Of(_) | Held::Unknown if alone && !own.is_dir() => Ok(root.to_owned()),
        _ => Ok(own),
    }
}

/// Folders of namespaces that are not served now, and which those are, where that can be told.
pub(super) fn left_out(
    config: &Config,
    served: &[PathBuf],
) -> Result<Vec<(PathBuf, Option<String>)>, ProcessError> {
    let (root, most) = (&config.state, config.limits.bytes);
    let there = std::fs::read_dir(root.join(NAMESPACES)).into_iter().flatten();
    let mut left: Vec<PathBuf> = there.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // What else lies there is nobody's.
    left.retain(|path| !served.contains(path) && path.is_dir());
    left.sort();
    let name = |folder: &Path| match held(folder, most) {
        Ok(Held::Of(name)) => Some(name),
        _ => None,
    };
    let mut all: Vec<_> = left.into_iter().map(|folder| (folder.clone(), name(&folder))).collect();
    if !served.contains(root) && !matches!(held(root, most)?, Held::Nothing) {
        // The folder itself is the server's, and holds the others.
        all.insert(0, (root.join(LOG_DIR), name(root)));
    }
    Ok(all)
}

fn held(root: &Path, most: u64) -> Result<Held, ProcessError> {
    let dir = root.join(LOG_DIR);
    let path = dir.join("log");
    let mut first = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(1024).read_to_end(&mut first));
    match read {
        Ok(_) => Ok(namespace_of(&first).map_or(Held::Unknown, Held::Of)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if ["mark", "opens"].iter().any(|name| dir.join(name).exists()) {
                return Ok(Held::Unknown);
            }
            // A state folder of the form without a log.
            Ok(store::peek(root, most).map_or(Held::Nothing, |(head, _)| Held::Of(head.namespace)))
        }
        Err(error) => Err(StoreError::Io { path, error }.into()),
    }
}

/// A name that any file system takes, and that is another for another namespace.
fn folder(name: &str) -> String {
    let mut out = String::new();
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'.' if at == 0 => out.push_str("%2E"),
            b'-' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    if out.is_empty() {
        out.push('%');
    }
    if out.len() > MAX_FOLDER {
        out.truncate(MAX_FOLDER);
        out.push('~');
        out.push_str(&blake3::hash(name.as_bytes()).to_hex()[..32]);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_namespace_has_a_folder_of_its_own_below_the_state_folder() {
        assert_eq!(folder("team-1.web_x"), "team-1.web_x");
        let long = "é".repeat(64);
        let names = ["", ".", "..", "a", "a/b", "a%2Fb", "a\0b", "/etc", "é", &long, &"é".repeat(63), "~"];
        let folders: BTreeSet<String> = names.iter().map(|name| folder(name)).collect();
        assert_eq!(folders.len(), names.len(), "{folders:?}");
        for folder in folders {
            let parts: Vec<_> = Path::new(&folder).components().collect();
            assert!(matches!(parts[..], [std::path::Component::Normal(_)]), "{folder}");
            assert!(folder.len() <= 200 && folder.is_ascii(), "{folder}");
        }
    }
}
