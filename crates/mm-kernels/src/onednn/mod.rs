//! Convolutions of `f32` by oneDNN, with the feature `onednn`: activations with channels last.
//!
//! The library is Debian's `libdnnl-dev` (2.6.3; another 2.x has the same interface), linked by `build.rs`;
//! without the feature nothing of this is compiled.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the three functions, and the table of what was made for them |
//! | `library.rs` | the objects of the library with safe functions |
//! | `ffi.rs` | its C functions |
//!
//! Weights are turned to the order that the chosen implementation wants, and their gradient back, in every
//! call: they change in every step. What was made for a geometry is kept for the next call, [`KEPT`] at most.
//!
//! Threads: as many as the rayon pool of the caller has, so `RAYON_NUM_THREADS` rules here too; they are
//! OpenMP's own, which after a call spin for some time and slow rayon's down, unless the environment has
//! `OMP_WAIT_POLICY=passive`. One call runs at a time; others wait. The bits of a result depend on the
//! processor and, for the gradient of the weight, on the number of threads, which share out its sum.
#![allow(unsafe_code)] // calls a C library

mod ffi;
mod library;
#[cfg(test)]
mod tests;

use crate::conv::Geometry;
use crate::scratch::{Line, zeroed};
use candle_core::Error;
use ffi::{ConvolutionDesc, MemoryDesc};
use library::{Attributes, Chosen, Engine, Failure, Memory, Moves, Primitive, Stream, padded, use_threads};
use std::collections::btree_map::{BTreeMap, Entry};
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Convolutions kept for the next call; one more, and all are made anew.
const KEPT: usize = 512;

/// `y`, every number of it, from `x (n, h, w, ci)`, `w (co, ci / groups, kh, kw)` and `bias (co)`.
///
/// Errors name the function of the library that failed, and the geometry; `y` then holds anything.
pub(crate) fn forward(
    g: &Geometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> candle_core::Result<()> {
    assert_lengths(g, x, w, y);
    assert!(bias.is_none_or(|b| b.len() == g.co), "the bias has a number for each output channel of {g:?}");
    if g.n == 0 {
        return Ok(());
    }
    let kind = if bias.is_some() { Kind::ForwardBias } else { Kind::Forward };
    let bias = bias.map_or(std::ptr::null_mut(), read);
    // SAFETY: the lengths are those of the geometry, and `y` is borrowed mutably.
    unsafe { with(g, kind, &Pointers { x: read(x), w: read(w), bias, y: write(y) }) }
}

/// `dx`, every number of it: the gradient of `x` under `dy (n, oh, ow, co)`. Otherwise as [`forward`].
pub(crate) fn grad_input(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) -> candle_core::Result<()> {
    assert_lengths(g, dx, w, dy);
    if g.n == 0 {
        return Ok(());
    }
    let bias = std::ptr::null_mut();
    // SAFETY: the lengths are those of the geometry, and `dx` is borrowed mutably.
    unsafe { with(g, Kind::GradInput, &Pointers { x: write(dx), w: read(w), bias, y: read(dy) }) }
}

/// `dw`, every number of it: the gradient of the weight under `dy (n, oh, ow, co)`. Otherwise as [`forward`].
pub(crate) fn grad_weight(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) -> candle_core::Result<()> {
    assert_lengths(g, x, dw, dy);
    if g.n == 0 {
        dw.fill(0.0);
        return Ok(());
    }
    let bias = std::ptr::null_mut();
    // SAFETY: the lengths are those of the geometry, and `dw` is borrowed mutably.
    unsafe { with(g, Kind::GradWeight, &Pointers { x: read(x), w: write(dw), bias, y: read(dy) }) }
}

fn assert_lengths(g: &Geometry, x: &[f32], w: &[f32], y: &[f32]) {
    assert_eq!(x.len(), g.n * g.h * g.w * g.ci, "the input has the size of {g:?}");
    assert_eq!(w.len(), g.co * g.ci_group() * g.kh * g.kw, "the weight has the size of {g:?}");
    assert_eq!(y.len(), g.n * g.oh * g.ow * g.co, "the output has the size of {g:?}");
}

/// For an argument that the library reads.
fn read(values: &[f32]) -> *mut c_void {
    values.as_ptr().cast_mut().cast()
}

/// For an argument that the library writes.
fn write(values: &mut [f32]) -> *mut c_void {
    values.as_mut_ptr().cast()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Forward,
    ForwardBias,
    GradInput,
    GradWeight,
}

/// The numbers of a call, or their gradients; `bias` for [`Kind::ForwardBias`] alone.
struct Pointers {
    x: *mut c_void,
    w: *mut c_void,
    bias: *mut c_void,
    y: *mut c_void,
}

/// What a convolution is made for: kind, threads (a primitive cuts its work up when it is made) and geometry.
type Key = (Kind, usize, [usize; 16]);

fn key(g: &Geometry, kind: Kind, threads: usize) -> Key {
    let ((sh, sw), (ph, pw), (dh, dw)) = (g.stride, g.padding, g.dilation);
    let sizes = [g.n, g.h, g.w, g.ci, g.co, g.kh, g.kw, sh, sw, ph, pw, dh, dw, g.groups, g.oh, g.ow];
    (kind, threads, sizes)
}

/// All that is kept, in the order in which it may be dropped.
struct Context {
    made: BTreeMap<Key, Convolution>,
    attributes: Attributes,
    stream: Stream,
    engine: Engine,
    room: Room,
}

/// Memory that holds nothing between calls, and so is shared by all convolutions.
#[derive(Default)]
struct Room {
    weights: Vec<Line>,
    scratchpad: Vec<Line>,
}

/// The only way to the library's objects: no two threads are inside it at once.
static CONTEXT: Mutex<Option<Context>> = Mutex::new(None);

/// Runs a convolution.
///
/// # Safety
/// The pointers are to as many numbers as the geometry says. Those that the kind writes to - `y`, `x` for
/// `GradInput`, `w` for `GradWeight` - nobody else reads or writes meanwhile, the others nobody writes.
unsafe fn with(g: &Geometry, kind: Kind, p: &Pointers) -> candle_core::Result<()> {
    let threads = rayon::current_num_threads();
    // A panic under the lock leaves nothing half done that matters: each call sets all that it uses.
    let mut context = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    use_threads(threads);
    // SAFETY: the caller's promise is handed on.
    let result = unsafe { Context::run(&mut context, g, kind, threads, p) };
    result.map_err(|failure| Error::Msg(format!("onednn: {failure}, for the {kind:?} of {g:?}")))
}

impl Context {
    fn new() -> Result<Self, Failure> {
        library::version()?;
        let engine = Engine::new()?;
        let (stream, attributes) = (Stream::new(&engine)?, Attributes::new()?);
        Ok(Self { made: BTreeMap::new(), attributes, stream, engine, room: Room::default() })
    }

    /// # Safety
    /// As for [`with`].
    unsafe fn run(
        this: &mut Option<Self>,
        g: &Geometry,
        kind: Kind,
        threads: usize,
        p: &Pointers,
    ) -> Result<(), Failure> {
        let Self { made, attributes, stream, engine, room } = match this {
            Some(context) => context,
            none => none.insert(Self::new()?),
        };
        let key = key(g, kind, threads);
        if made.len() >= KEPT && !made.contains_key(&key) {
            made.clear();
        }
        let convolution = match made.entry(key) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(Convolution::new(engine, attributes, g, kind)?),
        };
        // SAFETY: made for this kind and geometry, and the caller vouches for the pointers.
        unsafe { convolution.run(stream, kind, p, room) }
    }
}

/// A convolution of one kind and geometry.
struct Convolution {
    primitive: Primitive,
    x: Memory,
    /// The weight as the primitive takes it.
    w: Memory,
    bias: Option<Memory>,
    y: Memory,
    turned: Option<Turned>,
}

/// What it takes to turn the weight from or to its order outside.
struct Turned {
    primitive: Primitive,
    outside: Memory,
    /// Bytes of the weight as the convolution takes it.
    size: usize,
}

impl Convolution {
    fn new(engine: &Engine, attributes: &Attributes, g: &Geometry, kind: Kind) -> Result<Self, Failure> {
        let (chosen, descs) = choose(engine, attributes, g, kind)?;
        let writes = kind == Kind::GradWeight;
        let inside = chosen.desc(if writes { ffi::DIFF_WEIGHTS } else { ffi::WEIGHTS })?;
        let turned = if inside.is(&descs.w) {
            None
        } else {
            let (from, to) = if writes { (&inside, &descs.w) } else { (&descs.w, &inside) };
            let reorder = Chosen::reorder(engine, attributes, from, to)?;
            let primitive = Primitive::new(engine, &reorder)?;
            Some(Turned { primitive, outside: Memory::new(engine, &descs.w)?, size: inside.size() })
        };
        Ok(Self {
            primitive: Primitive::new(engine, &chosen)?,
            x: Memory::new(engine, &descs.x)?,
            w: Memory::new(engine, &inside)?,
            bias: descs.bias.map(|bias| Memory::new(engine, &bias)).transpose()?,
            y: Memory::new(engine, &descs.y)?,
            turned,
        })
    }

    /// # Safety
    /// As for [`with`]; the convolution was made for `kind` and the geometry.
    unsafe fn run(
        &self,
        stream: &Stream,
        kind: Kind,
        p: &Pointers,
        Room { weights, scratchpad }: &mut Room,
    ) -> Result<(), Failure> {
        let turned_scratch = self.turned.as_ref().map_or(0, |t| t.primitive.scratchpad_size());
        let scratch = at_least(scratchpad, self.primitive.scratchpad_size().max(turned_scratch));
        let w = match &self.turned {
            Some(turned) => at_least(weights, turned.size),
            None => p.w,
        };
        // SAFETY: `p.w` is the weight in its order outside, `w` is room of the size that the library asks for
        // in its own (both the same memory, or blocks apart), `scratch` is a block apart of the size that
        // either asks for, and the caller vouches for the rest. Both blocks live in `Room`, which is borrowed
        // until the library is done.
        unsafe {
            if kind == Kind::GradWeight {
                let x = (ffi::ARG_SRC, &self.x, p.x);
                let arguments = [x, (ffi::ARG_DIFF_WEIGHTS, &self.w, w), (ffi::ARG_DIFF_DST, &self.y, p.y)];
                self.primitive.execute(stream, &arguments, scratch)?;
                let Some(t) = &self.turned else { return Ok(()) };
                let arguments = [(ffi::ARG_SRC, &self.w, w), (ffi::ARG_DST, &t.outside, p.w)];
                return t.primitive.execute(stream, &arguments, scratch);
            }
            if let Some(t) = &self.turned {
                let arguments = [(ffi::ARG_SRC, &t.outside, p.w), (ffi::ARG_DST, &self.w, w)];
                t.primitive.execute(stream, &arguments, scratch)?;
            }
            let [x, y] = match kind {
                Kind::GradInput => [ffi::ARG_DIFF_SRC, ffi::ARG_DIFF_DST],
                _ => [ffi::ARG_SRC, ffi::ARG_DST],
            };
            let (x, w, y) = ((x, &self.x, p.x), (ffi::ARG_WEIGHTS, &self.w, w), (y, &self.y, p.y));
            match &self.bias {
                None => self.primitive.execute(stream, &[x, w, y], scratch),
                Some(bias) => {
                    self.primitive.execute(stream, &[x, w, y, (ffi::ARG_BIAS, bias, p.bias)], scratch)
                }
            }
        }
    }
}

/// A block of at least as many bytes, whatever they are.
fn at_least(block: &mut Vec<Line>, bytes: usize) -> *mut c_void {
    let lines = bytes.div_ceil(size_of::<Line>());
    if block.len() < lines {
        *block = zeroed(lines); // what it holds need not be copied
    }
    block.as_mut_ptr().cast()
}

/// The orders of numbers outside.
struct Descs {
    x: MemoryDesc,
    w: MemoryDesc,
    bias: Option<MemoryDesc>,
    y: MemoryDesc,
}

/// The implementation that the library takes for a convolution.
fn choose(
    engine: &Engine,
    attributes: &Attributes,
    g: &Geometry,
    kind: Kind,
) -> Result<(Chosen, Descs), Failure> {
    let grouped = [g.groups, g.co_group(), g.ci_group(), g.kh, g.kw];
    let (dims, tag): (&[usize], c_int) =
        if g.groups == 1 { (&grouped[1..], ffi::TAG_OIHW) } else { (&grouped, ffi::TAG_GOIHW) };
    let descs = Descs {
        x: MemoryDesc::new(&[g.n, g.ci, g.h, g.w], ffi::TAG_NHWC)?,
        w: MemoryDesc::new(dims, tag)?,
        bias: (kind == Kind::ForwardBias).then(|| MemoryDesc::new(&[g.co], ffi::TAG_X)).transpose()?,
        y: MemoryDesc::new(&[g.n, g.co, g.oh, g.ow], ffi::TAG_NHWC)?,
    };
    let (x, w, y) = (&descs.x, &MemoryDesc::new(dims, ffi::TAG_ANY)?, &descs.y);
    // What the last window reaches beyond the far border: less than `p` where the stride leaves a remainder.
    let after = |o: usize, size: usize, k: usize, s: usize, p: usize, d: usize| {
        ((o - 1) * s + (k - 1) * d + 1).saturating_sub(size + p)
    };
    let m = &Moves {
        strides: padded(&[g.stride.0, g.stride.1]),
        dilates: padded(&[g.dilation.0 - 1, g.dilation.1 - 1]),
        before: padded(&[g.padding.0, g.padding.1]),
        after: padded(&[
            after(g.oh, g.h, g.kh, g.stride.0, g.padding.0, g.dilation.0),
            after(g.ow, g.w, g.kw, g.stride.1, g.padding.1, g.dilation.1),
        ]),
    };
    let forward = ConvolutionDesc::forward(x, w, descs.bias.as_ref(), y, m)?;
    let forward = Chosen::convolution(engine, attributes, &forward, None)?;
    let backward = match kind {
        Kind::Forward | Kind::ForwardBias => return Ok((forward, descs)),
        Kind::GradInput => ConvolutionDesc::grad_input(x, w, y, m)?,
        Kind::GradWeight => ConvolutionDesc::grad_weight(x, w, y, m)?,
    };
    Ok((Chosen::convolution(engine, attributes, &backward, Some(&forward))?, descs))
}
