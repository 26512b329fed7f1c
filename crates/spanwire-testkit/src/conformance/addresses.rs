//! Checks: addresses, good and bad.

use std::io::ErrorKind;

use spanwire::{Error, Pull, Push};

use super::{SOON, Setup};

/// An address can be bound again as soon as the close of its endpoint, or of its socket, has returned.
pub fn a_closed_address_is_free_again(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let at = setup.bind(&pull);
    let url = at.url().to_owned();
    at.close();
    pull.bind(&url).unwrap_or_else(|e| panic!("after the endpoint was closed: {e}"));
    pull.close(SOON).expect("it closes");
    let next = setup.on(Pull::builder()).build().expect("a socket");
    next.bind(&url).unwrap_or_else(|e| panic!("after the socket was closed: {e}"));
    drop(next);
    let last = setup.on(Pull::builder()).build().expect("a socket");
    last.bind(&url).unwrap_or_else(|e| panic!("after the socket was dropped: {e}"));
}

/// A second bind fails with `AddrInUse` and the address in its words; the first is not disturbed.
pub fn an_address_in_use_is_an_error_that_names_it(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let at = setup.bind(&pull);
    let other = setup.on(Pull::builder()).build().expect("a socket");
    for socket in [&other, &pull] {
        let error = socket.bind(at.url()).expect_err("the address is in use");
        assert!(error.to_string().contains(at.url()), "{error}");
        match error {
            Error::Bind { url, source } => {
                assert_eq!((url.as_str(), source.kind()), (at.url(), ErrorKind::AddrInUse), "{source}");
            }
            error => panic!("not an error of bind: {error:?}"),
        }
    }
    let push = setup.on(Push::builder()).build().expect("a socket");
    setup.connect(&push, at.url());
    push.send_timeout("undisturbed", SOON).expect("the peer is there");
    assert_eq!(pull.recv_timeout(SOON).expect("a message"), "undisturbed");
}

/// Bad addresses fail at once, in `bind` and `connect`, with `InvalidInput` and the address in the error's words.
/// A transport that only dials says so.
pub fn a_bad_address_is_an_error_that_names_it(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    for bad in &setup.bad_to_bind {
        let error = pull.bind(bad).err().unwrap_or_else(|| panic!("{bad:?} was bound"));
        // A dial-only transport need not look at what it cannot bind anyway.
        let kinds = [ErrorKind::InvalidInput, ErrorKind::Unsupported];
        let kinds = &kinds[..1 + usize::from(setup.cannot_bind.is_some())];
        check_error(&error, bad, kinds);
    }
    for bad in &setup.bad_to_dial {
        let error = pull.connect(bad).err().unwrap_or_else(|| panic!("{bad:?} was dialled"));
        check_error(&error, bad, &[ErrorKind::InvalidInput]);
    }
    if let Some(url) = &setup.cannot_bind {
        let error = pull.bind(url).err().unwrap_or_else(|| panic!("{url:?} was bound"));
        check_error(&error, url, &[ErrorKind::Unsupported]);
    }
}

#[track_caller]
fn check_error(error: &Error, url: &str, kinds: &[ErrorKind]) {
    assert!(error.to_string().contains(url), "the error does not name {url:?}: {error}");
    match error {
        Error::Bind { source, .. } | Error::Connect { source, .. } => {
            assert!(kinds.contains(&source.kind()), "{:?} for {url:?}: {error}", source.kind());
        }
        error => panic!("not an error of bind or connect for {url:?}: {error:?}"),
    }
}

/// Where there are ports, `:0` is one that was free, the endpoint tells which, and two get two.
pub fn port_zero_becomes_a_real_port(setup: &Setup) {
    if !setup.has_ports {
        return;
    }
    assert!(setup.fresh().ends_with(":0"), "a setup with ports gives addresses with port 0");
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let (a, b) = (setup.bind(&pull), setup.bind(&pull));
    for at in [&a, &b] {
        let port = at.url().rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        assert!(port.is_some_and(|port| port != 0), "{at}");
    }
    assert_ne!(a.url(), b.url());
    let push = setup.on(Push::builder()).build().expect("a socket");
    setup.connect(&push, a.url());
    push.send_timeout("by its real port", SOON).expect("the peer is there");
    assert_eq!(pull.recv_timeout(SOON).expect("a message"), "by its real port");
}
