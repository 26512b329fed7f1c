//! What clients ask that changes the namespace, and what the machine answers, in the words of the wire.
//!
//! Owns: the way from a request to the machine's event, and from its answer to a reply. Never: an answer of its own.

use std::sync::Arc;

use super::{Desk, busy, invalid, now_ms};
use crate::wire::client::{
    BeginAsk, BeginWith, Holding, InvalidCode, MAX_HOLDINGS, Reply, RolloutAsk, Writable,
};
use crate::{
    Answer, AuthorityEvent, Base, By, Id, Invalid, Mode, NsAuthority, Place, ReadOnly, Request, State, Ticket,
};

/// What is asked of the machine.
pub(super) enum Write {
    Commit(Request),
    Import(Id, By, State),
    Init(Id, By),
    NewEpoch(Id, By),
    Adopt(Id, By, Option<Base>),
    Step(RolloutAsk),
}

impl Write {
    fn event(self, ticket: Ticket) -> AuthorityEvent {
        let by = |by, event| AuthorityEvent::By(Box::new(by), Box::new(event));
        match self {
            Write::Commit(request) => AuthorityEvent::Commit(ticket, request),
            Write::Import(id, who, state) => by(who, AuthorityEvent::Import(ticket, id, state)),
            Write::Init(id, who) => by(who, AuthorityEvent::Init(ticket, id, State::new())),
            Write::NewEpoch(id, who) => by(who, AuthorityEvent::NewEpoch(ticket, id)),
            Write::Adopt(id, who, named) => by(who, AuthorityEvent::Adopt(ticket, id, named)),
            Write::Step(RolloutAsk { request, position, step, author, note, .. }) => {
                by(self::by(None, author, note), AuthorityEvent::Rollout(ticket, request, position, step))
            }
        }
    }

    /// Who and why, for the log.
    fn line(&self) -> String {
        match self {
            Write::Commit(Request { author, note, .. }) => format!("by {author:?}: {note:?}"),
            Write::Import(_, By { author, note, .. }, _)
            | Write::Init(_, By { author, note, .. })
            | Write::NewEpoch(_, By { author, note, .. })
            | Write::Adopt(_, By { author, note, .. }, _) => {
                let note = if note.is_empty() { "an epoch begins" } else { note };
                format!("by {author:?}: {note:?}")
            }
            Write::Step(ask) => {
                let Place { epoch, rev } = ask.position;
                let (author, note) = (&ask.author, &ask.note);
                format!("(rollout {epoch}:{rev}: {:?}) by {author:?}: {note:?}", ask.step)
            }
        }
    }
}

impl Desk {
    /// What changes the namespace: answered when it is durable. Meanwhile other clients are heard, and share the sync.
    pub(super) fn write(self: &Arc<Self>, request: spanwire::Request, write: Write) {
        if let Some(text) = &self.directory {
            let why = Writable::Directory;
            return self.reply(request, &Reply::ReadOnly { why, text: text.clone() });
        }
        if self.authority.look(|machine| *machine.mode() == Mode::Vacant) {
            self.authority.judge_shown();
        }
        let (desk, line) = (self.clone(), write.line());
        let then = move |answer| {
            let reply = desk.written(answer);
            if let Reply::Committed { at, replay: false, .. } = &reply {
                let Place { epoch, rev } = at;
                desk.log.say(format_args!("commit {epoch}:{rev} {line}"));
            }
            desk.reply(request, &reply);
        };
        self.authority.ask(|ticket| write.event(ticket), then);
    }

    fn written(&self, answer: Answer) -> Reply {
        match answer {
            Answer::Committed { position, digest, replay } => {
                Reply::Committed { at: position.into(), digest, replay }
            }
            Answer::Begun { position, lost } => {
                for (lost, nodes) in lost {
                    self.log.say(format_args!("{nodes} nodes held {lost}, which is beyond what was here"));
                }
                let read = self.authority.look(|machine| machine.read(Some(position.into())));
                let digest = read.map(|(_, state)| state.digest()).unwrap_or_default();
                Reply::Committed { at: position.into(), digest, replay: false }
            }
            Answer::Conflict { head } => Reply::Conflict(head),
            Answer::Invalid(why) => refused(&why),
            Answer::Open(at) => Reply::Busy { after_ms: 1000, rollout: Some(at) },
            Answer::Busy => busy(100),
            Answer::ReadOnly(why) => {
                let (why, text) = read_only(&why, self.authority.look(super::shown));
                Reply::ReadOnly { why, text }
            }
        }
    }
}

/// Who wants an epoch, as far as the request says it.
pub(super) fn by(expect: Option<Place>, author: String, note: String) -> By {
    By { author, note, stamp: now_ms(), expect }
}

/// How an epoch is to begin; a place is looked up in what nodes hold.
pub(super) fn begin(machine: &NsAuthority, ask: &BeginAsk) -> Result<Write, Box<Reply>> {
    let who = by(ask.expect, ask.author.clone(), ask.note.clone());
    let named = match ask.with {
        BeginWith::Nothing => return Ok(Write::Init(ask.request, who)),
        BeginWith::Same => return Ok(Write::NewEpoch(ask.request, who)),
        BeginWith::Node(None) => None,
        BeginWith::Node(Some(at)) => {
            let mut there =
                machine.holdings().into_iter().filter(|(base, ..)| Place::from(base.position) == at);
            match (there.next(), there.next()) {
                (Some((base, ..)), None) => Some(base),
                // A repeat may come when the nodes have gone on.
                (None, _) if !matches!(machine.mode(), Mode::Vacant) => None,
                (None, _) => return Err(Box::new(refused(&Invalid::NoSuch(at)))),
                _ => {
                    let text = "nodes hold two states there: stop those of one, and start the server again";
                    return Err(Box::new(invalid(InvalidCode::NotNow, text.into())));
                }
            }
        }
    };
    Ok(Write::Adopt(ask.request, who, named))
}

pub(super) fn holdings(machine: &NsAuthority) -> Reply {
    let all = machine.holdings().into_iter().take(MAX_HOLDINGS);
    let holding = |(base, digest, for_all, nodes): (Base, _, _, usize)| Holding {
        position: base.position,
        digest,
        for_all,
        nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
    };
    Reply::Holdings(all.map(holding).collect())
}

pub(super) fn refused(why: &Invalid) -> Reply {
    let code = match why {
        Invalid::OverLimit(_) => InvalidCode::OverLimit,
        Invalid::TooLong(_) => InvalidCode::TooLong,
        Invalid::Compacted { .. } => InvalidCode::Compacted,
        Invalid::NoSuch(_) => InvalidCode::NoSuch,
        Invalid::NotNow(_) => InvalidCode::NotNow,
        Invalid::Rollout(_) => InvalidCode::Rollout,
        Invalid::Used(_) => InvalidCode::Used,
    };
    let oldest = match why {
        Invalid::Compacted { oldest } => *oldest,
        _ => Place::default(),
    };
    Reply::Invalid { code, oldest, text: why.to_string() }
}

/// In the words of somebody who has a command line. `shown`: the highest that was ever seen.
pub(super) fn read_only(why: &ReadOnly, shown: Place) -> (Writable, String) {
    match why {
        ReadOnly::Vacant if shown.rev > 0 => (
            Writable::Vacant,
            format!(
                "nodes hold revision {}:{}, and this store has nothing: adopt what they hold, or import what was \
                 exported, or init to begin with nothing; each begins a new epoch",
                shown.epoch, shown.rev
            ),
        ),
        ReadOnly::Vacant => (
            Writable::Vacant,
            "nothing was committed here yet, or this store was lost: where it is new, expect 0:0 with the first \
             commit; else adopt what nodes hold, or import what was exported"
                .into(),
        ),
        ReadOnly::Store(error) => (
            Writable::Store,
            format!("the store failed ({error}): make room or repair the disk, and start the server again; a commit \
                     that got this answer may be durable, so repeat it under the same request id"),
        ),
        ReadOnly::Old { shown } => (
            Writable::Old,
            format!("a node shows {shown}, so this store is an old copy: import what is right, or begin a new epoch \
                     with what is here (new-epoch)"),
        ),
    }
}
