//! The directory that an agent keeps: opened, claimed, and found again when somebody took it away.
//!
//! Owns: whose directory it is. Never: writes into one that holds something and was not this agent's, unless told to.

use std::path::Path;

use super::{Agent, Config};
use crate::folders;
use crate::layout::Kept;
use crate::process::ProcessError;
use crate::store::{NewDir, Store};
use crate::tree::TreeError;

/// Opens the directory, and a folder for files on their way; and those that were made for that, to be kept once the agent
/// has started.
pub(super) fn open(config: &Config, store: &Store) -> Result<(Kept, Vec<NewDir>), ProcessError> {
    let mut new = vec![NewDir::look(&config.out)];
    let open = |staging: &Path| Kept::open(config.layout, &config.out, staging);
    let output = match open(&store.dir().join("staging")) {
        Err(error @ TreeError::OtherFileSystem(..)) => match folders::beside(&config.out, ".staging") {
            Some(staging) => {
                new.push(NewDir::look(&staging));
                open(&staging)?
            }
            None => return Err(error.into()),
        },
        output => output?,
    };
    let out = config.out.canonicalize().unwrap_or_else(|_| config.out.clone());
    claim(store, &output, &out, config.take_over)?;
    Ok((output, new))
}

/// The directory is empty, or was this folder's before, or is taken over.
fn claim(store: &Store, output: &Kept, out: &Path, take_over: bool) -> Result<(), ProcessError> {
    use std::os::unix::ffi::OsStrExt;
    let mine = store.note(folders::OUT).is_some_and(|noted| noted == out.as_os_str().as_bytes());
    if !mine {
        if !output.is_empty()? && !take_over {
            return Err(ProcessError::Refused(format!(
                "{} is not empty and was not kept by this agent; what is not published would be deleted \
                 (--take-over does that)",
                out.display()
            )));
        }
        store.set_note(folders::OUT, out.as_os_str().as_bytes())?;
    }
    Ok(())
}

impl Agent<'_> {
    /// The directory that is open may have been taken away, or another put in its place: then what has its name now is
    /// opened, as at a start, and compared whole.
    pub(super) fn find_output(&mut self) -> Result<(), String> {
        if self.output.is_there() {
            return Ok(());
        }
        let (output, new) = open(self.config, &self.store).map_err(|e| e.to_string())?;
        new.into_iter().for_each(NewDir::keep);
        (self.output, self.dirty) = (output, true);
        self.log.say(format_args!(
            "{} was taken away or replaced while this process runs: it is kept anew",
            self.config.out.display()
        ));
        Ok(())
    }
}
