//! Key files of config-sync: making and reading them.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use spanwire_config::process::ProcessError;
use spanwire_config::sign::{Keyring, Secret};

/// Makes a secret key at `file`, and its public one beside it.
pub(crate) fn generate(file: &Path, id: u32) -> Result<(), ProcessError> {
    let secret = Secret::generate(id).map_err(|e| refused(file, e))?;
    let public = beside(file);
    write(file, 0o600, &secret.to_file())?;
    write(&public, 0o644, &secret.public().to_file())?;
    eprintln!("secret key {}: {}, for the server alone (serve --key)", secret.id(), file.display());
    eprintln!("public key: {}, for every agent (agent --trust)", public.display());
    Ok(())
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Never over a file that is there: it may be the only copy of a key.
fn write(file: &Path, mode: u32, text: &str) -> Result<(), ProcessError> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(file);
    opened
        .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
        .map_err(|e| refused(file, e))
}

fn refused(file: &Path, why: impl Display) -> ProcessError {
    ProcessError::Refused(format!("{}: {why}", file.display()))
}

pub(crate) fn secret(file: &Path) -> Result<Secret, ProcessError> {
    let text = std::fs::read_to_string(file).map_err(|e| refused(file, e))?;
    Secret::from_file(&text).map_err(|e| refused(file, e))
}

/// Public keys of several files.
pub(crate) fn trusted(files: &[PathBuf]) -> Result<Keyring, ProcessError> {
    let mut ring = Keyring::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| refused(file, e))?;
        let more = Keyring::from_file(&text).map_err(|e| refused(file, e))?;
        if let Some(id) = more.ids().find(|id| ring.knows(*id)) {
            return Err(refused(file, format!("a second key of the number {id}")));
        }
        ring.add(&more);
    }
    Ok(ring)
}
