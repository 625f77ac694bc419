//! Rows of a table by number.

use crate::host::{Real, View, by_dtype, slice};
use crate::parallel::pieces;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail};

const NAME: &str = "embedding";

/// Looks up rows of a table.
///
/// ```text
/// y[.., d] = table[ids[..], d]
/// ```
///
/// Shapes: `ids` of any shape and of dtype `u32` or `i64`, `table (V, D)`; the result is `(ids.., D)`. On CPU
/// the table is `f32` or `f64`. The gradient reaches `table`, as a dense `(V, D)`: rows are added up in the
/// order of `ids`. The row `padding_idx`, if there is one, gets none; its value is the table's, whatever that
/// is.
///
/// The ids are read on the host, on every device. Errors: an id that is negative or not below V,
/// `padding_idx` not below V, a table that is not a matrix, another dtype.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let table = Tensor::new(&[[0f32, 1.0], [2.0, 3.0]], &Device::Cpu)?;
/// let ids = Tensor::new(&[1u32, 0, 1], &Device::Cpu)?;
/// let y = mm_kernels::embedding(&ids, &table, None)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[2.0, 3.0], [0.0, 1.0], [2.0, 3.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn embedding(ids: &Tensor, table: &Tensor, padding_idx: Option<usize>) -> Result<Tensor> {
    let [rows, width] = *table.dims() else {
        bail!("{NAME}: the table must be (rows, width), got {:?}", table.shape())
    };
    if let Some(padding_idx) = padding_idx.filter(|&i| i >= rows) {
        bail!("{NAME}: padding_idx is {padding_idx}, but the table {:?} has {rows} rows", table.shape())
    }
    let numbers = numbers(ids, rows)?;
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    if !table.device().is_cpu() {
        return composed(&numbers, table, padding_idx)?.reshape(dims);
    }
    table.contiguous()?.apply_op1(Embedding { numbers, padding_idx, dims })
}

/// The ids in order, all below `rows`.
fn numbers(ids: &Tensor, rows: usize) -> Result<Vec<usize>> {
    let flat = ids.flatten_all()?.to_device(&Device::Cpu)?;
    let wide: Vec<i64> = match flat.dtype() {
        DType::U32 => flat.to_vec1::<u32>()?.into_iter().map(i64::from).collect(),
        DType::I64 => flat.to_vec1()?,
        other => bail!("{NAME}: ids must be U32 or I64, got {other:?}"),
    };
    let check = |(at, id): (usize, i64)| match usize::try_from(id) {
        Ok(number) if number < rows => Ok(number),
        _ => bail!("{NAME}: id {id} at position {at} is not a row of a table of {rows}"),
    };
    wide.into_iter().enumerate().map(check).collect()
}

struct Embedding {
    numbers: Vec<usize>,
    padding_idx: Option<usize>,
    /// The shape of the result.
    dims: Vec<usize>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, table.dtype(), T => {
            let width = layout.dims()[1];
            let table = slice::<T>(NAME, table, layout)?;
            let mut y = Vec::with_capacity(self.numbers.len() * width);
            for &number in &self.numbers {
                y.extend_from_slice(&table[number * width..][..width]);
            }
            Ok((T::to_cpu_storage_owned(y), Shape::from(self.dims.as_slice())))
        })
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, grad.dtype(), T => {
            let (rows, width) = table.dims2()?;
            let sums = self.scatter(View::new(&grad).slice::<T>(NAME)?, rows, width);
            Ok(Some(Tensor::from_vec(sums, table.shape(), table.device())?))
        })
    }
}

/// Parts of the table that threads fill: each looks at all ids, which is little work beside the rows it adds.
const PARTS: usize = 16;

impl Embedding {
    fn scatter<T: Real>(&self, g: &[T], rows: usize, width: usize) -> Vec<T> {
        let mut sums = vec![T::zero(); rows * width];
        let part = rows.div_ceil(PARTS);
        pieces(&mut sums, part * width, g.len(), |i, sums| {
            let own = i * part..i * part + sums.len() / width;
            for (&number, g) in self.numbers.iter().zip(g.chunks_exact(width)) {
                if own.contains(&number) && self.padding_idx != Some(number) {
                    let start = (number - own.start) * width;
                    for (sum, &g) in sums[start..start + width].iter_mut().zip(g) {
                        *sum += g;
                    }
                }
            }
        });
        sums
    }
}

/// The same function in candle's own operations, ids in one row: every device but the CPU, and the reference
/// of the tests.
fn composed(numbers: &[usize], table: &Tensor, padding_idx: Option<usize>) -> Result<Tensor> {
    let ids: Vec<i64> = numbers.iter().map(|&number| number as i64).collect();
    let y = table.contiguous()?.index_select(&Tensor::from_vec(ids, numbers.len(), table.device())?, 0)?;
    let Some(padding_idx) = padding_idx else { return Ok(y) };
    let padded: Vec<u8> = numbers.iter().map(|&number| u8::from(number == padding_idx)).collect();
    let padded = Tensor::from_vec(padded, (numbers.len(), 1), table.device())?.broadcast_as(y.shape())?;
    padded.where_cond(&y.detach(), &y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};
    use candle_core::Var;

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        let numbers = [3, 0, 3, 1, 4, 4, 4];
        let ids = Tensor::new(&[3u32, 0, 3, 1, 4, 4, 4], &Device::Cpu)?;
        for padding_idx in [None, Some(4)] {
            let table = [normal(&[5, 3], 1)?];
            let fused = |x: &[Tensor]| embedding(&ids, &x[0], padding_idx);
            assert_same(fused, |x| composed(&numbers, &x[0], padding_idx), &table)?;
        }
        Ok(())
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() -> Result<()> {
        let table = Var::from_tensor(&normal(&[37, 64], 1)?)?;
        let ids: Vec<i64> = (0..1000).map(|i| i * i % 37).collect();
        let ids = Tensor::from_vec(ids, (50, 20), &Device::Cpu)?;
        let run = || -> Result<Vec<f64>> {
            let y = embedding(&ids, &table, None)?;
            let grads = (normal(y.dims(), 2)? * y)?.sum_all()?.backward()?;
            grads.get(table.as_tensor()).expect("a gradient").flatten_all()?.to_vec1()
        };
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(run)?;
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool").install(run)?;
        assert!(one == three);
        Ok(())
    }
}
