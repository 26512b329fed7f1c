//! What goes in and out of a verb: files, standard input, standard output.
//!
//! Owns: that a file is written whole or not at all, and that what could not be printed is found out. Never: the form of
//! what is written.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use spanwire_config::{Key, Limits, OverLimit};

use super::operate::{FILE, Failed, REFUSED, Res};

/// Why standard output does not take what is printed.
static LOST: OnceLock<String> = OnceLock::new();

/// All of a file, or of standard input.
pub(crate) fn input(file: &Path) -> Res<Vec<u8>> {
    let read = if file == Path::new("-") {
        let mut all = Vec::new();
        std::io::stdin().read_to_end(&mut all).map(|_| all)
    } else {
        fs::read(file)
    };
    read.map_err(|error| Failed(FILE, format!("{}: {error}", file.display())))
}

/// The value of a key, from a file or standard input: no more is read than it may have. `limit` is asked for the server's
/// where it is longer than that of most servers.
pub(crate) fn value(file: &Path, name: &Key, limit: impl FnOnce() -> Res<usize>) -> Res<Vec<u8>> {
    let failed = |error| Failed(FILE, format!("{}: {error}", file.display()));
    let open = || -> std::io::Result<(Box<dyn Read>, Option<usize>)> {
        if file == Path::new("-") {
            return Ok((Box::new(std::io::stdin().lock()), None));
        }
        let file = fs::File::open(file)?;
        let there = file.metadata()?;
        // A device or a pipe has as much as comes.
        let size = there.is_file().then(|| usize::try_from(there.len()).unwrap_or(usize::MAX));
        Ok((Box::new(file), size))
    };
    let (mut from, size) = open().map_err(failed)?;
    let mut value = Vec::new();
    let mut read_over = |limit: usize, value: &mut Vec<u8>| {
        let left = limit.saturating_add(1).saturating_sub(value.len()) as u64;
        from.by_ref().take(left).read_to_end(value).map_err(failed).map(|_| value.len() > limit)
    };
    if read_over(Limits::default().value, &mut value)? {
        let limit = limit()?;
        if read_over(limit, &mut value)? {
            let why = match size.filter(|size| *size > limit) {
                Some(size) => OverLimit::Value { key: name.clone(), size, limit }.to_string(),
                None => format!("the value of {name} has more than {limit} bytes; the limit is {limit}"),
            };
            return Err(Failed(REFUSED, why));
        }
    }
    Ok(value)
}

/// Writes a file, or to standard output. A link is followed; a new file is for its owner alone, since it may hold secrets.
pub(crate) fn output(file: &Path, bytes: &[u8]) -> Res<()> {
    if file == Path::new("-") {
        print_bytes(bytes);
        return printed();
    }
    write(file, bytes).map_err(|error| Failed(FILE, format!("{}: {error}", file.display())))
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let there = match fs::metadata(file) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        // A device or a pipe is written to, and stays what it is.
        let mut file = fs::OpenOptions::new().write(true).open(file)?;
        return file.write_all(bytes).and_then(|()| file.flush());
    }
    // Beside and renamed, so that nobody ever sees half of it. The link to a file stays.
    let file = if there.is_some() { file.canonicalize()? } else { file.to_owned() };
    let mut beside = file.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let made = (|| {
        let mut new =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        let mode = there.map_or(0o600, |there| there.permissions().mode() & 0o777);
        new.set_permissions(fs::Permissions::from_mode(mode))?;
        new.write_all(bytes)?;
        new.sync_all()?;
        fs::rename(&beside, &file)
    })();
    if made.is_err() {
        // It takes room, and is of no use.
        let _ = fs::remove_file(&beside);
    }
    made
}

/// Whether standard output takes more. That it has no reader any more is no error of ours; a verb without an end of its own
/// ends then. Any other trouble is told by [`printed`].
pub(crate) fn print(text: &str) -> bool {
    print_bytes(text.as_bytes())
}

/// The same.
pub(crate) fn print_bytes(bytes: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != ErrorKind::BrokenPipe {
                LOST.get_or_init(|| error.to_string());
            }
            false
        }
    }
}

/// Whether all that was printed is where it was to go.
pub(crate) fn printed() -> Res<()> {
    match LOST.get() {
        Some(why) => Err(Failed(FILE, format!("standard output: {why}; what was asked for is done"))),
        None => Ok(()),
    }
}
