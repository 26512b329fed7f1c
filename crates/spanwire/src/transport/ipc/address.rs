//! Addresses of ipc: paths, and on Linux abstract names.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use socket2::SockAddr;

use crate::transport::invalid;

/// Longest path or abstract name in bytes: `sun_path` without its final or leading NUL (107 on Linux).
pub(super) const MAX_PATH: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

pub(super) const ABSTRACT: bool = cfg!(any(target_os = "android", target_os = "linux"));

/// An address as understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Abstract(Vec<u8>),
}

impl Place {
    pub(super) fn parse(url: &str) -> io::Result<Place> {
        let bad = |what: String| invalid(format!("bad address: {what}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no scheme".into()))?;
        if scheme == "abstract" {
            let name = unescape(rest).map_err(|what| bad(what.into()))?;
            return match name.len() {
                _ if !ABSTRACT => Err(bad("abstract names exist on Linux only".into())),
                n if n > MAX_PATH => Err(bad(format!("the name has {n} bytes, at most {MAX_PATH} fit"))),
                _ => Ok(Place::Abstract(name)),
            };
        }
        match rest.len() {
            0 => Err(bad("no path".into())),
            _ if rest.contains('\0') => Err(bad("NUL in the path".into())),
            n if n > MAX_PATH => Err(bad(format!("the path has {n} bytes, at most {MAX_PATH} fit"))),
            _ => Ok(Place::File(rest.into())),
        }
    }

    pub(super) fn address(&self) -> io::Result<SockAddr> {
        match self {
            Place::File(path) => SockAddr::unix(path),
            // Without any byte: the kernel chooses.
            Place::Abstract(name) if name.is_empty() => SockAddr::unix(""),
            Place::Abstract(name) => {
                use std::os::unix::ffi::OsStringExt;
                let with_nul = [b"\0", name.as_slice()].concat();
                SockAddr::unix(PathBuf::from(OsString::from_vec(with_nul)))
            }
        }
    }
}

fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    let hex = |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16)).map(|d| d as u8);
    let mut name = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'%' => match (hex(bytes.next()), hex(bytes.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err("'%' without two hexadecimal digits"),
            },
            byte => byte,
        });
    }
    Ok(name)
}

pub(super) fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            // Writing to a string does not fail.
            byte => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}
