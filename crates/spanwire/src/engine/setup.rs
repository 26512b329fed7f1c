//! Endpoints of a socket: binding, connecting, and trying again.
//!
//! An attempt of a dialer: resolve if it must (on a thread of its own), dial the first address, a further one
//! whenever one fails or does not answer for a while, and after the last failure wait for the backoff. What
//! was dialled first and attached first wins; the others are let go.
//!
//! Owns: the rules of attempts. Never: dials under the lock.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::contain::{contain, dispose};
use super::core::{Alarm, Core, Fresh, Phase, State, Trash};
use super::drive::{Door, Job};
use super::endpoint::{Backoff, Endpoint, EndpointConfig, Kind, NEXT_ADDRESS};
use crate::error::Error;
use crate::events::Event;
use crate::protocol::{PipeId, Reason, Time};
use crate::transport::{self, Dialer, Listener, Registrar, Target, Transport};

impl Core {
    fn transport(&self, url: &str) -> Result<Arc<dyn Transport>, Error> {
        let unknown = || {
            let mut known = transport::scheme_names();
            known.extend(self.cfg.schemes.names());
            known.sort_unstable();
            known.dedup();
            Error::UnknownScheme { url: url.to_owned(), known: known.join(", ") }
        };
        let (scheme, _) = url.split_once("://").ok_or_else(unknown)?;
        self.cfg.schemes.get(scheme).or_else(|| transport::lookup(scheme)).ok_or_else(unknown)
    }

    /// Binds; returns the endpoint's number and its real address.
    pub(crate) fn bind(&self, url: &str, cfg: EndpointConfig) -> Result<(u32, String), Error> {
        self.check_open()?;
        let transport = self.transport(url)?;
        let failed = |source: io::Error| Error::Bind { url: url.to_owned(), source };
        let mut listener = transport.listen(url, &self.cfg.options).map_err(failed)?;
        let real = listener.url();
        let token = self.lock().tokens.insert(());
        let registrar = Registrar {
            registry: &self.registry,
            token: mio::Token(token),
            notifier: self.notes.notifier(mio::Token(token)),
        };
        if let Err(e) = listener.register(&registrar) {
            self.lock().tokens.try_remove(token);
            return Err(failed(e));
        }
        Ok((self.add_listener(listener, token, &real, cfg)?, real))
    }

    fn add_listener(
        &self,
        listener: Box<dyn Listener>,
        token: usize,
        real: &str,
        cfg: EndpointConfig,
    ) -> Result<u32, Error> {
        let mut st = self.lock();
        if st.is_closed() {
            st.tokens.try_remove(token);
            drop(st);
            return Err(Error::Closed);
        }
        let url: Arc<str> = real.into();
        let endpoint = next_number(&mut st);
        let door = Door::new(listener);
        let kind = Kind::Listener { token, door: door.clone() };
        st.endpoints.insert(endpoint, Endpoint { url: url.clone(), cfg, kind });
        st.fresh.push(Fresh::Listener { endpoint, token, url, door });
        st.emit(Event::Listening { endpoint, url: real.to_owned() });
        self.finish(st);
        Ok(endpoint)
    }

    /// Adds a dialer; returns the endpoint's number at once.
    pub(crate) fn connect(&self, url: &str, cfg: EndpointConfig) -> Result<u32, Error> {
        self.check_open()?;
        let transport = self.transport(url)?;
        let dialer = transport
            .dialer(url, &self.cfg.options)
            .map_err(|source| Error::Connect { url: url.to_owned(), source })?;
        let mut st = self.lock();
        if st.is_closed() {
            return Err(Error::Closed);
        }
        let endpoint = next_number(&mut st);
        let kind = Kind::Dialer {
            dialer: dialer.into(),
            backoff: Backoff::new(cfg.reconnect_min, cfg.reconnect_max),
            targets: VecDeque::new(),
            attempts: Vec::new(),
            pipe: None,
            since: Time::ZERO,
            resolving: false,
            waiting: false,
        };
        st.endpoints.insert(endpoint, Endpoint { url: url.into(), cfg, kind });
        self.start_attempt(&mut st, endpoint);
        self.finish(st);
        Ok(endpoint)
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        if self.lock().is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Ends an endpoint: nothing new comes from it, and its pipes close once what is queued on them has left.
    pub(crate) fn close_endpoint(&self, endpoint: u32) {
        if self.forked() {
            return;
        }
        let mut st = self.lock();
        self.end_endpoint(&mut st, endpoint);
        for id in st.pipes.ids() {
            if st.pipes.get(id).is_some_and(|p| p.info.endpoint == endpoint) {
                self.call(&mut st, |protocol, cx| {
                    cx.finish(id, Reason::Local);
                    protocol.writable(cx, id); // no more: nobody is to wait for room there
                });
            }
        }
        // The address must be free when this returns: the listener is not left to whoever unlocks next.
        let listener = std::mem::take(&mut st.trash);
        self.finish(st);
        dispose(listener);
    }

    /// No more connections through this endpoint; its pipes stay.
    pub(crate) fn end_endpoint(&self, st: &mut State, endpoint: u32) {
        let Some(ended) = st.endpoints.remove(&endpoint) else { return };
        st.alarms
            .retain(|(_, alarm)| *alarm != Alarm::Dial(endpoint) && *alarm != Alarm::NextTarget(endpoint));
        match &ended.kind {
            Kind::Listener { token, door } => {
                st.trash.push(Trash::Listener(door.close()));
                st.fresh.push(Fresh::Drop { token: *token });
            }
            Kind::Dialer { attempts, .. } => {
                for &token in attempts {
                    st.fresh.push(Fresh::Drop { token });
                }
            }
        }
        st.trash.push(Trash::Endpoint(ended));
        st.emit(Event::EndpointClosed { endpoint });
    }

    // ------------------------------------------------------------ attempts

    /// Begins an attempt: resolve, or dial.
    pub(crate) fn start_attempt(&self, st: &mut State, endpoint: u32) {
        let Some(e) = st.endpoints.get_mut(&endpoint) else { return };
        let Kind::Dialer { dialer, resolving, waiting, pipe, .. } = &mut e.kind else { return };
        *waiting = false;
        if *resolving || pipe.is_some() {
            return;
        }
        if dialer.needs_resolve() {
            *resolving = true;
            let dialer = dialer.clone();
            st.totals.connects += 1;
            st.jobs.push(Job::Resolve { endpoint, dialer });
        } else {
            st.totals.connects += 1;
            self.dial(st, endpoint, None);
        }
    }

    fn dial(&self, st: &mut State, endpoint: u32, target: Option<Target>) {
        let token = st.tokens.insert(());
        let Some(e) = st.endpoints.get_mut(&endpoint) else {
            st.tokens.try_remove(token);
            return;
        };
        let url = e.url.clone();
        let Kind::Dialer { dialer, attempts, targets, .. } = &mut e.kind else { return };
        attempts.push(token);
        let more = !targets.is_empty();
        let dialer = dialer.clone();
        st.jobs.push(Job::Dial { endpoint, url, token, dialer, target });
        if more {
            st.set_alarm(Time::now() + NEXT_ADDRESS, Alarm::NextTarget(endpoint));
        }
    }

    pub(crate) fn dial_next_target(&self, st: &mut State, endpoint: u32) {
        let Some(e) = st.endpoints.get_mut(&endpoint) else { return };
        let Kind::Dialer { targets, pipe: None, .. } = &mut e.kind else { return };
        if let Some(target) = targets.pop_front() {
            self.dial(st, endpoint, Some(target));
        }
    }

    /// Looks a name up on a thread of its own: a resolver that hangs delays only its own dialer.
    pub(crate) fn spawn_resolver(&self, endpoint: u32, dialer: Arc<dyn Dialer>) {
        let core = self.me.clone();
        let work = move || {
            let found = contain(|| dialer.resolve());
            if let Some(core) = core.upgrade() {
                core.resolved(endpoint, found);
            }
        };
        let spawned = std::thread::Builder::new().name("spanwire-resolve".into()).spawn(work);
        if let Err(e) = spawned {
            self.resolved(endpoint, Err(e));
        }
    }

    fn resolved(&self, endpoint: u32, found: io::Result<Vec<Target>>) {
        let mut st = self.lock();
        let Some(e) = st.endpoints.get_mut(&endpoint) else { return };
        let url = e.url.to_string();
        let Kind::Dialer { resolving, targets, .. } = &mut e.kind else { return };
        *resolving = false;
        match found {
            Ok(list) if !list.is_empty() => {
                *targets = list.into();
                self.dial_next_target(&mut st, endpoint);
            }
            Ok(_) => self.connect_failed(&mut st, endpoint, url, "the name has no addresses".into()),
            Err(e) => self.connect_failed(&mut st, endpoint, url, e.to_string()),
        }
        self.finish(st);
    }

    fn connect_failed(&self, st: &mut State, endpoint: u32, url: String, error: String) {
        st.totals.connect_errors += 1;
        st.emit(Event::ConnectFailed { endpoint, url, error });
        self.go_on(st, endpoint);
    }

    /// `dial` itself said no.
    pub(crate) fn attempt_failed(
        &self,
        st: &mut State,
        endpoint: u32,
        token: usize,
        url: String,
        error: String,
    ) {
        forget_attempt(st, endpoint, token);
        self.connect_failed(st, endpoint, url, error);
    }

    /// A connection on its way came to nothing.
    pub(crate) fn opening_failed(
        &self,
        st: &mut State,
        endpoint: u32,
        token: usize,
        remote: String,
        established: bool,
        reason: Reason,
    ) {
        let mine = forget_attempt(st, endpoint, token);
        if established {
            st.totals.rejected += 1;
            st.emit(Event::Rejected { endpoint, remote, reason });
        } else {
            st.totals.connect_errors += 1;
            let url = st.endpoints.get(&endpoint).map(|e| e.url.to_string()).unwrap_or_default();
            let error = match reason {
                Reason::Broken(text) => text,
                reason => reason.to_string(),
            };
            st.emit(Event::ConnectFailed { endpoint, url, error });
        }
        if mine {
            self.go_on(st, endpoint);
        }
    }

    /// An attempt ended without a pipe: the next address, or the backoff.
    fn go_on(&self, st: &mut State, endpoint: u32) {
        let random = st.random();
        let give_up = st.phase == Phase::Closed;
        let Some(e) = st.endpoints.get_mut(&endpoint) else { return };
        let Kind::Dialer { backoff, targets, attempts, pipe: None, resolving: false, waiting, .. } =
            &mut e.kind
        else {
            return;
        };
        if !targets.is_empty() {
            return self.dial_next_target(st, endpoint);
        }
        if !attempts.is_empty() || *waiting || give_up {
            return;
        }
        if !e.cfg.reconnect {
            return self.end_endpoint(st, endpoint);
        }
        *waiting = true;
        let delay = backoff.next(random);
        st.set_alarm(Time::now() + delay, Alarm::Dial(endpoint));
        st.emit(Event::ConnectRetry { endpoint, delay });
    }

    /// Whether this connection on its way is still one that its dialer wants.
    pub(crate) fn is_attempt(&self, st: &State, endpoint: u32, token: usize) -> bool {
        st.endpoints
            .get(&endpoint)
            .is_some_and(|e| matches!(&e.kind, Kind::Dialer { attempts, .. } if attempts.contains(&token)))
    }

    /// A pipe attached: other connections of the attempt are let go.
    pub(crate) fn attempt_succeeded(&self, st: &mut State, endpoint: u32, token: usize, id: PipeId) {
        let Some(e) = st.endpoints.get_mut(&endpoint) else { return };
        let Kind::Dialer { attempts, targets, pipe, since, .. } = &mut e.kind else { return };
        targets.clear();
        *since = Time::now();
        *pipe = Some(id);
        for other in std::mem::take(attempts) {
            if other != token {
                st.fresh.push(Fresh::Drop { token: other });
            }
        }
        st.alarms.retain(|(_, alarm)| *alarm != Alarm::NextTarget(endpoint));
    }

    /// A pipe of this endpoint is gone.
    pub(crate) fn endpoint_lost(&self, st: &mut State, endpoint: u32, id: PipeId, why: &Reason) {
        let Some(e) = st.endpoints.get_mut(&endpoint) else { return };
        let Kind::Dialer { backoff, pipe, since, .. } = &mut e.kind else { return };
        if *pipe == Some(id) {
            *pipe = None;
            backoff.lived(Time::now() - *since, why);
            self.go_on(st, endpoint);
        }
    }
}

fn next_number(st: &mut State) -> u32 {
    st.next_endpoint = st.next_endpoint.wrapping_add(1);
    st.next_endpoint
}

/// `true`: it was an attempt of this dialer, and not one let go already.
fn forget_attempt(st: &mut State, endpoint: u32, token: usize) -> bool {
    let Some(e) = st.endpoints.get_mut(&endpoint) else { return false };
    let Kind::Dialer { attempts, .. } = &mut e.kind else { return false };
    let before = attempts.len();
    attempts.retain(|t| *t != token);
    attempts.len() < before
}
