//! What passes over a connection, as both ends say and hear it.

use spanwire_config::wire::{Ack, Hello, Nack};

use super::*;

impl Oracle {
    /// Invariants 6 and 7: what leaves a server is durable there, and is what was committed.
    pub(super) fn left(&mut self, net: &Net<Party>, from: usize, head: &Head) -> Checked {
        if self.keys.used && !(self.keys.foreign && from == 1) {
            self.issued.insert(print_of(head));
        }
        if server(net, from, self.at).is_some_and(|server| server.is_vacant()) {
            return Err(format!("invariant 13: a server that has nothing shows {}", head.position));
        }
        let durable = |oracle: &Self| {
            oracle.audiences.get(&fact(head)).is_some_and(|known| known.contains(&head.audience))
        };
        if !durable(self) {
            self.learn(net, from)?;
        }
        if self.find(head).is_some() && !durable(self) {
            return Err(format!("invariant 6: {} is shown to others before that was durable", head.position));
        }
        match self.find(head) {
            Some((known, _))
                if (known.digest, known.prev_rev, known.keys, known.bytes)
                    == (head.digest, head.prev_rev, head.keys, head.bytes) =>
            {
                Ok(())
            }
            Some(_) => Err(format!("invariant 7: a HEAD for {} is not the one committed", head.position)),
            None => Err(format!("invariant 6: {} left before it was durable", head.position)),
        }
    }

    /// Invariant 11, at the server: nobody is sent what is not for it.
    fn meant(&self, net: &Net<Party>, link: Link, to: usize, head: &Head) -> Checked {
        let Some(node) = agent(net, to, self.at) else { return Ok(()) };
        // Until it has heard of a new id or boot, it goes by the HELLO that it knows; labels stay.
        let exact = self.conversations.get(&link).is_some_and(|talk| talk.exact);
        if exact && !admits(&head.audience, node.settings().node, &node.settings().labels) {
            return Err(format!("invariant 11: {} is sent to node {to}, which it is not for", head.position));
        }
        Ok(())
    }

    pub(super) fn conversation(
        &mut self,
        net: &Net<Party>,
        link: Link,
        server: usize,
        node: usize,
    ) -> &mut Conversation {
        let exact = net.link(link).is_some_and(|view| self.routes[view.route].room >= 256);
        self.counts.links += u64::from(link.number() > self.known_links);
        self.known_links = self.known_links.max(link.number());
        self.conversations.entry(link).or_insert_with(|| Conversation {
            server,
            node,
            opened: net.now(),
            boot: None,
            stale: false,
            wants: false,
            have: None,
            refused: Vec::new(),
            window: 0,
            sent: 0,
            taken: 0,
            since: None,
            flight: VecDeque::new(),
            transfer: None,
            anew: true,
            holds: None,
            reached: None,
            contradicts: None,
            large: None,
            exact,
        })
    }

    pub(super) fn server_sent(
        &mut self,
        net: &Net<Party>,
        link: Link,
        from: usize,
        to: usize,
        frame: &Frame,
    ) -> Checked {
        match frame {
            Frame::Beacon(heads) => {
                let state = self.conversation(net, link, from, to).state();
                coverage::note(coverage::SESSION, state, "beacon time");
                heads.iter().try_for_each(|head| {
                    if !self.is_mine(head) {
                        return Ok(());
                    }
                    self.left(net, from, head)?;
                    self.meant(net, link, to, head)
                })
            }
            Frame::Slice(slice) => {
                let (at, len, now) = (slice.head.position, slice.bytes.len() as u64, net.now());
                let talk = self.conversation(net, link, from, to);
                if talk.window > 0 && talk.sent.saturating_sub(talk.taken) >= talk.window {
                    return Err(format!(
                        "invariant 19: {} bytes on {link:?} without credit",
                        talk.sent - talk.taken
                    ));
                }
                talk.sent += len;
                if talk.sent > talk.taken {
                    talk.since.get_or_insert(now);
                }
                if !self.is_mine(&slice.head) {
                    return Ok(());
                }
                self.counts.slices += 1;
                self.left(net, from, &slice.head)?;
                self.meant(net, link, to, &slice.head)?;
                // A store that failed cannot say what was issued long ago: then a node is served, whatever it shows.
                let knows = server(net, from, self.at).is_some_and(|server| !server.has_failed());
                let talk = self.conversation(net, link, from, to);
                if talk.exact && knows && talk.contradicts == Some(slice.head.position.epoch) {
                    return Err(format!("invariant 7: {at} is sent to who holds another history"));
                }
                if slice.offset == 0 {
                    if talk.exact && talk.refused.contains(&at) {
                        return Err(format!("invariant 10: {at} is sent again to who refused it"));
                    }
                    if talk.exact && talk.have.as_ref().is_some_and(|have| !above(&at, &have.position)) {
                        return Err(format!(
                            "invariant 21: {at} is sent from {:?} to who has {:?}",
                            slice.base,
                            talk.have.as_ref().map(|h| h.position)
                        ));
                    }
                    let base = slice.base.map(|base| base.position);
                    if talk.exact && talk.anew && base.is_some() && base != talk.holds {
                        return Err(format!(
                            "invariant 21: a step from {base:?} for who has {:?}",
                            talk.holds
                        ));
                    }
                    let size = snapshot_size(slice.head.keys, slice.head.bytes);
                    talk.large = (slice.base.is_none() && size > talk.window).then_some(at);
                } else if talk.transfer != Some((at, slice.offset)) || talk.anew && talk.exact {
                    return Err(format!("transfer: {at} goes on at {} on {link:?}", slice.offset));
                }
                talk.anew = false;
                talk.transfer = (!slice.last).then_some((at, slice.offset + len));
                if slice.last {
                    talk.large = None;
                    talk.flight.push_back(at);
                    if talk.exact && talk.flight.len() > FLIGHT {
                        return Err(format!(
                            "invariant 19: {} steps in flight on {link:?}",
                            talk.flight.len()
                        ));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn node_sent(&mut self, from: usize, frame: &Frame) -> Checked {
        let of = match frame {
            Frame::Nack(nack) => &nack.namespace,
            Frame::Ack(ack) => &ack.namespace,
            Frame::Want(..) if self.want_in(frame).is_some() => self.name,
            _ => return Ok(()),
        };
        if of != self.name {
            return Ok(());
        }
        let truth = &mut self.truths[from];
        if let Frame::Nack(nack) = frame {
            truth.nacked.insert((nack.position.epoch.number, nack.position.rev));
        }
        match frame {
            Frame::Ack(ack)
                if !ack.volatile && truth.acked.is_none_or(|acked| !above(&acked, &ack.position)) =>
            {
                truth.acked = Some(ack.position);
            }
            Frame::Nack(nack) if nack.code == NackCode::Conflict => self.counts.conflicts += 1,
            Frame::Nack(_) => self.counts.refusals += 1,
            Frame::Want(WantReason::Digest, _) => {
                self.counts.digest_failures += 1;
                if !self.lies {
                    return Err(format!(
                        "invariant 1: node {from} got a step that does not lead to its HEAD"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What a server now knows of a node.
    pub(super) fn server_got(
        &mut self,
        net: &Net<Party>,
        link: Link,
        to: usize,
        from: usize,
        frame: &Frame,
    ) -> Checked {
        let now = net.now();
        let Some(at) = server(net, to, self.at) else { return Ok(()) };
        let window = u64::from(at.server.settings.window);
        let (want, name) = (self.want_in(frame).cloned(), self.name);
        // A boot is stale below the highest that any namespace knows of it.
        let stale = |hello: &Hello| {
            let mut known = at.server.socket.protocol().namespaces().iter().flat_map(|ns| ns.status());
            known.any(|n| n.node == hello.node && n.boot > hello.boot)
        };
        let talk = self.conversation(net, link, to, from);
        if let Some(heard) = coverage::heard(frame, name) {
            coverage::note(coverage::SESSION, talk.state(), heard);
        }
        match frame {
            Frame::Hello(hello) if talk.boot.is_none() => {
                talk.boot = Some(hello.boot);
                talk.window = u64::from(hello.window).min(window);
                talk.stale = stale(hello);
                if let Some(want) = want.filter(|_| !talk.stale) {
                    talk.wanted(WantReason::New, &want);
                    return self.contradiction(net, link);
                }
            }
            // Once more: another pipe became the one in use, or the boot was raised.
            Frame::Hello(hello) => {
                talk.boot = Some(hello.boot);
                talk.stale = stale(hello);
                if let Some(want) = want.filter(|_| !talk.stale) {
                    let taken_over = !talk.wants;
                    talk.wanted(WantReason::New, &want);
                    self.counts.fail_overs += u64::from(taken_over);
                    return self.contradiction(net, link);
                }
            }
            Frame::Want(reason, _) if talk.boot.is_some() => {
                let Some(want) = want else { return Ok(()) };
                talk.wanted(*reason, &want);
                return self.contradiction(net, link);
            }
            // Where queues fill, the server has put more than was seen to leave it.
            Frame::Credit(taken) if *taken > talk.taken && (*taken <= talk.sent || !talk.exact) => {
                talk.taken = *taken;
                talk.since = (talk.taken < talk.sent).then_some(now);
            }
            Frame::Ack(Ack { namespace, .. }) | Frame::Nack(Nack { namespace, .. }) if namespace != name => {}
            Frame::Ack(ack) => {
                talk.reached =
                    talk.reached.map(|at| if above(&ack.position, &at) { ack.position } else { at });
                if let Some(at) = talk.flight.iter().position(|flying| *flying == ack.position) {
                    talk.flight.drain(..=at);
                }
            }
            // One that a higher epoch ended, or that is only said again, changes nothing.
            Frame::Nack(nack) if nack.code == NackCode::Conflict => {
                talk.reached = None;
                let head = at.namespace().head();
                if head.is_none_or(|head| head.position.epoch.number <= nack.position.epoch.number) {
                    talk.start_anew();
                }
            }
            Frame::Nack(nack) if nack.code != NackCode::Hook && !talk.refused.contains(&nack.position) => {
                talk.start_anew();
                // It goes back to what it shows.
                talk.have = None;
                talk.holds = Some(nack.stays_at);
                talk.reached = Some(nack.stays_at);
                talk.refused.push(nack.position);
                if talk.refused.len() > 2 {
                    talk.refused.remove(0);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Invariant 7: a server that is shown what it cannot have issued says so.
    pub(super) fn contradiction(&mut self, net: &Net<Party>, link: Link) -> Checked {
        let foreign = self.keys.foreign;
        if let Some(talk) = self.conversations.get_mut(&link).filter(|talk| foreign && talk.server == 1) {
            // It takes no word of those whose key it does not know, and serves them as if they showed nothing.
            talk.have = None;
            return Ok(());
        }
        let Some(talk) = self.conversations.get(&link) else { return Ok(()) };
        if let Some(have) = &talk.have {
            let seen = &mut self.seen[talk.server];
            *seen = (*seen).max(have.position.epoch.number);
        }
        let Some(at) = server(net, talk.server, self.at) else { return Ok(()) };
        let open = net.link(link).is_some_and(|view| view.listener.1);
        let (Some(have), Some(head), true) = (&talk.have, at.namespace().head(), open) else {
            return Ok(());
        };
        let expected = match have.position.partial_cmp(&head.position) {
            None | Some(std::cmp::Ordering::Greater) => true,
            Some(std::cmp::Ordering::Equal) => have.chain != head.chain,
            Some(std::cmp::Ordering::Less) => {
                have.position.epoch == head.position.epoch && !self.lineage[talk.server].contains(&fact(have))
            }
        };
        let id = net.disk(talk.node).map(|disk| disk.read().id).unwrap_or_default();
        let said = at.namespace().status().iter().any(|n| n.node == id && n.conflict);
        let (lazy, at_server, epoch) = (at.server.lazy, talk.server, head.position.epoch);
        if said != expected && !lazy {
            return Err(format!(
                "invariant 7: node {} shows {} to a server at {}; conflict said: {said}",
                talk.node, have.position, head.position
            ));
        }
        if let (true, Some(talk)) = (expected, self.conversations.get_mut(&link)) {
            talk.contradicts = Some(epoch);
            if self.keys.used && !lazy {
                self.frozen[at_server] = Some(epoch);
            }
        }
        Ok(())
    }

    /// Invariants 12 and 18, as far as they are about what a node was told.
    pub(super) fn node_got(&mut self, net: &Net<Party>, link: Link, to: usize, frame: &Frame) -> Checked {
        let heads: Vec<&Head> = match frame {
            Frame::Beacon(heads) => heads.iter().filter(|head| self.is_mine(head)).collect(),
            Frame::Slice(slice) if !self.is_mine(&slice.head) => return Ok(()),
            Frame::Slice(slice) => {
                self.truths[to].waits = None;
                self.truths[to].intake.took(link, slice);
                vec![&slice.head]
            }
            Frame::Welcome(_) => {
                self.truths[to].welcomed.entry(link).or_insert(net.now());
                return Ok(());
            }
            _ => return Ok(()),
        };
        let Some(node) = agent(net, to, self.at) else { return Ok(()) };
        let open = net.link(link).is_some_and(|view| view.dialer.1);
        let used = self.truths[to].asked.contains(&link);
        let status = node.status(net.now());
        for head in heads.into_iter().filter(|_| used) {
            let forged = !self.is_true(head);
            let truth = &mut self.truths[to];
            let row = truth.forged.entry(link).or_default();
            *row = if forged { *row + 1 } else { 0 };
            if *row >= 3 && open {
                return Err(format!(
                    "invariant 5: node {to} listens to {row} forged HEADs in a row on {link:?}"
                ));
            }
            if forged || !admits(&head.audience, node.settings().node, &node.settings().labels) {
                continue;
            }
            let first = truth.seqs.is_empty();
            let epoch = (head.position.epoch.number, head.position.epoch.incarnation);
            let known = truth.seqs.get(&epoch).copied();
            if known.is_none_or(|known| known < head.seq) {
                truth.seqs.insert(epoch, head.seq);
                if !first {
                    truth.rose = Some(net.now());
                }
            }
            let Some((visible, _)) = node.replica().visible() else { continue };
            let (a, b) = (visible.position, head.position);
            let same = a.epoch == b.epoch;
            let tip = node.given.is_none() && !node.is_ready();
            // A later HEAD of what is held takes its place: so a promotion reaches who has it.
            let quarrels = status.data == Data::Conflict;
            if tip && open && !quarrels && a == b && visible.chain == head.chain && visible.seq < head.seq {
                return Err(format!("promotion: node {to} keeps an older HEAD of {a}"));
            }
            // Something of a higher epoch may be verified and not visible yet.
            let over = status.newest.is_some_and(|newest| newest.epoch.number > b.epoch.number);
            let contradicts = a.epoch.number == b.epoch.number && !same && !over
                || tip && a == b && (visible.chain, visible.digest) != (head.chain, head.digest)
                || same
                    && tip
                    && b.rev > a.rev
                    && head.prev_rev == a.rev
                    && head.chain != chain(&visible.chain, b.rev, &head.digest);
            if contradicts && open && status.data != Data::Conflict {
                return Err(format!("invariant 12: node {to} at {a} is told of {b} and raises no alarm"));
            }
        }
        Ok(())
    }
}

impl Conversation {
    /// Where the sender is with this node, as far as both have said it.
    pub(super) fn state(&self) -> &'static str {
        match self {
            Conversation { boot: None, .. } => "no HELLO yet",
            Conversation { stale: true, .. } => "turned away",
            Conversation { wants: false, .. } => "in reserve",
            Conversation { contradicts: Some(_), .. } => "in conflict",
            Conversation { transfer: Some(_), .. } => "in a transfer",
            Conversation { flight, .. } if !flight.is_empty() => "to be acknowledged",
            _ => "at rest",
        }
    }

    pub(super) fn start_anew(&mut self) {
        self.flight.clear();
        self.large = None;
        self.anew = true;
    }

    pub(super) fn wanted(&mut self, reason: WantReason, want: &Want) {
        self.start_anew();
        self.contradicts = None;
        self.wants = true;
        self.holds = want.have.first().map(|have| have.position);
        self.reached = (reason != WantReason::Digest).then_some(self.holds.unwrap_or_default());
        // Who asks for a snapshot says that what it has is of no use.
        self.have = want.have.first().filter(|_| reason != WantReason::Digest).cloned();
        self.refused = match reason {
            WantReason::Retry => Vec::new(),
            _ => want.refused.iter().map(|(at, _)| *at).collect(),
        };
    }
}
