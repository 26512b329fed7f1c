//! The SP decoder: a read of many frames taken apart, as tcp and as ipc frames.
#![expect(missing_docs, reason = "criterion_group! makes functions without any")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spanwire::protocol::ProtocolInfo;
use spanwire::wire::{Decoder, Hello, Inbox, Input, Side, Sp, Wire};

/// What one read brings.
const READ: usize = 64 << 10;

/// A decoder behind its handshake.
fn decoder(wire: Sp) -> Box<dyn Decoder> {
    let info = ProtocolInfo::new(0x51, "pull", 0x50, "push");
    let hello = Hello::new(info, Side::Listener, 1 << 20, "tcp://127.0.0.1:0");
    let (mut decoder, _) = Box::new(wire).start(&hello, &mut Vec::new());
    let mut input = Input::new(&[0, b'S', b'P', 0, 0, 0x50, 0, 0]);
    decoder.input(&mut input, &mut Inbox::with_budget(0)).expect("a handshake as SP has it");
    decoder
}

fn frames(prefix: &[u8], size: usize, count: usize) -> Vec<u8> {
    let frame = [prefix, &(size as u64).to_be_bytes(), &vec![7; size]].concat();
    frame.repeat(count)
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/decode");
    for (name, wire, prefix) in [("tcp", Sp::TCP, &b""[..]), ("ipc", Sp::IPC, b"\x01")] {
        for size in [8, 64, 1024] {
            let count = READ / (prefix.len() + 8 + size);
            let bytes = frames(prefix, size, count);
            let mut decoder = decoder(wire);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_batched_ref(
                    || Inbox::with_budget(count),
                    |inbox| {
                        decoder.input(&mut Input::new(&bytes), inbox).expect("whole frames");
                        assert_eq!(inbox.messages().len(), count);
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
}

/// The same with the inbox's memory used again, as the engine does it.
fn decode_and_take(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/decode_and_take");
    for size in [8, 64, 1024] {
        let count = 16;
        let bytes = frames(b"", size, count);
        let (mut decoder, mut inbox) = (decoder(Sp::TCP), Inbox::with_budget(usize::MAX));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("tcp", size), |b| {
            b.iter(|| {
                decoder.input(&mut Input::new(&bytes), &mut inbox).expect("whole frames");
                inbox.messages().drain(..).map(|m| m.len()).sum::<usize>()
            });
        });
    }
}

criterion_group!(benches, decode, decode_and_take);
criterion_main!(benches);
