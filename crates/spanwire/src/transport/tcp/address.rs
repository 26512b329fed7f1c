//! Addresses of tcp as people write them.
//!
//! Owns: their meaning, and the words for what is wrong with one. Never: a look-up.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::transport::{address, invalid, sys};

/// A host as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// `*`, or nothing.
    Any,
    /// An address; the scope is 0 where it has none.
    Ip(IpAddr, u32),
    /// An interface, or a name to look up.
    Name(String),
}

impl Host {
    fn parse(text: &str) -> Result<Host, String> {
        if text.is_empty() || text == "*" {
            return Ok(Host::Any);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or("'[' without ']'")?;
            let (ip, scope) = match inner.split_once('%') {
                None => (inner, 0),
                Some((ip, zone)) => {
                    let index = zone.parse().ok().or_else(|| sys::interface_index(zone));
                    (ip, index.ok_or_else(|| format!("no network interface {zone:?}"))?)
                }
            };
            let ip: Ipv6Addr = ip.parse().map_err(|_| format!("{ip:?} is not an IPv6 address"))?;
            return Ok(Host::Ip(ip.into(), scope));
        }
        if text.contains(':') {
            return Err("an IPv6 address needs brackets, as in [::1]".into());
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Ip(ip.into(), 0));
        }
        // An interface may be called eth0.1 or br_lan; what no name can hold is a mistake in the address.
        if let Some(bad) =
            text.chars().find(|c| c.is_whitespace() || c.is_control() || "/?#@[];\\".contains(*c))
        {
            return Err(format!("{bad:?} in host name"));
        }
        if text.len() > 253 {
            return Err("host name is longer than 253 bytes".into());
        }
        // What looks like an IPv4 address and is none would be asked of the resolver, which has ideas of its own.
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(format!("{text:?} is not an IPv4 address"));
        }
        Ok(Host::Name(text.to_owned()))
    }

    pub(super) fn addr(ip: IpAddr, scope: u32, port: u16) -> SocketAddr {
        match ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Any => f.write_str("*"),
            Host::Ip(ip, _) => ip.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// An address as written: the source to connect from, the host, the port.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) source: Option<Host>,
    pub(super) host: Host,
    pub(super) port: u16,
}

pub(super) fn parse(url: &str) -> io::Result<Parsed> {
    let rest = address(url, "tcp")?;
    let bad = |what: String| invalid(format!("bad address: {what}"));
    let (source, rest) = match rest.split_once(';') {
        Some((source, rest)) => (Some(Host::parse(source).map_err(bad)?), rest),
        None => (None, rest),
    };
    let (host, port) = match rest.rsplit_once(':') {
        // `[::1]` and `::1` end in what is no port.
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => return Err(bad("no port".into())),
    };
    let host = Host::parse(host).map_err(bad)?;
    // `parse` alone would take "+5".
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits);
    let port = port.ok_or_else(|| bad("the port is not a number from 0 to 65535".into()))?;
    Ok(Parsed { source, host, port })
}
