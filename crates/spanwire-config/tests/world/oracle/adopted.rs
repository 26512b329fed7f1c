//! What an authority takes over from nodes after its store was lost: invariants 1, 7, 12 and 13 of adoption.

use spanwire_config::{Answer, Base, Place};

use super::super::nodes::Adoption;
use super::*;

impl Oracle {
    /// After an event of a server.
    pub(super) fn check_adopted(&mut self, s: usize, server: Served<'_>) -> Checked {
        let seen = std::mem::replace(&mut self.adopted[s], server.adopted.len());
        for (adoption, answer, begun) in &server.adopted[seen..] {
            let Answer::Begun { position, lost } = answer else { continue };
            self.counts.adopted += 1;
            self.check_adoption(adoption, position, lost, *begun)
                .map_err(|(number, wrong)| format!("invariant {number}: adopted as {position}: {wrong}"))?;
        }
        Ok(())
    }

    fn check_adoption(
        &self,
        adoption: &Adoption,
        position: &Position,
        lost: &[(Position, usize)],
        begun: bool,
    ) -> Result<(), (u64, String)> {
        if begun {
            return Err((13, "the namespace had begun by then".into()));
        }
        // A canary's state never passed its gate: only by name.
        let all = adoption.shown.iter().filter(|(_, for_all)| *for_all).map(|(at, _)| *at);
        let from = adoption.named.or(all.max_by_key(|at| Place::from(at.position)));
        let Some(Base { position: from, chain }) = from else {
            return Err((1, "nobody holds what is for all".into()));
        };
        let anywhere = (place(position), [0; 32])..=(place(position), [0xff; 32]);
        let content = self.committed.get(&(place(&from), chain)).map(|(_, state)| state);
        let taken = self.committed.range(anywhere).next().map(|(_, (_, state))| state);
        if content.is_none() || content != taken {
            return Err((1, format!("not what was at {from}")));
        }
        let mut shown = adoption.shown.iter().map(|(at, _)| at.position);
        if let Some(at) =
            shown.clone().find(|at| at.epoch.number >= position.epoch.number || at.rev >= position.rev)
        {
            return Err((12, format!("not above {at}, which a node holds")));
        }
        if let Some((at, _)) = lost.iter().find(|(at, _)| !above(at, &from) && from.partial_cmp(at).is_some())
        {
            return Err((7, format!("{at} is called lost, and is not beyond {from}")));
        }
        // Who moves between servers may show something else by then.
        let beyond = |at: &Position| above(at, &from) && lost.iter().all(|(lost, _)| lost != at);
        match shown.find(|at| self.servers == 1 && beyond(at)) {
            Some(at) => Err((7, format!("{at} is beyond {from}, and not called lost"))),
            None => Ok(()),
        }
    }
}
