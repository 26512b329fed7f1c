//! The only source of chance in a simulated world.
//!
//! splitmix64 (Steele, Lea, Flood 2014). Never: for secrets; seeded by anything but a number.

use std::ops::Range;
use std::time::Duration;

/// Random numbers from a seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Rng {
        // Neighbouring seeds must not give neighbouring sequences.
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d);
        rng.next();
        rng
    }

    /// The next 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so an iterator would be a promise too much"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % (n as u64).max(1)) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A time from `range`; its start if it is empty. To the microsecond.
    pub fn time(&mut self, range: Range<Duration>) -> Duration {
        let span = range.end.saturating_sub(range.start).as_micros() as u64;
        range.start + Duration::from_micros(self.next() % span.max(1))
    }

    /// Other numbers, which do not depend on how many are drawn from these later.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next())
    }
}
