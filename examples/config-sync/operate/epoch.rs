//! The verbs that begin a new epoch: with what a node holds, with what is there, with nothing.
//!
//! Owns: looking before it is done. Never: a choice between two histories.

use clap::Subcommand;
use spanwire_config::State;
use spanwire_config::client::{Begin, Client};
use spanwire_config::wire::client::{BeginWith, Writable};

use super::{By, Failed, REFUSED, Res, Rev, To, done, print};
use crate::show;

impl By {
    fn of(self, client: &Client) -> Res<Begin> {
        let (request, expect, author) = (self.request()?, self.expect(client)?, self.author());
        Ok(Begin { request, expect, author, note: self.note })
    }

    fn begin(self, client: &Client, with: BeginWith) -> Res<()> {
        let begin = self.of(client)?;
        done(begin.request, client.begin(begin, with))
    }

    /// A new epoch, with this in the place of all there is.
    pub(super) fn import(self, client: &Client, state: State) -> Res<()> {
        ends_a_rollout(client)?;
        let begin = self.of(client)?;
        done(begin.request, client.import(begin, state))
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Where the server has lost its store: show what nodes hold, or go on from it in a new epoch.
    Adopt {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        by: By,
        /// Take the highest that is for all.
        #[arg(long)]
        highest: bool,
        /// Take this one.
        #[arg(long, value_name = "EPOCH:REV", conflicts_with = "highest")]
        at: Option<Rev>,
        /// As JSON: one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Where the server has lost its store, or has none yet: begin a new epoch with nothing.
    Init {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        by: By,
        /// Also where nodes hold something: it is taken out of them all.
        #[arg(long)]
        discard: bool,
    },
    /// Begin a new epoch with what is there: where nodes show a later history than the server's.
    NewEpoch {
        #[command(flatten)]
        to: To,
        #[command(flatten)]
        by: By,
    },
}

pub(crate) fn run(verb: Verb) -> Res<()> {
    match verb {
        Verb::Init { to, by, discard } => {
            let client = to.client()?;
            if !discard {
                nobody_holds(&client)?;
            }
            by.begin(&client, BeginWith::Nothing)
        }
        Verb::NewEpoch { to, by } => {
            let client = to.client()?;
            ends_a_rollout(&client)?;
            by.begin(&client, BeginWith::Same)
        }
        Verb::Adopt { to, by, highest, at, json } => {
            let client = to.client()?;
            if highest || at.is_some() {
                return by.begin(&client, BeginWith::Node(at.map(whole).transpose()?));
            }
            let status = client.status()?;
            if status.writable != Writable::Vacant {
                let at = show::place(status.tip.position.into());
                let why = Some(status.text).filter(|text| !text.is_empty());
                let why = why.unwrap_or("adopt is for a store that holds nothing".into());
                return Err(Failed(
                    REFUSED,
                    format!("nothing was lost here, the newest revision is {at}; {why}"),
                ));
            }
            let holdings = client.holdings()?;
            print(&show::holdings(&holdings, json));
            if holdings.is_empty() {
                return Err(Failed(
                    REFUSED,
                    "no node that is here holds anything (wait until they are)".into(),
                ));
            }
            eprintln!("to go on from the first that is for all: --highest; from another: --at EPOCH:REV");
            Ok(())
        }
    }
}

/// A rollout ends with its epoch.
fn ends_a_rollout(client: &Client) -> Res<()> {
    if let Some(open) = client.status()?.rollout {
        let at = show::place(open.at);
        eprintln!(
            "the rollout of {at} ends with its epoch: what was for its cohort alone is not in the new one"
        );
    }
    Ok(())
}

/// What nodes hold would be taken out of them.
fn nobody_holds(client: &Client) -> Res<()> {
    let vacant = client.status()?.writable == Writable::Vacant;
    match client.holdings()?.first() {
        // Where nothing was lost the server says so itself.
        Some(first) if vacant => Err(Failed(
            REFUSED,
            format!(
                "nodes hold {}, which beginning with nothing would take out of them: `adopt` goes on from it; --discard \
                 does it all the same",
                show::place(first.position.into())
            ),
        )),
        _ => Ok(()),
    }
}

/// Nobody knows the epoch of a revision that is not here.
fn whole(rev: Rev) -> Res<spanwire_config::Place> {
    let Rev { epoch, rev } = rev;
    match epoch {
        Some(epoch) => Ok(spanwire_config::Place { epoch, rev }),
        None => super::senseless("name it whole: EPOCH:REV"),
    }
}
