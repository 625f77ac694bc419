//! The memory that loss and coefficient kernels take: it grows with batch times classes, and with nothing else.
//!
//! An executable of its own, because it counts every allocation of its process.

#![allow(clippy::unwrap_used)] // a test that unwraps an error has failed as it should
#![allow(unsafe_code)] // an allocator that counts

use candle_core::{Device, Result, Tensor, Var};
use mm_balance::{lfm, mlb, ogm, opm, score, sum_ce, unimodal};
use mm_core::{Batch, Modal, StepRng};
use mm_kernels::cross_entropy;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is the system allocator's; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(live, Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were alive at once during a call, beyond those before it.
fn peak<R>(f: impl FnOnce() -> R) -> usize {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    drop(f());
    PEAK.load(Ordering::SeqCst) - before
}

struct Case {
    fused: Var,
    logits: Modal<Var>,
    batch: Batch,
}

impl Case {
    fn new(rows: usize, classes: usize) -> Result<Self> {
        let mut draws = StepRng::new(1).draws();
        let mut normal = || -> Result<Var> {
            let values: Vec<f32> = (0..rows * classes).map(|_| draws.normal() as f32).collect();
            Var::from_tensor(&Tensor::from_vec(values, (rows, classes), &Device::Cpu)?)
        };
        let (fused, logits) = (normal()?, Modal::try_from_fn(2, |_| normal())?);
        let labels = (0..rows).map(|i| (i % classes) as u32).collect();
        Ok(Self { fused, batch: Batch::new(logits.map(|_, z| z.detach()), labels)?, logits })
    }

    fn heads(&self) -> Modal<Tensor> {
        self.logits.map(|_, z| z.as_tensor().clone())
    }
}

type Kernel = fn(&Case) -> Result<()>;

const KERNELS: [(&str, Kernel); 8] = [
    ("cross-entropy", |c| cross_entropy(&c.fused, &c.batch.labels, None)?.backward().map(drop)),
    ("multi-loss", |c| unimodal::losses_and_scores(&c.heads(), &c.batch)?.0.backward().map(drop)),
    ("sum-ce", |c| {
        let probabilities = sum_ce::probabilities(&c.heads(), &c.batch)?;
        let sum = mm_core::model::sum(probabilities.values())?;
        cross_entropy(&sum, &c.batch.labels, None)?.backward().map(drop)
    }),
    ("alignment", |c| {
        let heads = c.heads();
        lfm::alignment(&heads.values()[0], &heads.values()[1])?.backward().map(drop)
    }),
    ("jensen-shannon", |c| {
        let heads = c.heads();
        lfm::jensen_shannon(&heads.values()[0], &heads.values()[1])?.backward().map(drop)
    }),
    ("mlb coefficient", |c| {
        mlb::coefficients(&score::true_class(&c.heads(), &c.batch)?.into_values(), 0.8, 5.0);
        Ok(())
    }),
    ("ogm coefficient", |c| {
        ogm::coefficients(&score::true_class(&c.heads(), &c.batch)?.into_values(), 0.8);
        Ok(())
    }),
    ("opm probability", |c| {
        opm::drop_probabilities(&score::true_class(&c.heads(), &c.batch)?.into_values(), 0.5, 0.5);
        Ok(())
    }),
];

#[test]
fn memory_grows_with_batch_times_classes_only() {
    // Threads of the pool start once, and are no kernel's.
    for (_, kernel) in KERNELS {
        kernel(&Case::new(1024, 64).unwrap()).unwrap();
    }
    for (rows, classes) in [(16, 4), (256, 8), (64, 309), (1024, 64)] {
        let case = Case::new(rows, classes).unwrap();
        let logits = rows * classes * size_of::<f32>();
        for (name, kernel) in KERNELS {
            let bytes = peak(|| kernel(&case).unwrap());
            // Measured: 3 to 5 matrices of logits for a cross-entropy, 21 for the divergences, which are compositions over two
            // modalities with a gradient beside each step; one factor for all shapes.
            let most = if name.contains(' ') { 4 } else { 24 };
            println!("{name}, {rows}x{classes}: {:.1} times the logits", bytes as f64 / logits as f64);
            assert!(
                bytes <= most * logits + 16 * 1024,
                "{name}, {rows} rows, {classes} classes: {bytes} bytes"
            );
        }
    }
}
