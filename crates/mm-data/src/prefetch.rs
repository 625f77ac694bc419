//! Batches that threads of their own make ahead of their use.
//!
//! ```text
//! workers   the batch n + 1, n + 2, … n + ahead, each by the thread that is free, each in its place
//! training  takes the batch n, always the next one
//! ```
//!
//! | setting | default | range | meaning |
//! |---|---|---|---|
//! | `workers` | 0 | 0 to 256 | threads that make batches; 0: the one that takes them, when it takes them |
//! | `prefetch` | 2 | 1 to 1024 | batches that are made or being made beside the one in use, at most |
//!
//! What a batch is depends on its rows and its key alone, and they come in their order: no number depends on how many
//! threads there are. Memory is bounded by `prefetch`, not by how far the threads could get. A batch that cannot be made,
//! by an error or a panic of the thread, is an error in its place. When the one that takes batches stops, the threads
//! finish the batch that each is at and end, before [`Loader::with_batches`] returns.
//!
//! Without workers the rows of a batch are read by all threads of the pool while nothing else happens. With them, each
//! batch is read by one thread.

use crate::Loader;
use crate::input::Threads;
use candle_core::{DType, Device, Error, Result};
use mm_core::{Batch, Checked, ConfigError, StepRng};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How batches are made ahead of their use; the table is in [its module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Threads that make batches.
    pub workers: usize,
    /// Batches that are made or being made beside the one in use, at most.
    pub ahead: usize,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { workers: 0, ahead: 2 }
    }
}

impl Prefetch {
    /// Checks the ranges, under the names `workers` and `prefetch`.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("workers", self.workers as f64, 0.0, 256.0)?;
        ConfigError::check_range("prefetch", self.ahead as f64, 1.0, 1024.0)
    }
}

/// What a batch is made of.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// With a key, rows are augmented as in training, see [`Loader::training_batch`].
    pub key: Option<StepRng>,
    /// Type of the inputs.
    pub dtype: DType,
    /// Where they lie.
    pub device: &'a Device,
}

/// Batches in their order. After an error there are no more.
#[derive(Debug)]
pub struct Batches<'a>(Source<'a>);

enum Source<'a> {
    /// Made when they are asked for.
    Here { make: &'a (dyn Fn(usize, Threads) -> Result<Batch> + Sync), next: usize, count: usize },
    /// Made by workers.
    Workers(&'a Queue),
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Here { .. } => "Here",
            Self::Workers(_) => "Workers",
        })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        match &mut self.0 {
            Source::Here { make, next, count } => {
                let n = *next;
                *next += 1;
                let batch = (n < *count).then(|| make(n, Threads::All));
                if !matches!(batch, Some(Ok(_))) {
                    *next = *count;
                }
                batch
            }
            Source::Workers(queue) => queue.take(),
        }
    }
}

impl Loader<'_> {
    /// Calls `f` with the batches of `rows`, made as `recipe` says and ahead of their use as `prefetch` says. No thread
    /// outlives the call.
    pub fn with_batches<T>(
        &self,
        rows: &[Vec<usize>],
        recipe: Recipe<'_>,
        prefetch: Prefetch,
        f: impl FnOnce(&mut Batches<'_>) -> T,
    ) -> T {
        let make = |n: usize, threads: Threads| {
            self.make(&rows[n], recipe.key, threads, recipe.dtype, recipe.device)
        };
        ahead(&make, rows.len(), prefetch, f)
    }
}

fn ahead<T>(
    make: &(dyn Fn(usize, Threads) -> Result<Batch> + Sync),
    count: usize,
    prefetch: Prefetch,
    f: impl FnOnce(&mut Batches<'_>) -> T,
) -> T {
    let workers = prefetch.workers.min(prefetch.ahead).min(count);
    if workers == 0 {
        return f(&mut Batches(Source::Here { make, next: 0, count }));
    }
    let queue = Queue { count, ahead: prefetch.ahead, state: Mutex::default(), changed: Condvar::new() };
    std::thread::scope(|scope| {
        // Whatever ends `f` - its return or a panic - ends the workers.
        let _stop = Stop(&queue);
        for worker in 0..workers {
            let thread = std::thread::Builder::new().name(format!("batches-{worker}"));
            if let Err(e) = thread.spawn_scoped(scope, || queue.work(make)) {
                // Those that have started do all of the work.
                if worker == 0 {
                    queue.fail(&format!("no thread can be started to read batches ({e}); set workers = 0"));
                }
                break;
            }
        }
        f(&mut Batches(Source::Workers(&queue)))
    })
}

/// What workers and the one that takes batches share.
struct Queue {
    count: usize,
    ahead: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The batch that nobody has begun.
    next: usize,
    /// The batch that is taken next.
    taken: usize,
    made: BTreeMap<usize, Result<Batch>>,
    stop: bool,
}

struct Stop<'a>(&'a Queue);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes batches until there are none left or nobody wants them.
    fn work(&self, make: &dyn Fn(usize, Threads) -> Result<Batch>) {
        while let Some(n) = self.begin() {
            let made = catch_unwind(AssertUnwindSafe(|| make(n, Threads::One)));
            let made = made.unwrap_or_else(|panic| {
                let what = told(panic.as_ref());
                Err(Error::Msg(format!("the thread that read batch {n} of the epoch panicked: {what}")))
            });
            self.lock().made.insert(n, made);
            self.changed.notify_all();
        }
    }

    /// The next batch to make, once there is room for it.
    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stop || state.next >= self.count {
                return None;
            }
            if state.next < state.taken + self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
    }

    /// The next batch in order, as soon as it is made.
    fn take(&self) -> Option<Result<Batch>> {
        let mut state = self.lock();
        loop {
            if state.stop || state.taken >= self.count {
                return None;
            }
            let taken = state.taken;
            if let Some(batch) = state.made.remove(&taken) {
                state.taken += 1;
                state.stop = batch.is_err();
                self.changed.notify_all();
                return Some(batch);
            }
            state = self.wait(state);
        }
    }

    /// Puts an error in the place of the first batch.
    fn fail(&self, what: &str) {
        self.lock().made.insert(0, Err(Error::Msg(what.to_owned())));
    }
}

/// What a panic said.
fn told(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;
    use mm_core::Modal;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn batch(n: usize) -> Result<Batch> {
        let x = Tensor::full(n as f32, (1, 2), &Device::Cpu)?;
        Ok(Batch { ids: [n].into(), ..Batch::new(Modal::new(vec![x]), vec![0])? })
    }

    fn all(batches: &mut Batches<'_>) -> Vec<Result<Batch>> {
        batches.collect()
    }

    fn ids(batches: &mut Batches<'_>) -> Vec<usize> {
        batches.map(|batch| batch.expect("a batch").ids[0]).collect()
    }

    #[test]
    fn batches_come_in_their_order_whoever_makes_them() {
        // The first are the slowest, so that later ones are made before them.
        let make = |n: usize, _: Threads| {
            std::thread::sleep(Duration::from_millis(20u64.saturating_sub(4 * n as u64)));
            batch(n)
        };
        for workers in [0, 1, 2, 5, 40] {
            for size in [1, 3, 100] {
                let order = ahead(&make, 9, Prefetch { workers, ahead: size }, ids);
                assert_eq!(order, (0..9).collect::<Vec<_>>(), "{workers} workers, {size} ahead");
            }
        }
        assert!(ahead(&make, 0, Prefetch { workers: 2, ahead: 2 }, ids).is_empty());
    }

    #[test]
    fn no_more_batches_are_made_than_asked_for() {
        for (workers, size) in [(1, 1), (2, 3), (4, 2), (8, 5)] {
            let (begun, taken, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
            let make = |n: usize, _: Threads| {
                let beside = begun.fetch_add(1, Ordering::SeqCst) + 1 - taken.load(Ordering::SeqCst);
                most.fetch_max(beside, Ordering::SeqCst);
                batch(n)
            };
            ahead(&make, 60, Prefetch { workers, ahead: size }, |batches| {
                // A batch is taken before it is counted: room for one more than `ahead` may be seen.
                for batch in batches {
                    batch.expect("a batch");
                    std::thread::sleep(Duration::from_micros(300));
                    taken.fetch_add(1, Ordering::SeqCst);
                }
            });
            let most = most.load(Ordering::SeqCst);
            assert!(most <= size + 1, "{most} batches with {size} ahead");
            assert_eq!(begun.load(Ordering::SeqCst), 60);
        }
    }

    #[test]
    fn an_error_or_a_panic_comes_in_its_place_and_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let make = |n: usize, _: Threads| {
            begun.fetch_add(1, Ordering::SeqCst);
            match n {
                3 => Err(Error::Msg("row 3 is damaged".to_owned())),
                50 => panic!("number {n}"),
                _ => batch(n),
            }
        };
        for workers in [0, 1, 3] {
            let found = ahead(&make, 40, Prefetch { workers, ahead: 4 }, all);
            assert_eq!(found.len(), 4, "{workers}");
            assert!(found[..3].iter().all(Result::is_ok));
            assert_eq!(found[3].as_ref().expect_err("refused").to_string(), "row 3 is damaged");
            assert!(begun.swap(0, Ordering::SeqCst) <= 8);
        }
        let panicking = |n: usize, _: Threads| make(n + 50, Threads::One);
        let found = ahead(&panicking, 9, Prefetch { workers: 2, ahead: 2 }, all);
        assert_eq!(found.len(), 1);
        let said = found[0].as_ref().expect_err("a panic").to_string();
        assert_eq!(said, "the thread that read batch 0 of the epoch panicked: number 50");
    }

    #[test]
    fn whoever_stops_early_leaves_no_thread_behind() {
        let running = AtomicUsize::new(0);
        let make = |n: usize, _: Threads| {
            running.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            running.fetch_sub(1, Ordering::SeqCst);
            batch(n)
        };
        let prefetch = Prefetch { workers: 4, ahead: 8 };
        let first = ahead(&make, 1000, prefetch, |batches| batches.next().expect("one").is_ok());
        assert!(first);
        assert_eq!(running.load(Ordering::SeqCst), 0);
        let caught = catch_unwind(|| ahead(&make, 1000, prefetch, |_| panic!("stop")));
        assert!(caught.is_err());
        assert_eq!(running.load(Ordering::SeqCst), 0);
        // Nothing is taken at all.
        ahead(&make, 1000, prefetch, |_| ());
        assert_eq!(running.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn settings_are_checked() {
        let says = |workers, ahead| Prefetch { workers, ahead }.check().expect_err("refused").to_string();
        assert!(Prefetch::default().check().is_ok());
        assert!(says(257, 2).starts_with("workers = 257"), "{}", says(257, 2));
        assert!(says(0, 0).starts_with("prefetch = 0"), "{}", says(0, 0));
    }
}
