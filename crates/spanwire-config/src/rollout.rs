//! Who may use a revision: the audience that a HEAD carries, and the plan by which an audience grows.
//!
//! ```text
//! audience of a HEAD: empty, for all; or
//!   kind (u8: 1, a cohort), rollout (16 bytes), salt (16 bytes), share (u16, in 1/10,000), labels (u8 count: name, value)
//! ```
//!
//! A node belongs to a cohort if it has all of its labels, and if the first 8 bytes of BLAKE3(salt, node id), as a
//! big-endian number, modulo 10,000 are below the share.
//!
//! Owns: the form of audiences and plans, and membership. Never: when a stage is over, which is the authority's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::source::Snapshot;
use crate::wire::{DecodeError, MAX_LABELS, Reader, Write};
use crate::{Id, Position};

/// A whole, in the unit of shares: 1/10,000.
pub const WHOLE: u16 = 10_000;
/// Most stages of a plan.
pub const MAX_STAGES: usize = 16;
/// Longest name or value of a label, in bytes.
const MAX_LABEL: usize = 96;
const COHORT: u8 = 1;

/// A cohort: who may use a revision while its rollout is open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audience {
    /// The rollout: the request id of the commit that opened it.
    pub rollout: Id,
    /// Who is below a share follows from this.
    pub salt: Id,
    /// In 1/10,000 of the nodes with these labels.
    pub share: u16,
    /// Labels that a node must have: at most 16 pairs of at most 96 bytes each.
    pub labels: Vec<(String, String)>,
}

impl Audience {
    /// As a HEAD carries it.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = vec![COHORT];
        out.raw(&self.rollout.0);
        out.raw(&self.salt.0);
        out.u16(self.share);
        put_labels(&mut out, &self.labels);
        out.into()
    }

    /// What a HEAD carries; `None` if it is no cohort that is known here: empty, or of a later form.
    pub fn parse(bytes: &Bytes) -> Option<Audience> {
        let mut r = Reader::new(bytes);
        if r.u8().ok()? != COHORT {
            return None;
        }
        let (rollout, salt) = (Id(r.array().ok()?), Id(r.array().ok()?));
        let share = r.u16().ok()?;
        let labels = get_labels(&mut r).ok()?;
        r.end().ok()?;
        Some(Audience { rollout, salt, share, labels })
    }

    /// Whether a node belongs to it.
    pub fn admits(&self, node: Id, labels: &[(String, String)]) -> bool {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.salt.0).update(&node.0);
        let first = hasher.finalize().as_bytes()[..8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        self.labels.iter().all(|label| labels.contains(label))
            && first % u64::from(WHOLE) < u64::from(self.share)
    }
}

/// Whether a HEAD with this audience is for a node. An audience of a form that is not known is for nobody.
pub fn admits(audience: &Bytes, node: Id, labels: &[(String, String)]) -> bool {
    audience.is_empty() || Audience::parse(audience).is_some_and(|cohort| cohort.admits(node, labels))
}

/// When a stage is over by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gate {
    /// So much of the cohort must have applied it, in 1/10,000.
    pub applied: u16,
    /// If more nodes of the cohort than this refuse it or fail to act on it, the rollout is aborted.
    pub refusals: u32,
    /// How long the stage lasts at least. Counted anew after a restart of the authority. In whole milliseconds.
    pub bake: Duration,
}

/// One stage of a rollout.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stage {
    /// Labels that a node must have.
    pub labels: Vec<(String, String)>,
    /// Which part of the nodes with these labels, in 1/10,000: 1 to 10,000.
    pub share: u16,
    /// `None`: the operator ends it.
    pub gate: Option<Gate>,
}

/// How a revision goes to more and more nodes, and after the last stage to all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Who is below a share: the same salt picks the same nodes.
    pub salt: Id,
    /// 1 to 16 of them.
    pub stages: Vec<Stage>,
}

impl Plan {
    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(1..=MAX_STAGES).contains(&self.stages.len()) {
            return Err("a rollout has 1 to 16 stages");
        }
        for Stage { labels, share, gate } in &self.stages {
            if !(1..=WHOLE).contains(share) || gate.is_some_and(|gate| gate.applied > WHOLE) {
                return Err("a share is above 0 and at most 100 percent");
            }
            let long = |text: &String| text.len() > MAX_LABEL;
            if labels.len() > MAX_LABELS || labels.iter().any(|(name, value)| long(name) || long(value)) {
                return Err("a stage has at most 16 labels of at most 96 bytes each");
            }
        }
        Ok(())
    }

    /// The audience of a stage, from 0, of the rollout that this request opened; empty beyond the last.
    pub fn audience(&self, rollout: Id, stage: usize) -> Bytes {
        let Some(Stage { labels, share, .. }) = self.stages.get(stage) else { return Bytes::new() };
        Audience { rollout, salt: self.salt, share: *share, labels: labels.clone() }.to_bytes()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.raw(&self.salt.0);
        let stages = &self.stages[..self.stages.len().min(MAX_STAGES)];
        out.u8(stages.len() as u8);
        for Stage { labels, share, gate } in stages {
            put_labels(out, labels);
            out.u16(*share);
            out.u8(u8::from(gate.is_some()));
            if let Some(Gate { applied, refusals, bake }) = gate {
                out.u16(*applied);
                out.u32(*refusals);
                out.u32(u32::try_from(bake.as_millis()).unwrap_or(u32::MAX));
            }
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Plan, DecodeError> {
        let salt = Id(r.array()?);
        let len = usize::from(r.u8()?);
        let stages = r.list(len, MAX_STAGES, "stages", |r| {
            let (labels, share) = (get_labels(r)?, r.u16()?);
            let gate = match r.bool()? {
                true => Some(Gate {
                    applied: r.u16()?,
                    refusals: r.u32()?,
                    bake: Duration::from_millis(r.u32()?.into()),
                }),
                false => None,
            };
            Ok(Stage { labels, share, gate })
        })?;
        Ok(Plan { salt, stages })
    }
}

fn put_labels(out: &mut Vec<u8>, labels: &[(String, String)]) {
    let labels = &labels[..labels.len().min(MAX_LABELS)];
    out.u8(labels.len() as u8);
    for (name, value) in labels {
        out.text(name, MAX_LABEL);
        out.text(value, MAX_LABEL);
    }
}

fn get_labels(r: &mut Reader<'_>) -> Result<Vec<(String, String)>, DecodeError> {
    let len = usize::from(r.u8()?);
    let label = |r: &mut Reader<'_>| Ok((r.string(MAX_LABEL, "label")?, r.string(MAX_LABEL, "label")?));
    r.list(len, MAX_LABELS, "labels", label)
}

/// Where an open rollout is, as the store keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// Its plan.
    pub plan: Arc<Plan>,
    /// The request that opened it: its id.
    pub rollout: Id,
    /// The stage that it is in, from 0.
    pub stage: usize,
    /// Nothing goes on by itself.
    pub paused: bool,
    /// The cohort's nodes that were here when the stage began, once they are counted.
    pub members: Option<BTreeSet<Id>>,
    /// What is for everybody else.
    pub for_all: Snapshot,
}

/// A step of a rollout, as the log keeps it: where the rollout is after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Of which revision.
    pub at: Position,
    /// The request that asked for it; zeros: it came by itself.
    pub request: Id,
    /// The stage, from 0.
    pub stage: u8,
    /// Nothing goes on by itself.
    pub paused: bool,
    /// It is for all: the rollout is over.
    pub passed: bool,
    /// The cohort's nodes that were here when the stage began; `None`: as before, in a new stage not counted yet.
    pub members: Option<Vec<Id>>,
}

impl Open {
    /// What it is after a step.
    pub(crate) fn step(&mut self, mark: &Mark) {
        if self.stage != usize::from(mark.stage) {
            (self.stage, self.members) = (usize::from(mark.stage), None);
        }
        self.paused = mark.paused;
        if let Some(members) = &mark.members {
            self.members = Some(members.iter().copied().collect());
        }
    }

    /// The audience of the stage that it is in.
    pub(crate) fn audience(&self) -> Bytes {
        self.plan.audience(self.rollout, self.stage)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    proptest! {
        #[test]
        fn bytes_are_a_cohort_that_encodes_to_them_or_none(mut bytes in proptest::collection::vec(any::<u8>(), 0..90), kind in any::<bool>()) {
            if let (true, Some(first)) = (kind, bytes.first_mut()) {
                *first = COHORT;
            }
            let bytes = Bytes::from(bytes);
            if let Some(cohort) = Audience::parse(&bytes) {
                prop_assert_eq!(cohort.to_bytes(), bytes);
            }
        }

        #[test]
        fn a_larger_share_under_the_same_salt_takes_nobody_out(node in any::<[u8; 16]>(), salt in any::<[u8; 16]>(), a in 0..=WHOLE, b in 0..=WHOLE) {
            let share = |share| Audience { salt: Id(salt), share, ..Audience::default() }.admits(Id(node), &[]);
            prop_assert!(!share(a.min(b)) || share(a.max(b)));
            prop_assert!(share(WHOLE) && !share(0));
        }
    }

    #[test]
    fn a_share_is_about_that_part_of_the_nodes_and_another_salt_picks_others() {
        let members = |salt: u8, share| {
            let cohort = Audience { salt: Id([salt; 16]), share, ..Audience::default() };
            (0..10_000u32).filter(|n| cohort.admits(Id::named(&n.to_string()), &[])).collect::<BTreeSet<_>>()
        };
        let (one, other) = (members(1, 1_000), members(2, 1_000));
        assert!((900..1_100).contains(&one.len()), "{}", one.len());
        assert!(one.intersection(&other).count() < 200);
    }

    #[test]
    fn all_labels_must_be_there() {
        let cohort = Audience {
            share: WHOLE,
            labels: labels(&[("zone", "eu"), ("tier", "web")]),
            ..Audience::default()
        };
        let node = Id([1; 16]);
        assert!(cohort.admits(node, &labels(&[("tier", "web"), ("zone", "eu"), ("x", "y")])));
        assert!(!cohort.admits(node, &labels(&[("zone", "eu")])));
        assert!(!cohort.admits(node, &labels(&[("zone", "eu"), ("tier", "db")])));
    }

    #[test]
    fn an_unknown_form_of_audience_is_for_nobody_and_an_empty_one_for_all() {
        let node = Id([1; 16]);
        assert!(admits(&Bytes::new(), node, &[]));
        assert!(!admits(&Bytes::from_static(b"canary"), node, &[]));
        let whole = Audience { share: WHOLE, ..Audience::default() }.to_bytes();
        assert!(admits(&whole, node, &[]));
        assert!(!admits(&whole.slice(..whole.len() - 1), node, &[]));
    }

    #[test]
    fn a_plan_is_checked() {
        let stage = |share| Stage { share, ..Stage::default() };
        let plan = |stages| Plan { salt: Id::default(), stages };
        assert!(plan(vec![stage(1), stage(WHOLE)]).check().is_ok());
        for wrong in [vec![], vec![stage(0)], vec![stage(WHOLE + 1)], vec![stage(1); 17]] {
            assert!(plan(wrong).check().is_err());
        }
        let gate = Some(Gate { applied: WHOLE + 1, refusals: 0, bake: Duration::ZERO });
        assert!(plan(vec![Stage { gate, ..stage(1) }]).check().is_err());
        assert!(plan(vec![Stage { labels: labels(&[("a", &"b".repeat(97))]), ..stage(1) }]).check().is_err());
    }
}
