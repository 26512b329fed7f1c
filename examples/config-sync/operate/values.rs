//! How revisions, times and ids are written on the command line.
//!
//! Owns: the form. Never: whether there is such a thing.

use std::time::Duration;

use spanwire_config::Id;

/// A revision as it is given: alone, or with its epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rev {
    pub(super) epoch: Option<u64>,
    pub(super) rev: u64,
}

impl std::str::FromStr for Rev {
    type Err = String;
    fn from_str(text: &str) -> Result<Rev, String> {
        let number = |text: &str| text.parse().map_err(|_| "a revision is REV or EPOCH:REV".to_owned());
        match text.split_once(':') {
            Some((epoch, rev)) => Ok(Rev { epoch: Some(number(epoch)?), rev: number(rev)? }),
            None => Ok(Rev { epoch: None, rev: number(text)? }),
        }
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "seconds are a number")?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "seconds are a number, not below 0".to_owned())
}

pub(super) fn id(text: &str) -> Result<Id, String> {
    let wrong = || "an id has 32 hex digits".to_owned();
    if text.len() != 32 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut id = [0; 16];
    for (byte, at) in id.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(Id(id))
}
