//! Rollouts on the command line: stages as words, the steps of one that is open, and how far it is.
//!
//! A stage is written as SHARE and, with commas, labels and what lets it pass by itself:
//! `10%,zone=eu,applied:95%,refusals:1,bake:60`.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use spanwire_config::client::Client;
use spanwire_config::rollout::{Gate, Plan, Stage, WHOLE};
use spanwire_config::wire::client::{RolloutLine, Step};
use spanwire_config::{Id, Place};

use super::operate::{Failed, REFUSED, Res, print, senseless};
use super::show::{place, place_json, plain};

/// To whom a commit goes first, and what it ends.
#[derive(Args, Debug, Default)]
pub(crate) struct Roll {
    /// To a part of the nodes first: SHARE[,NAME=VALUE]...[,applied:SHARE][,refusals:N][,bake:SECONDS]. A label NAME=VALUE
    /// is one that a node must have; with `applied` (how many of them must have applied it), `refusals` (more abort it) or
    /// `bake` (how long it lasts at least) the stage passes by itself, else by `rollout next`. Repeat it for further
    /// stages.
    #[arg(long, value_name = "STAGE")]
    rollout: Vec<StageArg>,
    /// A word that picks the nodes of a share: the same word, the same nodes [default: others each time].
    #[arg(long, requires = "rollout")]
    salt: Option<String>,
    /// If a rollout is open, end it: this changes what all others have.
    #[arg(long, conflicts_with = "rollout")]
    pub(crate) supersede: bool,
}

impl Roll {
    pub(crate) fn plan(&self, request: Id) -> Res<Option<Plan>> {
        if self.rollout.is_empty() {
            return Ok(None);
        }
        let salt = self.salt.as_deref().map_or(request, Id::named);
        let plan = Plan { salt, stages: self.rollout.iter().map(|stage| stage.0.clone()).collect() };
        plan.check().or_else(senseless)?;
        Ok(Some(plan))
    }
}

/// One stage, as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
struct StageArg(Stage);

/// In percent, as a part of 10,000.
fn share(text: &str) -> Result<u16, String> {
    let wrong = || format!("{text:?} is no share: write it as 10% or 0.5%");
    let number: f64 = text.strip_suffix('%').and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
    let share = (number * f64::from(WHOLE) / 100.0).round();
    if (0.0..=f64::from(WHOLE)).contains(&share) { Ok(share as u16) } else { Err(wrong()) }
}

impl FromStr for StageArg {
    type Err = String;
    fn from_str(text: &str) -> Result<StageArg, String> {
        let mut words = text.split(',');
        let mut stage = Stage { share: share(words.next().unwrap_or_default())?, ..Stage::default() };
        let mut gate = None;
        for word in words {
            if let Some((name, value)) = word.split_once('=') {
                stage.labels.push((name.to_owned(), value.to_owned()));
                continue;
            }
            let gate = gate.get_or_insert(Gate { applied: WHOLE, refusals: 0, bake: Duration::ZERO });
            let number = |text: &str| text.parse().map_err(|_| format!("{word:?} has no number"));
            match word.split_once(':') {
                Some(("applied", of)) => gate.applied = share(of)?,
                Some(("refusals", n)) => gate.refusals = number(n)?,
                Some(("bake", seconds)) => gate.bake = Duration::from_secs(number(seconds)?.into()),
                _ => {
                    return Err(format!(
                        "{word:?} is none of NAME=VALUE, applied:SHARE, refusals:N, bake:SECONDS"
                    ));
                }
            }
        }
        stage.gate = gate;
        Ok(StageArg(stage))
    }
}

/// What to do with the rollout that is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum What {
    /// Print how far it is.
    Status,
    /// Go on to the next stage; after the last, to all.
    Next,
    /// To all nodes, now.
    Promote,
    /// Nothing goes on by itself.
    Pause,
    /// It goes on.
    Resume,
    /// Back to what all others have.
    Abort,
}

impl What {
    /// `None`: it only looks.
    pub(crate) fn step(self) -> Option<Step> {
        match self {
            What::Status => None,
            What::Next => Some(Step::Next),
            What::Promote => Some(Step::Promote),
            What::Pause => Some(Step::Pause),
            What::Resume => Some(Step::Resume),
            What::Abort => Some(Step::Abort),
        }
    }
}

/// The rollout that is open.
pub(crate) fn open(client: &Client) -> Res<RolloutLine> {
    client.status()?.rollout.ok_or_else(|| Failed(REFUSED, "no rollout is open".into()))
}

/// The revision that everybody else has, where a rollout is open.
pub(crate) fn for_all(client: &Client) -> Res<Option<Place>> {
    Ok(client.status()?.rollout.map(|rollout| rollout.for_all))
}

pub(crate) fn status(client: &Client, json: bool) -> Res<()> {
    let line = open(client)?;
    print(&if json { format!("{}\n", as_json(&line)) } else { lines(&line) });
    Ok(())
}

fn percent(share: u16) -> String {
    format!("{}%", f64::from(share) / 100.0)
}

pub(crate) fn cohort(stage: &Stage) -> String {
    let labels: Vec<String> =
        stage.labels.iter().map(|(name, value)| format!("{}={}", plain(name), plain(value))).collect();
    let of = if labels.is_empty() { "all nodes".to_owned() } else { labels.join(" ") };
    format!("{} of {of}", percent(stage.share))
}

/// For people: one line for the whole, and one for each stage.
pub(crate) fn lines(line: &RolloutLine) -> String {
    let RolloutLine { at, for_all, plan, stage, paused, nodes, applied, refused, lasts_ms } = line;
    let mut out = format!(
        "rollout of {}, all others at {}: stage {} of {}{}; {nodes} nodes, {applied} applied, {refused} refused, for {} s\n",
        place(*at),
        place(*for_all),
        stage + 1,
        plan.stages.len(),
        if *paused { " (paused)" } else { "" },
        lasts_ms / 1000,
    );
    for (n, one) in plan.stages.iter().enumerate() {
        let gate = match one.gate {
            Some(Gate { applied, refusals, bake }) => format!(
                "passes with {} applied, at most {refusals} refused, after {} s",
                percent(applied),
                bake.as_secs_f64()
            ),
            None => "ends by `rollout next`".into(),
        };
        let mark = if n == usize::from(*stage) { '>' } else { ' ' };
        out.push_str(&format!("  {mark} {}: {gate}\n", cohort(one)));
    }
    out
}

pub(crate) fn as_json(line: &RolloutLine) -> serde_json::Value {
    let stage = |stage: &Stage| {
        let labels: serde_json::Map<String, serde_json::Value> =
            stage.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let gate = stage.gate.map(|Gate { applied, refusals, bake }| {
            json!({"applied": f64::from(applied) / 100.0, "refusals": refusals, "seconds": bake.as_secs_f64()})
        });
        json!({"share": f64::from(stage.share) / 100.0, "labels": labels, "gate": gate})
    };
    let RolloutLine { at, for_all, plan, stage: now, paused, nodes, applied, refused, lasts_ms } = line;
    json!({
        "at": place_json(*at), "for_all": place_json(*for_all), "stages": plan.stages.iter().map(stage).collect::<Vec<_>>(),
        "stage": now + 1, "paused": paused, "nodes": nodes, "applied": applied, "refused": refused,
        "seconds": f64::from(*lasts_ms) / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_written_in_words() {
        let stage = |text: &str| text.parse::<StageArg>().map(|stage| stage.0);
        assert_eq!(stage("10%"), Ok(Stage { share: 1_000, ..Stage::default() }));
        assert_eq!(
            stage("0.5%,zone=eu,tier=web").map(|s| (s.share, s.labels.len(), s.gate)),
            Ok((50, 2, None))
        );
        let gate = Gate { applied: 9_500, refusals: 1, bake: Duration::from_secs(60) };
        assert_eq!(stage("100%,applied:95%,refusals:1,bake:60").map(|s| s.gate), Ok(Some(gate)));
        let gate = Gate { applied: WHOLE, refusals: 0, bake: Duration::from_secs(5) };
        assert_eq!(stage("50%,bake:5").map(|s| s.gate), Ok(Some(gate)));
        for wrong in ["", "10", "101%", "-1%", "x%", "10%,zone", "10%,bake:x", "10%,applied:200%", "10%,:"] {
            assert!(stage(wrong).is_err(), "{wrong:?}");
        }
    }
}
