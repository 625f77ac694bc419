//! Large intermediate results, recycled from step to step.
//!
//! A training step needs the same sizes again and again. Memory that goes back to the system between steps comes back as
//! zeroed pages, one fault each, and those cost more than most kernels.

use crate::scratch::{Bytes, Line, view, view_mut, zeroed};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Blocks that are kept; a step of a residual network of 18 layers has some 40 alive.
const KEPT: usize = 64;

static FREE: Mutex<VecDeque<Vec<Line>>> = Mutex::new(VecDeque::new());

/// `len` numbers, which hold anything when they are new, and go back to the store when dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    block: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Bytes> Buffer<T> {
    pub(crate) fn new(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |block: &Vec<Line>| block.len() >= lines && block.len() <= lines + lines / 8 + 64;
        let found =
            free.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.len()).map(|(i, _)| i);
        let block = found.and_then(|i| free.remove(i));
        drop(free);
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
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.push_back(std::mem::take(&mut self.block));
        if free.len() > KEPT {
            free.pop_front();
        }
    }
}
