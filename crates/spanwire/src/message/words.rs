//! Header words of a message whose body is shared.
//!
//! Up to eight words without allocation: a backtrace at the default TTL. Never: grows by itself; the
//! protocols bound their stacks.

const FEW: usize = 8;

#[derive(Clone)]
pub(super) enum Words {
    Few(u8, [u32; FEW]),
    Many(Vec<u32>),
}

impl Default for Words {
    fn default() -> Self {
        Words::Few(0, [0; FEW])
    }
}

impl Words {
    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Words::Few(n, words) => &words[..*n as usize],
            Words::Many(words) => words,
        }
    }

    pub(super) fn push(&mut self, word: u32) {
        match self {
            Words::Few(n, words) if (*n as usize) < FEW => {
                words[*n as usize] = word;
                *n += 1;
            }
            Words::Few(..) => self.insert_many(self.as_slice().len(), word),
            Words::Many(words) => words.push(word),
        }
    }

    pub(super) fn push_front(&mut self, word: u32) {
        match self {
            Words::Few(n, words) if (*n as usize) < FEW => {
                words.copy_within(..*n as usize, 1);
                words[0] = word;
                *n += 1;
            }
            Words::Few(..) => self.insert_many(0, word),
            Words::Many(words) => words.insert(0, word),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<u32> {
        match self {
            Words::Few(0, _) => None,
            Words::Few(n, words) => {
                let first = words[0];
                words.copy_within(1..*n as usize, 0);
                *n -= 1;
                Some(first)
            }
            Words::Many(words) if words.is_empty() => None,
            Words::Many(words) => Some(words.remove(0)),
        }
    }

    #[cold]
    fn insert_many(&mut self, at: usize, word: u32) {
        let mut words = self.as_slice().to_vec();
        words.insert(at, word);
        *self = Words::Many(words);
    }
}
