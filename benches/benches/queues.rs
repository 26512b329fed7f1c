//! A pipe's queues, as a protocol reaches them: put and drained, arrived and taken, offered to a full one.
#![expect(missing_docs, reason = "criterion_group! makes functions without any")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use spanwire::Message;
use spanwire::protocol::script::Script;
use spanwire::protocol::{Cx, Overflow, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Reject};

/// Messages in a batch.
const BATCH: usize = 100;

/// Leaves all to the caller: what is measured is the queues.
#[derive(Default)]
struct Bare(PipeMap<()>);

impl Protocol for Bare {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0xf000, "bare", 0xf000, "bare")
    }
    fn pipe_opened(&mut self, _: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.0.insert(pipe, ());
        Ok(())
    }
    fn pipe_closed(&mut self, _: &mut Cx<'_>, pipe: PipeId) {
        self.0.remove(pipe);
    }
    fn readable(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn readiness(&self) -> Readiness {
        Readiness::default()
    }
}

fn outbound(c: &mut Criterion) {
    let mut group = c.benchmark_group("queues/put_and_drain");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut script = Script::new(Bare::default());
    let pipe = script.open(BATCH);
    let msg = Message::from(&[7; 64]);
    group.bench_function("64", |b| {
        b.iter(|| {
            script.call(|_, cx| (0..BATCH).filter(|_| cx.put(pipe, msg.clone()).is_ok()).count());
            assert_eq!(script.drain_apart(pipe, BATCH).len(), BATCH);
        });
    });
}

fn inbound(c: &mut Criterion) {
    let mut group = c.benchmark_group("queues/arrive_and_take");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut script = Script::new(Bare::default());
    let pipe = script.open(BATCH);
    let msg = Message::from(&[7; 64]);
    group.bench_function("64", |b| {
        b.iter(|| {
            script.arrive(pipe, (0..BATCH).map(|_| msg.clone()));
            let taken = script.call(|_, cx| std::iter::from_fn(|| cx.take(pipe)).count());
            assert_eq!(taken, BATCH);
        });
    });
}

/// What a slow subscriber costs its publisher.
fn overflow(c: &mut Criterion) {
    let mut group = c.benchmark_group("queues/offer_to_a_full_pipe");
    for (name, overflow) in [("drop_newest", Overflow::DropNewest), ("drop_oldest", Overflow::DropOldest)] {
        let mut script = Script::new(Bare::default());
        let pipe = script.open(BATCH);
        let msg = Message::from(&[7; 64]);
        script.call(|_, cx| (0..BATCH).filter(|_| cx.put(pipe, msg.clone()).is_ok()).count());
        group.bench_function(name, |b| {
            b.iter(|| script.call(|_, cx| cx.offer(pipe, &msg, overflow)));
        });
        assert!(script.all_drops() > 0, "the pipe was not full");
    }
}

criterion_group!(benches, outbound, inbound, overflow);
criterion_main!(benches);
