//! Messages: made, cloned, given and relieved of header words, below and above the inline size.
#![expect(missing_docs, reason = "criterion_group! makes functions without any")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spanwire::Message;

const SIZES: [usize; 5] = [8, 64, 65, 1024, 65536];

fn make(c: &mut Criterion) {
    let mut group = c.benchmark_group("message/from_slice");
    for size in SIZES {
        let body = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &body, |b, body| {
            b.iter(|| Message::from_slice(black_box(body)));
        });
    }
}

fn clone(c: &mut Criterion) {
    let mut group = c.benchmark_group("message/clone");
    for size in SIZES {
        let msg = Message::from(vec![7; size]);
        group.bench_with_input(BenchmarkId::from_parameter(size), &msg, |b, msg| {
            b.iter(|| black_box(msg).clone());
        });
    }
}

/// What a request goes through: an id in front, joined on a wire, the id taken off.
fn header(c: &mut Criterion) {
    let mut group = c.benchmark_group("message/header");
    for size in [8, 64, 1024] {
        let msg = Message::from(vec![7; size]);
        group.bench_with_input(BenchmarkId::new("push_pop", size), &msg, |b, msg| {
            b.iter_batched_ref(
                || msg.clone(),
                |msg| {
                    msg.push_word_front(black_box(0x8000_0001));
                    msg.pop_header()
                },
                BatchSize::SmallInput,
            );
        });
        let mut request = msg.clone();
        request.push_word_front(0x8000_0001);
        let request = request.joined();
        group.bench_with_input(BenchmarkId::new("pop_joined", size), &request, |b, msg| {
            b.iter_batched_ref(|| msg.clone(), |msg| msg.pop_word(), BatchSize::SmallInput);
        });
    }
}

/// What a writer does with a message.
fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("message/append_to");
    for size in [8, 64, 1024] {
        let msg = Message::from(vec![7; size]);
        let mut out = Vec::with_capacity(size);
        group.bench_with_input(BenchmarkId::from_parameter(size), &msg, |b, msg| {
            b.iter(|| {
                out.clear();
                black_box(msg).append_to(&mut out);
                black_box(&out);
            });
        });
    }
}

criterion_group!(benches, make, clone, header, append);
criterion_main!(benches);
