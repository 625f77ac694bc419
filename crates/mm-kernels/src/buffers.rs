//! Large intermediate results, recycled from step to step.
//!
//! A training step needs the same sizes again and again. Memory that goes back to the system between steps comes back as
//! zeroed pages, one fault each, and those cost more than most kernels.

use crate::scratch::{Bytes, Line, lines, view, view_mut, zeroed};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Lines of the smallest block that is worth keeping: 64 KiB. The allocator keeps smaller ones itself.
const WORTH: usize = (64 << 10) / size_of::<Line>();

/// What is free, the oldest first, and how much is lent.
struct Store {
    free: VecDeque<Vec<Line>>,
    /// Lines in `free`.
    kept: usize,
    /// Lines in buffers, and the most that ever were: with what is kept there are at most a quarter more.
    lent: usize,
    most: usize,
}

static STORE: Mutex<Store> = Mutex::new(Store { free: VecDeque::new(), kept: 0, lent: 0, most: 0 });

impl Store {
    /// Takes the smallest block that fits, and lends room for so many lines.
    fn lend(&mut self, lines: usize) -> Option<Vec<Line>> {
        let fits = |block: &Vec<Line>| block.len() >= lines && block.len() <= lines + lines / 8 + 64;
        let sizes = self.free.iter().enumerate().filter(|(_, block)| fits(block));
        let found = sizes.min_by_key(|(_, block)| block.len()).map(|(place, _)| place);
        let block = found.and_then(|place| self.free.remove(place));
        let size = block.as_ref().map_or(lines, Vec::len);
        self.kept -= block.as_ref().map_or(0, Vec::len);
        self.lent += size;
        self.most = self.most.max(self.lent);
        block
    }

    /// What must go so that a step with other sizes does not keep the blocks of all steps before it.
    fn surplus(&mut self) -> Vec<Vec<Line>> {
        let mut gone = Vec::new();
        // A quarter more, for sizes that are wanted at other times than the most memory is.
        while self.kept + self.lent > self.most + self.most / 4
            && let Some(block) = self.free.pop_front()
        {
            self.kept -= block.len();
            gone.push(block);
        }
        gone
    }
}

/// `len` numbers, which hold anything when they are new, and go back to the store when dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    block: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Bytes> Buffer<T> {
    pub(crate) fn new(len: usize) -> Self {
        let lines = lines::<T>(len);
        if lines < WORTH {
            return Self { block: zeroed(lines), len, of: PhantomData };
        }
        let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        let block = store.lend(lines);
        let gone = store.surplus();
        drop(store);
        drop(gone); // gives memory back, which takes long: not under the lock
        Self { block: block.unwrap_or_else(|| zeroed(lines)), len, of: PhantomData }
    }
}

impl<T: Bytes> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        view(&self.block, self.len)
    }
}

impl<T: Bytes> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        view_mut(&mut self.block, self.len)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.block.len() < WORTH {
            return;
        }
        let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        store.lent -= self.block.len();
        store.kept += self.block.len();
        store.free.push_back(std::mem::take(&mut self.block));
        let gone = store.surplus();
        drop(store);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lines: usize) -> Vec<Line> {
        zeroed(lines)
    }

    #[test]
    fn what_is_kept_is_bounded_by_what_was_needed() {
        let mut store = Store { free: VecDeque::new(), kept: 0, lent: 0, most: 0 };
        let back = |store: &mut Store, size: usize| {
            store.lent -= size;
            store.kept += size;
            store.free.push_back(block(size));
            store.surplus().iter().map(Vec::len).sum::<usize>()
        };
        // Steps of ever other sizes: each lends two blocks at a time and gives them back.
        for step in 0..50 {
            let size = 10_000 + 2_000 * (step % 7);
            for _ in 0..2 {
                store.lend(size);
                store.surplus();
            }
            for _ in 0..2 {
                back(&mut store, size);
            }
            assert_eq!(store.free.iter().map(Vec::len).sum::<usize>(), store.kept);
            assert!(store.kept + store.lent <= store.most * 5 / 4, "step {step}");
        }
        assert_eq!(store.most, 2 * 22_000);
        // The same sizes again find their blocks.
        let size = store.free.back().expect("kept").len();
        assert!(store.lend(size).is_some_and(|block| block.len() >= size));
    }

    #[test]
    #[should_panic(expected = "fit into memory")]
    fn a_size_that_wraps_is_no_small_buffer() {
        let _ = Buffer::<f32>::new(1 << 62);
    }
}
