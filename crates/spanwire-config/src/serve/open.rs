//! What a server starts from: the log in its state folder, or the beginning of a new epoch.
//!
//! Owns: whether this folder may be served in this way. Never: a node, or an address.

use super::Config;
use crate::process::{Log, ProcessError, foreign};
use crate::source::{Embedded, FsDisk, SourceError};
use crate::store::Store;
use crate::{
    Answer, AuthorityAction, AuthorityEvent, Driver, Id, NsAuthority, NsSettings, Opening, Ticket, tree,
};

/// The log, in the state folder.
pub(super) const LOG_DIR: &str = "log";

/// Note in the state folder: where its content comes from.
const SOURCE: &str = "source";

pub(super) type Decides = Driver<Embedded<FsDisk>>;

/// The machine that decides, on the log in the state folder.
/// `alone`: what is said beside an option that is for one namespace.
pub(super) fn open(
    config: &Config,
    store: &mut Store,
    log: &Log,
    alone: &str,
) -> Result<Decides, ProcessError> {
    let dir = config.state.join(LOG_DIR);
    let incarnation = random()?;
    let settings = NsSettings {
        cluster: Id::named(&config.cluster),
        namespace: config.namespace.clone(),
        limits: config.limits,
        keys: config.keys.clone(),
        ..NsSettings::default()
    };
    let load = || {
        let disk = FsDisk::open(&dir)
            .map_err(|error| SourceError::Io { what: format!("open {}", dir.display()), error })?;
        let source = Embedded::new(disk, Id::named(&config.cluster), &config.namespace);
        // Nobody hears what it has to say at its start.
        Driver::open(source, settings.clone(), Opening::Unknown, incarnation).map(|(driver, _)| driver)
    };
    if config.new_epoch == Some(0) {
        return Err(ProcessError::Refused("--new-epoch: epochs are numbered from 1 on".into()));
    }
    let mut loaded = load();
    if let (Err(SourceError::Damaged { .. }), Some(_)) = (&loaded, config.new_epoch) {
        // Kept for people: it may hold what no node has.
        let free = (1..1000).map(|n| config.state.join(format!("{LOG_DIR}.damaged-{n}")));
        if let Some(aside) = free.into_iter().find(|path| !path.exists())
            && std::fs::rename(&dir, &aside).is_ok()
        {
            log.say(format_args!("the damaged log is in {} now", aside.display()));
            loaded = load();
        }
    }
    let mut driver = loaded.map_err(|error| {
        let dir = dir.display();
        ProcessError::Refused(match &error {
            SourceError::Foreign { cluster, namespace } => {
                let named = (&config.cluster[..], &config.namespace[..]);
                format!("the store in {dir} {}", foreign((*cluster, namespace), named))
            }
            SourceError::Damaged { .. } => format!(
                "{dir}: {error}; nodes may hold more, so give --new-epoch with a number above theirs{alone}"
            ),
            _ => format!("{dir}: {error}"),
        })
    })?;
    if driver.cut() > 0 {
        let cut = driver.cut();
        log.say(format_args!("{cut} bytes of an unfinished commit were cut off; nobody was told of it"));
    }
    if let Some(number) = config.new_epoch {
        driver.machine_mut().reserve_epoch(number);
    }
    match driver.machine().position() {
        Some(now) if config.new_epoch.is_some_and(|number| now.epoch.number < number) => {
            let event = AuthorityEvent::NewEpoch(Ticket(0), random()?);
            begin(&mut driver, log, event)?;
        }
        Some(now) if config.new_epoch.is_some_and(|number| number < now.epoch.number) => {
            return Err(ProcessError::Refused(format!(
                "--new-epoch is below the epoch that is here: {now}; give a number above {}, or none",
                now.epoch.number
            )));
        }
        Some(now) => {
            let keys = driver.machine().durable().map_or(0, |durable| durable.state.keys());
            log.say(format_args!("last revision: {now} ({keys} keys)"));
        }
        // A state folder of the form without a log.
        None => {
            let loaded = store.load(config.limits.bytes);
            if let (Some((head, state)), None) = (loaded.newest, config.new_epoch) {
                let (node, base) = (store.identity().id, head.base());
                driver.tell(AuthorityEvent::Shown { node, head, issued: 0 });
                driver.tell(AuthorityEvent::Adopt(Ticket(0), random()?, Some(base)));
                begin(&mut driver, log, AuthorityEvent::Offered(node, Some(state)))?;
            }
        }
    }
    Ok(driver)
}

/// What is to be said of a store that has nothing.
pub(super) fn begins(config: &Config, machine: &NsAuthority) -> Option<String> {
    match (machine.position(), &config.dir) {
        (Some(_), _) => None,
        (None, Some(_)) => Some(format!("a new history begins: epoch {}", config.new_epoch.unwrap_or(1))),
        (None, None) => Some("nothing is in this store: nothing begins by itself".into()),
    }
}

/// A directory takes the place of what clients committed only if that is meant.
pub(super) fn claim(
    config: &Config,
    store: &Store,
    machine: &NsAuthority,
    alone: &str,
) -> Result<(), ProcessError> {
    let noted = store.note(SOURCE);
    let source: &[u8] = if config.dir.is_some() { b"directory" } else { b"commits" };
    if let (Some(dir), Some(b"commits"), Some(held)) = (&config.dir, noted.as_deref(), machine.durable())
        && !config.replace
    {
        let read = tree::read_settled(dir, &config.limits, config.debounce)?;
        let changes = held.state.diff(&read.state).len();
        if changes > 0 {
            let (dir, state) = (dir.clone(), config.state.clone());
            let (at, alone) = (held.head.position, alone.to_owned());
            return Err(ProcessError::WouldReplace { dir, state, at, changes, alone });
        }
    }
    if noted.as_deref() != Some(source) {
        store.set_note(SOURCE, source)?;
    }
    Ok(())
}

/// An epoch begins before anybody is served.
fn begin(driver: &mut Decides, log: &Log, event: AuthorityEvent) -> Result<(), ProcessError> {
    let answer = driver.tell(event).into_iter().find_map(|action| match action {
        AuthorityAction::Reply(_, answer) => Some(answer),
        _ => None,
    });
    match answer {
        Some(Answer::Begun { position, .. }) => {
            log.say(format_args!("a new epoch begins: {position}"));
            Ok(())
        }
        other => Err(ProcessError::Refused(format!("no new epoch: {}", told(other.as_ref())))),
    }
}

pub(super) fn random() -> Result<Id, ProcessError> {
    Id::random().map_err(|e| ProcessError::Refused(format!("no randomness: {e}")))
}

/// An answer that was not hoped for, in words.
pub(super) fn told(answer: Option<&Answer>) -> String {
    match answer {
        Some(Answer::ReadOnly(why)) => why.to_string(),
        Some(Answer::Invalid(why)) => why.to_string(),
        Some(Answer::Busy) => "busy".into(),
        Some(other) => format!("{other:?}"),
        None => "the thread of the store has ended".into(),
    }
}
