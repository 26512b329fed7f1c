//! What nodes and servers are after an event.

use spanwire_config::Place;
use spanwire_config::wire::client::WaitAsk;

use super::super::waits::Facts;
use super::*;

impl Oracle {
    pub(super) fn check_node(&mut self, net: &Net<Party>, n: usize) -> Checked {
        if let Some((head, _)) = durable(net, n, self.at).and_then(|space| space.history.as_ref()) {
            self.truths[n].reached[0].insert(fact(head));
        }
        let Some(node) = agent(net, n, self.at) else { return Ok(()) };
        let protocol = node.replica();
        let intake = &mut self.truths[n].intake;
        intake.ended(|link| net.link(link).is_some_and(|view| view.dialer.1));
        intake.check(n, protocol, node.settings().window, !self.lies)?;
        let shown = node.shown.as_ref().map(|(head, _)| head.position);
        if protocol.visible().map(|(head, _)| head.position) != shown {
            return Err(format!("invariant 3: node {n}: protocol and readers disagree on what is visible"));
        }
        if let (Some(at), Some((head, state))) = (shown, &node.shown) {
            let truth = &mut self.truths[n];
            truth.reached[1].insert(fact(head));
            if node.applied {
                truth.reached[2].insert(fact(head));
            }
            if truth.shown != Some(at) {
                if truth.shown.is_some_and(|before| !above(&at, &before)) {
                    return Err(format!("invariant 3: node {n} went from {:?} to {at}", truth.shown));
                }
                truth.shown = Some(at);
                self.counts.published += 1;
                self.check_content(n, head, state)?;
            }
        }
        self.check_given(n, node)?;
        let status = node.status(net.now());
        let truth = &mut self.truths[n];
        if status.fresh && truth.rose.is_none_or(|rose| net.now().saturating_since(rose) > FRESH) {
            return Err(format!("invariant 18: node {n} says fresh; seq rose last at {:?}", truth.rose));
        }
        if let Some((_, other)) =
            status.evidence.as_ref().filter(|(a, b)| !self.is_true(a) || !self.is_true(b))
        {
            return Err(format!(
                "invariant 5: node {n} takes a forged {} for another history",
                other.position
            ));
        }
        self.check_upstream(net, n, status.fresh)?;
        let truth = &mut self.truths[n];
        let behind = status.data == Data::Behind && node.given.is_none() && !node.is_ready();
        truth.waits = behind.then_some(truth.waits.unwrap_or(net.now()));
        // A queue that moves is as good as data.
        let better = |place: u32| truth.place.is_none_or(|best| place < best);
        match status.waiting {
            Some(place) if better(place) => {
                truth.place = Some(place);
                truth.waits = truth.waits.map(|_| net.now());
            }
            Some(_) => {}
            None => truth.place = None,
        }
        if let (Some(waits), Some(healed)) = (truth.waits, self.healed)
            && status.upstream.is_some()
            && net.now().saturating_since(waits.max(healed)) > FRESH * 3 + BEACON * 3
        {
            return Err(format!("invariant 23: node {n} is behind since {waits:?} and does not ask"));
        }
        let highest = status.newest.map_or(0, |at| at.epoch.number);
        match (status.data == Data::Conflict, truth.conflict) {
            (true, None) => truth.conflict = Some(highest),
            (false, Some(then)) if highest <= then => {
                return Err(format!(
                    "invariant 12: node {n} forgot that two histories contradict each other"
                ));
            }
            (false, Some(_)) => truth.conflict = None,
            _ => {}
        }
        Ok(())
    }

    /// Invariant 18: who is not fresh tries another server that is there.
    fn check_upstream(&mut self, net: &Net<Party>, n: usize, fresh: bool) -> Checked {
        let truth = &self.truths[n];
        let (Some(healed), false) = (self.healed, fresh) else { return Ok(()) };
        let there = |link: &Link| net.link(*link).filter(|view| view.dialer.1 && !view.frozen);
        let Some(used) = truth.asked.iter().find_map(there) else { return Ok(()) };
        let others = truth
            .welcomed
            .iter()
            .filter(|(link, _)| there(link).is_some_and(|view| view.listener.0 != used.listener.0));
        let Some(other) = others.map(|(_, since)| *since).min() else { return Ok(()) };
        let since = other.max(healed).max(truth.asked_at).max(truth.rose.unwrap_or(healed));
        self.in_vain.insert(used.link);
        if truth.welcomed.contains_key(&used.link) && net.now().saturating_since(since) > FRESH + BEACON * 3 {
            return Err(format!(
                "invariant 18: node {n} hears nothing new since {since:?} and stays with it"
            ));
        }
        Ok(())
    }

    /// Invariants 1, 2, 7 and 8: byte for byte what was committed there, nothing of before or after it.
    pub(super) fn check_content(&self, n: usize, head: &Head, state: &State) -> Checked {
        let at = head.position;
        if !self.is_true(head) {
            return Err(format!("invariant 5: node {n} shows {at} of a HEAD that no trusted key signed"));
        }
        let Some((known, truth)) = self.find(head) else {
            return Err(format!("invariant 1: node {n} shows {at}, which was never committed"));
        };
        if known.digest != head.digest || state != truth {
            return Err(format!("invariant 1: node {n} shows {at} with other content"));
        }
        Ok(())
    }

    /// Invariants 5, 9, 10 and 11 on what an application is given.
    pub(super) fn check_given(&mut self, n: usize, node: Holding<'_>) -> Checked {
        let Some(update) = &node.given else {
            self.truths[n].given = None;
            return Ok(());
        };
        let at = update.position();
        if self.truths[n].given == Some(at) {
            return Ok(());
        }
        self.truths[n].given = Some(at);
        if !admits(&update.head.audience, node.settings().node, &node.settings().labels) {
            return Err(format!("invariant 11: node {n} is given {at}, which is not for it"));
        }
        self.counts.canaries += u64::from(!update.head.audience.is_empty());
        let limits = &node.settings().limits;
        if limits.check(update.state.keys(), update.state.bytes()).is_err() {
            return Err(format!("invariant 5: node {n} is given {at}, which is over its limits"));
        }
        // It remembers two; what is too large takes a place that the application does not see.
        let remembered = if limits.bytes < 1 << 20 { 0 } else { 2 };
        if node.refused.iter().rev().take(remembered).any(|refused| *refused == at) {
            return Err(format!("invariant 10: node {n} is given {at} again, which it refused"));
        }
        if self.truths[n].shown.is_some_and(|shown| !above(&at, &shown)) {
            return Err(format!("invariant 9: node {n} is given {at} after {:?}", self.truths[n].shown));
        }
        self.check_content(n, &update.head, &update.state)?;
        for key in node.before.diff(&update.state).keys() {
            if update.changed.binary_search(key).is_err() {
                return Err(format!("invariant 9: node {n} is not told that {key} changed at {at}"));
            }
        }
        Ok(())
    }

    pub(super) fn check_server(&mut self, net: &Net<Party>, s: usize) -> Checked {
        let now = net.now();
        // Connections that nothing has passed on yet, and those that are gone.
        let open: Vec<_> = net.links().filter(|view| view.listener == (s, true)).collect();
        for view in &open {
            self.conversation(net, view.link, s, view.dialer.0);
        }
        self.conversations.retain(|link, talk| {
            let stays = talk.server != s || open.iter().any(|view| view.link == *link);
            if !stays {
                coverage::note(coverage::SESSION, talk.state(), "pipe down");
            }
            stays
        });
        let Some(server) = server(net, s, self.at) else { return Ok(()) };
        if let Some(wrong) = &server.wrong {
            return Err(wrong.clone());
        }
        let (protocol, settings) = (server.namespace(), &server.server.settings);

        self.check_waits(net, s, true)?;
        self.check_served(s, server)?;
        self.check_adopted(s, server)?;
        let (steps, bytes) = protocol.log_size();
        if steps > settings.log_commits || bytes > settings.log_bytes {
            return Err(format!("invariant 19: {steps} steps and {bytes} bytes in the log"));
        }
        for (link, talk) in self.conversations.iter().filter(|(_, talk)| talk.server == s) {
            if talk.boot.is_none() && now.saturating_since(talk.opened) > HELLO + LATE {
                return Err(format!("invariant 19: {link:?} is open without HELLO since {:?}", talk.opened));
            }
            // Credit is due at the next beacon time; only faults may hold it up.
            let calm = self.healed.filter(|_| talk.exact && !self.lies);
            let here = open.iter().any(|view| view.link == *link && view.dialer.1 && !view.frozen);
            if let (Some(calm), Some(since), true) = (calm, talk.since, here)
                && now.saturating_since(since.max(calm)) > BEACON * 5
            {
                return Err(format!("invariant 22: {link:?} is given no credit since {since:?}"));
            }
            if talk.since.is_some_and(|since| now.saturating_since(since) > settings.stall + LATE) {
                return Err(format!("invariant 22: nothing is taken on {link:?} since {:?}", talk.since));
            }
        }
        for status in protocol.status() {
            let n = usize::from(status.node.0[0]) - 1;
            let levels = [status.stored, status.visible, status.applied];
            let boot = agent(net, n, self.at).map(|node| node.settings().boot);
            for (level, said) in levels.iter().enumerate() {
                // Of a start before the present one it may say what was true then (and old words may be repeated).
                let truth = &self.truths[n];
                let epoch = protocol.head().map(|head| head.position.epoch);
                // In the present epoch it counts only in the server's own history.
                let in_any = |facts: &BTreeSet<Fact>, at: &Position| {
                    (facts.range((place(at), [0; 32])..=(place(at), [0xff; 32])))
                        .any(|fact| epoch != Some(at.epoch) || self.lineage[s].contains(fact))
                };
                // A liar may say again what was said of another history: an ACK names none.
                let lied = |at: &Position| {
                    let facts = truth.earlier[level].range((place(at), [0; 32])..=(place(at), [0xff; 32]));
                    self.lies && facts.count() > 0
                };
                let known = |at: &Position| {
                    in_any(&truth.reached[level], at)
                        || boot != Some(status.boot) && in_any(&truth.earlier[level], at)
                        || lied(at)
                };
                if said.is_some_and(|said| !known(&said)) {
                    return Err(format!("invariant 14: node {n} never reached {said:?} at level {level}"));
                }
            }
            if let Some(old) = self.records[s].get(&status.node) {
                if status.boot < old.boot {
                    return Err(format!("invariant 14: node {n} fell to an earlier boot"));
                }
                let fell = |(old, new): (&Option<Position>, &Option<Position>)| match (old, new) {
                    (Some(old), Some(new)) => above(old, new),
                    (old, new) => old.is_some() && new.is_none(),
                };
                if status.boot == old.boot && old.levels.iter().zip(&levels).any(fell) {
                    return Err(format!(
                        "invariant 14: what node {n} reported fell from {:?} to {levels:?}",
                        old.levels
                    ));
                }
            }
            self.records[s].insert(status.node, Record { boot: status.boot, levels });
            // Where it is, as far as both ends agree on it.
            let mut talks = self.conversations.iter().filter(|(_, talk)| talk.server == s && talk.node == n);
            let here = !status.connected
                && talks.clone().any(|(link, talk)| {
                    talk.wants
                        && !talk.stale
                        && talk.boot.is_some()
                        && talk.boot == boot
                        && boot == Some(status.boot)
                        && open.iter().any(|view| view.link == *link && view.dialer.1)
                });
            if here {
                return Err(format!("invariant 14: node {n} is here, and said to be away"));
            }
            if status.connected && talks.next().is_none() {
                return Err(format!("invariant 14: node {n} is away, and said to be here"));
            }
        }
        Ok(())
    }

    /// The transfers above one window that a server has under way, for invariant 22. Not where one is sent: the end of
    /// one and the start of the next may be one event.
    pub(crate) fn large(&self, net: &Net<Party>, s: usize) -> Vec<(Link, &'static str, Position)> {
        let talks = self.conversations.iter().filter(|(_, talk)| talk.server == s && talk.exact);
        let large = talks.filter_map(|(link, talk)| Some((*link, self.name, talk.large?)));
        // What is dropped, since there is something newer, is dropped without a word.
        let newest = large.clone().map(|(.., at)| place(&at)).max();
        let alone = server(net, s, self.at).is_some_and(|server| server.is_alone());
        let head = server(net, s, self.at).and_then(|server| server.namespace().head());
        let counts =
            |at| if alone { newest } else { head.map(|head| place(&head.position)) } == Some(place(&at));
        large.filter(|(.., at)| counts(*at)).collect()
    }

    /// Invariant 17. `came`: something came to the server, and it had the time to answer.
    pub(super) fn check_waits(&mut self, net: &Net<Party>, s: usize, came: bool) -> Checked {
        let (Some(server), now) = (server(net, s, self.at), net.now()) else { return Ok(()) };
        let truth = |id: Id| self.truths.get(usize::from(id.0[0]).wrapping_sub(1));
        let reached = |id: Id, ask: &WaitAsk| {
            let Some(truth) = truth(id) else { return false };
            let own =
                truth.reached.iter().zip(&truth.earlier).skip(ask.level as usize - Level::Stored as usize);
            let all = own.take(1).flat_map(|(now, before)| now.iter().chain(before));
            all.map(|((number, _, rev), _)| Place { epoch: *number, rev: *rev }).any(|at| at >= ask.position)
        };
        let refused = |id: Id, at: Place| truth(id).is_some_and(|t| t.nacked.contains(&(at.epoch, at.rev)));
        let for_some = |at: Place| {
            let mut known = self
                .audiences
                .iter()
                .filter(|(((number, _, rev), _), _)| (*number, *rev) == (at.epoch, at.rev));
            known.any(|(_, audiences)| !audiences.contains(&Bytes::new()))
        };
        let status =
            if self.waits.has_news(s, &server.desk) { server.namespace().status() } else { Vec::new() };
        let head = server.namespace().head().map(|head| head.position);
        let facts = Facts {
            now,
            looked: server.desk.looked,
            head,
            status: &status,
            reached: &reached,
            refused: &refused,
            for_some: &for_some,
        };
        self.waits.check_answers(s, &server.desk, &facts)?;
        if came {
            self.waits.check_open(s, &facts)?;
        }
        self.counts.waits = self.waits.answers;
        Ok(())
    }

    /// Invariant 24: two beacons after the last commit, who has been connected since knows of it.
    pub(super) fn check_tail(&self, net: &Net<Party>) -> Checked {
        let Some(head) = server(net, 0, self.at).and_then(|server| server.namespace().head()) else {
            return Ok(());
        };
        for view in net.links().filter(|view| self.at_heal.contains(&view.link) && view.listener.0 == 0) {
            let Some(talk) = self.conversations.get(&view.link) else { continue };
            let Some(node) = agent(net, view.dialer.0, self.at) else { continue };
            let heard = talk.wants && talk.exact && view.dialer.1 && view.listener.1 && !view.frozen;
            let newest = node.status(net.now()).newest;
            let fits = node.settings().limits.check(head.keys, head.bytes).is_ok();
            if heard && fits && newest.is_none_or(|newest| above(&head.position, &newest)) {
                return Err(format!(
                    "invariant 24: node {} knows of {newest:?}, not of {}",
                    view.dialer.0, head.position
                ));
            }
        }
        Ok(())
    }
}
