//! Statistics: what is gone and what is there, in one snapshot.
//!
//! Owns: the sums. Never: counts by itself.

use super::core::State;
use crate::events::{PipeStats, Stats};

pub(super) fn snapshot(st: &State) -> Stats {
    let mut stats = st.totals.clone();
    stats.drops = st.fx.drops.iter().collect();
    stats.own = st.fx.own.clone();
    for p in st.pipes.iter() {
        stats.tx_msgs += p.sent.0;
        stats.tx_bytes += p.sent.1;
        stats.rx_msgs += p.received.0;
        stats.rx_bytes += p.received.1;
        stats.pipes.push(PipeStats {
            pipe: p.id,
            endpoint: p.info.endpoint,
            remote: p.info.facts.remote.clone(),
            tx_msgs: p.sent.0,
            tx_bytes: p.sent.1,
            rx_msgs: p.received.0,
            rx_bytes: p.received.1,
            queued: p.out.len() + p.taken_messages,
            queued_bytes: p.out.bytes() + p.taken_bytes,
            pending: p.inq.len(),
            drops: p.drops.iter().collect(),
        });
    }
    stats
}
