//! Operations of more tensors than candle's three, as nodes of its graph.
//!
//! candle's custom operations take three tensors at most. An operation of more takes its first as it is and the others
//! through a chain of tokens: tensors of one element whose only purpose is that backward reaches the arguments after the
//! operation. The operation leaves the gradients in a slot, and each token hands two of them on.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::{Arc, Mutex, PoisonError};

/// The backward pass of an operation whose value is known.
pub(crate) trait Backward: Send + Sync + 'static {
    /// The name in messages.
    fn name(&self) -> &'static str;
    /// The gradients of `first` and of the other arguments, `None` where there is none; `y` is the result.
    fn backward(
        &self,
        first: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Option<Tensor>>)>;
}

type Slot = Arc<Mutex<Vec<Option<Tensor>>>>;

/// Makes the value `y` of `shape` a function of `first` and `others` on the CPU, with the given backward pass.
pub(crate) fn node<T: WithDType>(
    first: &Tensor,
    others: &[&Tensor],
    y: Vec<T>,
    shape: impl Into<Shape>,
    backward: impl Backward,
) -> Result<Tensor> {
    let slot = Slot::default();
    let mut token = Tensor::zeros(1, T::DTYPE, &Device::Cpu)?;
    for (k, pair) in others.chunks(2).enumerate() {
        let link = Link { slot: slot.clone(), at: 2 * k };
        token = match pair {
            [one] => token.apply_op2(one, link)?,
            [one, two] => token.apply_op3(one, two, link)?,
            _ => token,
        };
    }
    let value = Mutex::new(Some(T::to_cpu_storage_owned(y)));
    first.apply_op2(&token, Node { value, shape: shape.into(), slot, others: others.len(), backward })
}

struct Node<B> {
    value: Mutex<Option<CpuStorage>>,
    shape: Shape,
    slot: Slot,
    others: usize,
    backward: B,
}

impl<B: Backward> CustomOp2 for Node<B> {
    fn name(&self) -> &'static str {
        self.backward.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok((value, self.shape.clone())),
            None => bail!("{}: its value was taken already", self.backward.name()),
        }
    }

    fn bwd(
        &self,
        first: &Tensor,
        token: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (first, others) = self.backward.backward(first, y, &grad.contiguous()?)?;
        if others.len() != self.others {
            bail!("{}: {} gradients for {} arguments", self.backward.name(), others.len(), self.others)
        }
        if !token.track_op() {
            return Ok((first, None));
        }
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = others;
        Ok((first, Some(token.zeros_like()?)))
    }
}

/// Hands on the gradients `at` and `at + 1` of the slot.
struct Link {
    slot: Slot,
    at: usize,
}

impl Link {
    fn take(&self, k: usize) -> Option<Tensor> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).get_mut(self.at + k).and_then(Option::take)
    }

    fn forward(storage: &CpuStorage, layout: &Layout) -> (CpuStorage, Shape) {
        (storage.clone(), layout.shape().clone())
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "token"
    }

    fn cpu_fwd(
        &self,
        t: &CpuStorage,
        tl: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(Self::forward(t, tl))
    }

    fn bwd(
        &self,
        token: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((token.track_op().then(|| grad.clone()), self.take(0)))
    }
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        "token"
    }

    fn cpu_fwd(
        &self,
        t: &CpuStorage,
        tl: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(Self::forward(t, tl))
    }

    fn bwd(
        &self,
        token: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((token.track_op().then(|| grad.clone()), self.take(0), self.take(1)))
    }
}
