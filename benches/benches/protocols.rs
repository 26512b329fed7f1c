//! Protocols without I/O: push sends into queues that are drained, pull receives what has arrived.
#![expect(missing_docs, reason = "criterion_group! makes functions without any")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spanwire::Message;
use spanwire::protocol::pull::Pull;
use spanwire::protocol::push::Push;
use spanwire::protocol::script::Script;

/// Messages for each pipe in a turn.
const BATCH: usize = 100;

fn push(c: &mut Criterion) {
    let mut group = c.benchmark_group("protocols/push_send");
    for peers in [1, 10, 100] {
        let mut script = Script::new(Push::new());
        let pipes: Vec<_> = (0..peers).map(|_| script.open(2 * BATCH)).collect();
        let msg = Message::from(&[7; 64]);
        group.throughput(Throughput::Elements((peers * BATCH) as u64));
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter(|| {
                for _ in 0..peers * BATCH {
                    script.send(msg.clone()).expect("there is room for twice as many");
                }
                let drained: usize = pipes.iter().map(|p| script.drain_apart(*p, BATCH).len()).sum();
                assert_eq!(drained, peers * BATCH);
            });
        });
    }
}

fn pull(c: &mut Criterion) {
    let mut group = c.benchmark_group("protocols/pull_recv");
    for peers in [1, 10, 100] {
        let mut script = Script::new(Pull::new());
        let pipes: Vec<_> = (0..peers).map(|_| script.open(BATCH)).collect();
        let msg = Message::from(&[7; 64]);
        group.throughput(Throughput::Elements((peers * BATCH) as u64));
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter(|| {
                for pipe in &pipes {
                    script.arrive(*pipe, (0..BATCH).map(|_| msg.clone()));
                }
                let received = std::iter::from_fn(|| script.recv()).count();
                assert_eq!(received, peers * BATCH);
            });
        });
    }
}

criterion_group!(benches, push, pull);
criterion_main!(benches);
