//! Records of the log and their bytes.
//!
//! Owns: the layout. Never: checksums and order, which are the log's.

use std::sync::Arc;

use bytes::Bytes;

use crate::rollout::{Mark, Plan};
use crate::wire::{DecodeError, Reader, Write, decode_changes, encode_changes};
use crate::{ChangeSet, Digest, Epoch, Head, Id, Position};

/// Longest name of an author, in bytes.
pub const MAX_AUTHOR: usize = 256;
/// Longest note of a commit, in bytes.
pub const MAX_NOTE: usize = 1024;
/// Most commits in one batch.
pub(crate) const MAX_BATCH: usize = 10_000;

const BATCH: u8 = 1;
const FROZEN: u8 = 2;
const OPENING: u8 = 3;
const MARK: u8 = 4;
/// Most nodes of a cohort that one record names.
pub(crate) const MAX_MEMBERS: usize = 1 << 20;

/// One commit, as the log keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogCommit {
    /// Its revision.
    pub rev: u64,
    /// What its writer called it, so that a repeat is recognised.
    pub request: Id,
    /// Who: at most [`MAX_AUTHOR`] bytes.
    pub author: String,
    /// Why: at most [`MAX_NOTE`] bytes.
    pub note: String,
    /// Milliseconds since 1970 by the writer's clock; printed, and used for nothing.
    pub stamp: u64,
    /// Digest of the content after it.
    pub digest: Digest,
    /// What it changed.
    pub changes: Arc<ChangeSet>,
}

/// What one sync makes durable: commits, and the HEAD that they share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The HEAD of the last commit, without `seq` and signature: they change with every issue.
    pub head: Head,
    /// At least one; revisions rise. `prev_rev` 0 begins an epoch, with all content that was there before.
    pub commits: Vec<LogCommit>,
    /// It opens a rollout: by this plan, and with one commit.
    pub plan: Option<Arc<Plan>>,
}

impl Batch {
    /// What all of its commits change.
    pub fn changes(&self) -> Arc<ChangeSet> {
        if let [one] = &self.commits[..] {
            return one.changes.clone();
        }
        let mut all = ChangeSet::new();
        self.commits.iter().for_each(|commit| all.merge(&commit.changes));
        Arc::new(all)
    }
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Record {
    /// Commits.
    Batch(Batch),
    /// This store was shown to be an old copy, by this HEAD; it takes no commits until an epoch begins.
    Frozen(Head),
    /// A step of the rollout that the newest batch opened.
    Mark(Mark),
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Record::Batch(batch) => {
                match &batch.plan {
                    None => out.u8(BATCH),
                    Some(plan) => {
                        out.u8(OPENING);
                        plan.encode(&mut out);
                    }
                }
                batch.head.encode(&mut out);
                out.u32(batch.commits.len() as u32);
                for commit in &batch.commits {
                    out.u64(commit.rev);
                    out.raw(&commit.request.0);
                    out.text(&commit.author, MAX_AUTHOR);
                    out.text(&commit.note, MAX_NOTE);
                    out.u64(commit.stamp);
                    out.raw(&commit.digest.0);
                    let changes = encode_changes(&commit.changes);
                    // Not `long`: what one commit may hold is bounded by the namespace, not by 4 GiB.
                    out.u64(changes.len() as u64);
                    out.raw(&changes);
                }
            }
            Record::Frozen(head) => {
                out.u8(FROZEN);
                head.encode(&mut out);
            }
            Record::Mark(mark) => {
                out.u8(MARK);
                out.u64(mark.at.epoch.number);
                out.raw(&mark.at.epoch.incarnation.0);
                out.u64(mark.at.rev);
                out.raw(&mark.request.0);
                out.u8(mark.stage);
                out.u8(u8::from(mark.paused));
                out.u8(u8::from(mark.passed));
                out.u8(u8::from(mark.members.is_some()));
                if let Some(members) = &mark.members {
                    let members = &members[..members.len().min(MAX_MEMBERS)];
                    out.u32(members.len() as u32);
                    members.iter().for_each(|node| out.raw(&node.0));
                }
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Record, DecodeError> {
        let mut r = Reader::new(bytes);
        let record = match r.u8()? {
            kind @ (BATCH | OPENING) => {
                let plan = match kind {
                    OPENING => Some(Arc::new(Plan::decode(&mut r)?)),
                    _ => None,
                };
                let head = Head::decode(&mut r)?;
                let len = r.u32()? as usize;
                let commits = r.list(len, MAX_BATCH, "commits", |r| {
                    Ok(LogCommit {
                        rev: r.u64()?,
                        request: Id(r.array()?),
                        author: r.string(MAX_AUTHOR, "author")?,
                        note: r.string(MAX_NOTE, "note")?,
                        stamp: r.u64()?,
                        digest: Digest(r.array()?),
                        changes: {
                            let len = usize::try_from(r.u64()?).map_err(|_| DecodeError::Short)?;
                            Arc::new(decode_changes(&r.take(len)?)?)
                        },
                    })
                })?;
                Record::Batch(Batch { head, commits, plan })
            }
            FROZEN => Record::Frozen(Head::decode(&mut r)?),
            MARK => Record::Mark(Mark {
                at: Position {
                    epoch: Epoch { number: r.u64()?, incarnation: Id(r.array()?) },
                    rev: r.u64()?,
                },
                request: Id(r.array()?),
                stage: r.u8()?,
                paused: r.bool()?,
                passed: r.bool()?,
                members: match r.bool()? {
                    true => {
                        let len = r.u32()? as usize;
                        Some(r.list(len, MAX_MEMBERS, "members", |r| r.array().map(Id))?)
                    }
                    false => None,
                },
            }),
            _ => return Err(DecodeError::Value("record")),
        };
        r.end()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Key;

    proptest! {
        #[test]
        fn bytes_are_a_record_that_encodes_to_them_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..6) {
            let bytes = Bytes::from([&[kind][..], &bytes].concat());
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }

        #[test]
        fn a_record_survives_its_bytes_and_no_part_of_them_is_another(
            revs in proptest::collection::vec((any::<u64>(), any::<[u8; 16]>(), ".{0,40}", "[a-z]{1,9}", any::<bool>()), 1..5),
            cut in any::<proptest::sample::Index>(),
            opens in any::<bool>(),
        ) {
            let commits = revs.into_iter().map(|(rev, request, note, key, put)| {
                let mut changes = ChangeSet::new();
                let key = Key::new(key).expect("1 to 9 bytes");
                if put { changes.put(key, 7, note.clone()) } else { changes.delete(key) }
                LogCommit {
                    rev, request: Id(request), author: note.clone(), note, stamp: rev ^ 1,
                    digest: Digest([rev as u8; 32]), changes: Arc::new(changes),
                }
            });
            let epoch = Epoch { number: 3, incarnation: Id([4; 16]) };
            let head = Head { position: Position { epoch, rev: 5 }, ..Head::default() };
            let stage = crate::rollout::Stage { share: 5, ..crate::rollout::Stage::default() };
            let plan = opens.then(|| Arc::new(Plan { salt: Id([6; 16]), stages: vec![stage] }));
            let record = Record::Batch(Batch { head, commits: commits.collect(), plan });
            let bytes = Bytes::from(record.encode());
            prop_assert_eq!(Record::decode(&bytes), Ok(record));
            prop_assert!(Record::decode(&bytes.slice(..cut.index(bytes.len()))).is_err());
        }
    }
}
