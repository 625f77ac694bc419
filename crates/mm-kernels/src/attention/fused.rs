//! Attention on the CPU as one operation: every head of every row is a task, with its scores in this thread's memory.
//!
//! candle's products of batches wake its threads for each matrix, and every step between them is a tensor with a gradient
//! that is zeroed, added and copied. Here the weights of a head are all that is kept for the backward pass. Of the scores
//! by offset only the band that a block of queries reads is computed.
//!
//! With P the softmax of the scores S, O = P v, and dP = dO vᵀ:
//!
//! ```text
//! dv = Pᵀ dO,  dS = P (dP - sum_j P dP),  dq = scale dS k,  dk = scale dSᵀ q
//! ```
//!
//! and with positions also dr[i, N - 1 - (i - j)] = dS[i, j], dq += scale dr p, dp = scale drᵀ (q + v).
#![allow(unsafe_code)] // matrices inside tensors as pointers and distances; tasks write disjoint parts of results

use super::matrix::{Matrix, product, product_into};
use super::{RelativePositions, key_mask};
use crate::buffers::Buffer;
use crate::conv::Number;
use crate::host::{Real, View, by_dtype, sum_of, sum_pairs, together};
use crate::nary::{Backward, node};
use crate::parallel::filled;
use crate::scratch::{self, Shared};
use crate::simd::{Isa, on};
use crate::vmath::{Map, Mapped, Math, in_place};
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Queries whose scores by offset are computed together.
const BLOCK: usize = 64;
/// Products below which one thread does all.
const SMALL: usize = 1 << 16;
/// Far below every score and yet finite, as in the composition.
const MASKED: f64 = -1e30;

/// What is added to the scores, or hides them.
enum Mask {
    None,
    /// (B, M), 1 and 0.
    Keys(Vec<u8>),
    /// Of the type of the scores; the distances of row, head, query and key, zero where it is broadcast.
    Added(Tensor, [usize; 4]),
}

impl Mask {
    fn new(op: &str, mask: Option<&Tensor>, [batch, heads, n, m]: [usize; 4]) -> Result<Self> {
        let Some(mask) = mask else { return Ok(Self::None) };
        if mask.dtype() == DType::U8 {
            return Ok(Self::Keys(key_mask(op, mask, batch, m)?.flatten_all()?.to_vec1::<u8>()?));
        }
        let mask = mask.detach().contiguous()?;
        let strides = mask.broadcast_as((batch, heads, n, m))?.stride().to_vec();
        Ok(Self::Added(mask, std::array::from_fn(|k| strides.get(k).copied().unwrap_or(0))))
    }
}

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    scale: f64,
}

impl Sizes {
    /// The first number of a head of `places` rows.
    fn at(&self, task: usize, places: usize) -> usize {
        let row = self.width * self.heads;
        task / self.heads * places * row + task % self.heads * self.width
    }

    /// Runs the tasks, one for each head of each row.
    fn each(&self, f: impl Fn(usize) + Sync + Send) {
        let tasks = self.batch * self.heads;
        if tasks * self.queries * self.keys * self.width < SMALL {
            (0..tasks).for_each(f);
        } else {
            (0..tasks).into_par_iter().for_each(f);
        }
    }

    /// For each block of queries: the queries, and the offsets that they read.
    fn bands(&self) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
        let n = self.queries;
        (0..n).step_by(BLOCK).map(move |first| {
            let end = (first + BLOCK).min(n);
            (first..end, n - end..2 * n - 1 - first)
        })
    }
}

/// The positions of [`super::attention_relative`], outside the graph.
struct Positions {
    table: Tensor,
    content: Tensor,
    position: Tensor,
}

/// `q + bias` of one head, row after row.
fn biased<T: Real>(q: &[T], first: usize, step: usize, bias: &[T], out: &mut [T]) {
    for (i, out) in out.chunks_exact_mut(bias.len()).enumerate() {
        let q = &q[first + i * step..][..bias.len()];
        for ((out, &q), &bias) in out.iter_mut().zip(q).zip(bias) {
            *out = q + bias;
        }
    }
}

struct Shifted(f64);

impl<T> Map<T, 1> for Shifted {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [x]: [V; 1]) -> V {
        // SAFETY: passed on.
        unsafe { x.sub(V::of(self.0)).exp() }
    }
}

/// The softmax of a row in its place. A NaN makes the whole row NaN, as everywhere.
fn softmax<T: Real + Mapped>(isa: Isa, row: &mut [T]) {
    let lowest = T::from_f64(f64::NEG_INFINITY);
    let most = on(isa, || {
        let mut lanes = [lowest; 16];
        let chunks = row.chunks_exact(16);
        let rest = chunks.remainder().iter().fold(lowest, |a, &b| if b > a { b } else { a });
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        lanes.into_iter().fold(rest, |a, b| if b > a { b } else { a })
    });
    in_place(isa, row, &Shifted(most.to_f64()));
    on(isa, || {
        let scale = T::one() / sum_of(row, |x| x);
        for x in row.iter_mut() {
            *x *= scale;
        }
    });
}

/// The result (B, N, D), as one operation of its arguments; they fit, and nothing is empty.
pub(super) fn attend(
    op: &'static str,
    [q, k, v]: [&Tensor; 3],
    positions: Option<&RelativePositions<'_>>,
    mask: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    by_dtype!(op, q.dtype(), T => run::<T>(op, [q, k, v], positions, mask, heads))
}

fn run<T: Number + Mapped>(
    op: &'static str,
    given: [&Tensor; 3],
    positions: Option<&RelativePositions<'_>>,
    mask: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (batch, queries, dim) = given[0].dims3()?;
    let (keys, width) = (given[1].dim(1)?, dim / heads);
    let s = Sizes { batch, heads, queries, keys, width, scale: (width as f64).powf(-0.5) };
    let mask = Mask::new(op, mask, [batch, heads, queries, keys])?;
    let first = given[0].contiguous()?;
    let mut others: Vec<&Tensor> = vec![given[1], given[2]];
    if let Some(p) = positions {
        others.extend([p.table, p.content_bias, p.position_bias]);
    }
    let wants: Vec<bool> = others.iter().map(|t| t.track_op()).collect();
    let shapes = others.iter().map(|t| t.shape().clone()).collect();
    let plain = |t: &Tensor| t.detach().contiguous();
    let (k, v) = (plain(given[1])?, plain(given[2])?);
    let positions = positions.map(|p| {
        let (table, content, position) = (plain(p.table)?, plain(p.content_bias)?, plain(p.position_bias)?);
        Result::Ok(Positions { table, content, position })
    });
    let positions = positions.transpose()?;
    let tracked = first.track_op() || wants.contains(&true);
    let kept = if tracked { batch * heads * queries * keys } else { 0 };
    let mut pass =
        Fused { op, s, k, v, positions, wants, shapes, weights: Buffer::<T>::new(kept), of: PhantomData };
    let y = pass.forward(&first, &mask)?;
    if tracked {
        return node(&first, &others, y, (batch, queries, dim), pass);
    }
    Tensor::from_vec(y, (batch, queries, dim), &Device::Cpu)
}

struct Fused<T> {
    op: &'static str,
    s: Sizes,
    k: Tensor,
    v: Tensor,
    positions: Option<Positions>,
    /// Whether the arguments after the first want gradients.
    wants: Vec<bool>,
    shapes: Vec<candle_core::Shape>,
    /// The softmax of each head, or nothing if no gradient is wanted.
    weights: Buffer<T>,
    of: PhantomData<T>,
}

impl<T: Number + Mapped> Fused<T> {
    fn forward(&mut self, q: &Tensor, mask: &Mask) -> Result<Vec<T>> {
        let (op, s, isa) = (self.op, self.s, Isa::detect());
        let (n, m, d) = (s.queries, s.keys, s.width);
        let dim = s.heads * d;
        let (qv, kv, vv) = (View::new(q), View::new(&self.k), View::new(&self.v));
        let (q, k, v) = (qv.slice::<T>(op)?, kv.slice::<T>(op)?, vv.slice::<T>(op)?);
        let views = self.positions.as_ref().map(|p| [&p.table, &p.content, &p.position].map(View::new));
        let positions = views.as_ref().map(|[table, content, position]| {
            Result::Ok([table.slice::<T>(op)?, content.slice::<T>(op)?, position.slice::<T>(op)?])
        });
        let positions = positions.transpose()?;
        let added = match mask {
            Mask::Added(values, steps) => Some((View::new(values), *steps)),
            _ => None,
        };
        let added =
            added.as_ref().map(|(view, steps)| Result::Ok((view.slice::<T>(op)?, *steps))).transpose()?;
        let keep = !self.weights.is_empty();
        assert!(
            !keep || self.weights.len() == s.batch * s.heads * n * m,
            "room for the weights of all heads"
        );
        let weights = Shared::new(self.weights.as_mut_ptr());
        let head = |y: *mut T, task: usize, scores: &mut [T]| {
            let at = s.at(task, m);
            let keys = Matrix::new(k, at, dim).turned();
            match positions {
                None => {
                    product_into([n, d, m], Matrix::new(q, s.at(task, n), dim), keys, s.scale, scores, false);
                }
                Some([table, content, position]) => {
                    let h = task % s.heads * d;
                    let table = Matrix::new(table, h, dim);
                    let bias = [&content[h..h + d], &position[h..h + d]];
                    relative(isa, &s, (q, s.at(task, n)), keys, table, bias, scores);
                }
            }
            if let Some((values, steps)) = &added {
                let first = task / s.heads * steps[0] + task % s.heads * steps[1];
                for (i, row) in scores.chunks_exact_mut(m).enumerate() {
                    for (j, score) in row.iter_mut().enumerate() {
                        *score += values[first + i * steps[2] + j * steps[3]];
                    }
                }
            }
            let keys = match mask {
                Mask::Keys(keys) => Some(&keys[task / s.heads * m..][..m]),
                _ => None,
            };
            for row in scores.chunks_exact_mut(m) {
                if let Some(keys) = keys {
                    row.iter_mut()
                        .zip(keys)
                        .filter(|(_, k)| **k == 0)
                        .for_each(|(x, _)| *x = T::from_f64(MASKED));
                }
                softmax(isa, row);
                if let Some(keys) = keys {
                    // A row without a key is uniform now; it must be zero.
                    row.iter_mut().zip(keys).filter(|(_, k)| **k == 0).for_each(|(x, _)| *x = T::zero());
                }
            }
            // SAFETY: y has the size of q, and this task alone writes to its head of its row.
            unsafe {
                let y = y.add(s.at(task, n));
                product([n, m, d], Matrix::new(scores, 0, m), Matrix::new(v, at, dim), 1.0, (y, dim, false));
            }
        };
        let fill = |y: *mut T| {
            let y = Shared::new(y);
            s.each(|task| {
                if keep {
                    // SAFETY: there is room for all tasks, asserted above, and this is this task's.
                    let scores =
                        unsafe { std::slice::from_raw_parts_mut(weights.get().add(task * n * m), n * m) };
                    head(y.get(), task, scores);
                } else {
                    scratch::with(0, n * m, |scores| head(y.get(), task, scores));
                }
            });
        };
        assert_eq!(q.len(), s.batch * n * dim, "queries have their size");
        // SAFETY: the heads of all rows are all numbers.
        Ok(unsafe { scratch::filled(s.batch * n * dim, fill) })
    }
}

/// The scores of a head with positions: scale ((q + u) kᵀ + (q + v) pᵀ, each row moved to its offsets).
fn relative<T: Number + Mapped>(
    isa: Isa,
    s: &Sizes,
    (q, first): (&[T], usize),
    keys: Matrix<'_, T>,
    table: Matrix<'_, T>,
    [content, position]: [&[T]; 2],
    scores: &mut [T],
) {
    let (n, d) = (s.queries, s.width);
    let dim = s.heads * d;
    scratch::with(1, n * d + BLOCK.min(n) * (n + BLOCK), |room: &mut [T]| {
        let (moved, band) = room.split_at_mut(n * d);
        biased(q, first, dim, content, moved);
        product_into([n, d, n], Matrix::new(moved, 0, d), keys, s.scale, scores, false);
        biased(q, first, dim, position, moved);
        for (rows, offsets) in s.bands() {
            let (count, columns) = (rows.len(), offsets.len());
            let p = table.after(offsets.start * dim);
            let queries = Matrix::new(moved, rows.start * d, d);
            product_into([count, d, columns], queries, p.turned(), s.scale, band, false);
            on(isa, || {
                for (i, band) in rows.clone().zip(band.chunks_exact(columns)) {
                    let band = &band[n - 1 - i - offsets.start..][..n];
                    scores[i * n..(i + 1) * n].iter_mut().zip(band).for_each(|(score, &b)| *score += b);
                }
            });
        }
    });
}

/// The gradients of one head's scores, in the place of those of its weights.
fn pull_scores<T: Real>(isa: Isa, weights: &[T], grads: &mut [T], m: usize) {
    on(isa, || {
        for (p, g) in weights.chunks_exact(m).zip(grads.chunks_exact_mut(m)) {
            let dot = sum_pairs(p, g, |p, g| p * g);
            p.iter().zip(g).for_each(|(&p, g)| *g = p * (*g - dot));
        }
    });
}

impl<T: Number + Mapped> Backward for Fused<T> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn backward(
        &self,
        q0: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Option<Tensor>>)> {
        let (op, s, isa) = (self.op, self.s, Isa::detect());
        let (n, m, d) = (s.queries, s.keys, s.width);
        let (dim, tasks) = (s.heads * d, s.batch * s.heads);
        let views = [q0, &self.k, &self.v, grad].map(View::new);
        let [q, k, v, dy] = &views;
        let (q, k, v, dy) = (q.slice::<T>(op)?, k.slice::<T>(op)?, v.slice::<T>(op)?, dy.slice::<T>(op)?);
        let views = self.positions.as_ref().map(|p| [&p.table, &p.content, &p.position].map(View::new));
        let positions = views.as_ref().map(|[table, content, position]| {
            Result::Ok([table.slice::<T>(op)?, content.slice::<T>(op)?, position.slice::<T>(op)?])
        });
        let positions = positions.transpose()?;
        assert!(q.len() == s.batch * n * dim && dy.len() == q.len(), "queries have their size");
        assert!(k.len() == s.batch * m * dim && v.len() == k.len(), "keys have their size");
        assert_eq!(self.weights.len(), tasks * n * m, "the weights of all heads were kept");
        let offsets = if positions.is_some() { 2 * n - 1 } else { 0 };
        // For each task the gradients of its part of the table, and of its two biases.
        let own = offsets * d + 2 * d;
        let mut parts: Buffer<T> = Buffer::new(if positions.is_some() { tasks * own } else { 0 });
        let parts_at = Shared::new(parts.as_mut_ptr());
        let (mut dk, mut dv): (Vec<T>, Vec<T>) = (Vec::with_capacity(k.len()), Vec::with_capacity(v.len()));
        let (dk_at, dv_at) = (Shared::new(dk.as_mut_ptr()), Shared::new(dv.as_mut_ptr()));
        let head = |dq: *mut T, task: usize, ds: &mut [T]| {
            let (query, key) = (s.at(task, n), s.at(task, m));
            let weights = &self.weights[task * n * m..][..n * m];
            let above = Matrix::new(dy, query, dim);
            product_into([n, d, m], above, Matrix::new(v, key, dim).turned(), 1.0, ds, false);
            pull_scores(isa, weights, ds, m);
            let ds = &*ds;
            // SAFETY: results have the sizes of q, k and v, and this task alone writes to its head of its row.
            unsafe {
                let (dq, dk, dv) = (dq.add(query), dk_at.get().add(key), dv_at.get().add(key));
                product([m, n, d], Matrix::new(weights, 0, m).turned(), above, 1.0, (dv, dim, false));
                product(
                    [n, m, d],
                    Matrix::new(ds, 0, m),
                    Matrix::new(k, key, dim),
                    s.scale,
                    (dq, dim, false),
                );
                let turned = Matrix::new(ds, 0, m).turned();
                let Some([table, content, position]) = positions else {
                    product([m, n, d], turned, Matrix::new(q, query, dim), s.scale, (dk, dim, false));
                    return;
                };
                let h = task % s.heads * d;
                // SAFETY: the parts have room for all tasks, and this is this task's.
                let part = std::slice::from_raw_parts_mut(parts_at.get().add(task * own), own);
                let (dp, du) = part.split_at_mut(offsets * d);
                let (du, dw) = du.split_at_mut(d);
                dp.fill(T::zero());
                du.fill(T::zero());
                dw.fill(T::zero());
                scratch::with(1, n * d + BLOCK.min(n) * (n + BLOCK + d), |room: &mut [T]| {
                    let (moved, room) = room.split_at_mut(n * d);
                    let (rest, band) = room.split_at_mut(BLOCK.min(n) * d);
                    biased(q, query, dim, &content[h..h + d], moved);
                    product([m, n, d], turned, Matrix::new(moved, 0, d), s.scale, (dk, dim, false));
                    for i in 0..n {
                        // SAFETY: a row of this task's dq, written above.
                        let row = std::slice::from_raw_parts(dq.add(i * dim), d);
                        du.iter_mut().zip(row).for_each(|(du, &r)| *du += r);
                    }
                    biased(q, query, dim, &position[h..h + d], moved);
                    for (rows, read) in s.bands() {
                        let (count, columns) = (rows.len(), read.len());
                        let band = &mut band[..count * columns];
                        band.fill(T::zero());
                        for (i, band) in rows.clone().zip(band.chunks_exact_mut(columns)) {
                            band[n - 1 - i - read.start..][..n].copy_from_slice(&ds[i * n..(i + 1) * n]);
                        }
                        let band = Matrix::new(band, 0, columns);
                        let p = Matrix::new(table, h + read.start * dim, dim);
                        product_into([count, columns, d], band, p, s.scale, rest, false);
                        for (i, rest) in rows.clone().zip(rest.chunks_exact(d)) {
                            for (c, (&r, dw)) in rest.iter().zip(dw.iter_mut()).enumerate() {
                                // SAFETY: as above.
                                *dq.add(i * dim + c) += r;
                                *dw += r;
                            }
                        }
                        let queries = Matrix::new(moved, rows.start * d, d);
                        let dp = &mut dp[read.start * d..read.end * d];
                        product_into([columns, count, d], band.turned(), queries, s.scale, dp, true);
                    }
                });
            }
        };
        let fill = |dq: *mut T| {
            let dq = Shared::new(dq);
            s.each(|task| scratch::with(0, n * m, |ds| head(dq.get(), task, ds)));
        };
        // SAFETY: the heads of all rows are all numbers, of dq and, unless they are empty, of dk and dv.
        let dq = unsafe {
            let dq = scratch::filled(q.len(), fill);
            dk.set_len(k.len());
            dv.set_len(v.len());
            dq
        };
        let mut values = vec![dk, dv];
        if positions.is_some() {
            let rows = dim.max(1);
            // SAFETY: every number of a piece, which is a row of the table, is written.
            let dtable = unsafe {
                filled(offsets * dim, rows, tasks * own, |row, out| {
                    for (h, out) in out.chunks_exact_mut(d).enumerate() {
                        for (c, out) in out.iter_mut().enumerate() {
                            let of = |b: usize| parts[(b * s.heads + h) * own + row * d + c];
                            out.write((1..s.batch).fold(of(0), |sum, b| sum + of(b)));
                        }
                    }
                })
            };
            let biases = |which: usize| {
                let rows = (0..s.batch).map(|b| {
                    let of = |h: usize| &parts[(b * s.heads + h) * own + (offsets + which) * d..][..d];
                    (0..s.heads).flat_map(|h| of(h).to_vec()).collect()
                });
                together(rows.collect(), dim)
            };
            values.extend([dtable, biases(0), biases(1)]);
        }
        let wanted = values.into_iter().zip(&self.wants).zip(&self.shapes);
        let others = wanted.map(|((values, wants), shape)| {
            wants.then(|| Tensor::from_vec(values, shape, &Device::Cpu)).transpose()
        });
        let dq = q0.track_op().then(|| Tensor::from_vec(dq, grad.shape(), &Device::Cpu)).transpose()?;
        Ok((dq, others.collect::<Result<_>>()?))
    }
}
