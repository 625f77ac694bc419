//! The model contract: encoders, a fusion, and what a balancing method may ask of them.

use crate::{Batch, Init, Modal, Modalities, Modality, Presence, Scope, StepRng};
use candle_core::{DType, Result, Tensor, bail};

/// Whether a forward pass trains or evaluates. Training carries the key of its randomness (dropout), so what a pass
/// yields is a pure function of parameters, inputs and mode; batch norm's running statistics move with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics and dropout, with this key.
    Train(StepRng),
    /// Running statistics, no dropout.
    Eval,
}

impl Mode {
    /// The same mode with its randomness moved to the sub-stream `name`: each layer that draws takes its own.
    #[must_use]
    pub fn stream(self, name: &str) -> Self {
        match self {
            Self::Train(rng) => Self::Train(rng.stream(name)),
            Self::Eval => Self::Eval,
        }
    }

    /// Whether this is training.
    pub fn is_train(self) -> bool {
        matches!(self, Self::Train(_))
    }
}

/// Encoder outputs, (B, D_m) or (B, N, D_m) tokens, one per modality.
pub type Features = Modal<Tensor>;

/// What one forward pass yields.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The features that were fused.
    pub features: Features,
    /// Fused logits (B, C).
    pub fused: Tensor,
    /// Logits (B, C) of each modality's own head, where the model has such heads.
    pub heads: Option<Modal<Tensor>>,
    /// Each modality's exact share of the fused logits (B, C), where the fusion is a sum over modalities; the shares
    /// add up to `fused`.
    pub split: Option<Modal<Tensor>>,
}

/// The last layer as a balancing method may see it.
#[derive(Debug, Clone)]
pub enum Head<'a> {
    /// One weight block (C, D_m) per modality and one bias (C) shared by all: equal to concat + linear.
    Split {
        /// Weight block of each modality.
        weights: Modal<&'a Tensor>,
        /// The shared bias.
        bias: Option<&'a Tensor>,
    },
    /// There is no such layer: no weight blocks with one shared bias.
    Opaque,
}

/// A modality's encoder: inputs (B, …) to features (B, D) or tokens (B, N, D).
pub trait Encoder: std::fmt::Debug + Send + Sync {
    /// Encodes a batch whose rows are all of one length.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor>;
    /// Encodes a batch of which row b has `lengths[b]` real places along the second axis; what follows is padding, and
    /// must change no feature of evaluation. A row of length 0 has features of zero. Encoders that know no lengths
    /// refuse them.
    fn forward_padded(&self, x: &Tensor, lengths: &[usize], mode: Mode) -> Result<Tensor> {
        let _ = (lengths, mode);
        bail!(
            "this encoder takes rows of one length, but those of {:?} differ: prepare the data with a fixed length, or \
             take an encoder of sequences",
            x.shape()
        )
    }
    /// The width D of the features.
    fn dim(&self) -> usize;
}

/// A fusion of features into logits.
pub trait Fusion: std::fmt::Debug + Send + Sync {
    /// Fused logits (B, C). Rows of features whose modality is missing hold zeros; `present` says which they are.
    fn fuse(&self, z: &Features, present: &Modal<Option<Presence>>, mode: Mode) -> Result<Tensor>;
    /// Each modality's share of the fused logits where they are a sum over modalities, `None` otherwise.
    fn split_logits(&self, _z: &Features) -> Result<Option<Modal<Tensor>>> {
        Ok(None)
    }
    /// The last layer.
    fn head(&self) -> Head<'_> {
        Head::Opaque
    }
}

/// A model with M >= 1 modalities, as balancing methods and the trainer see it.
pub trait Multimodal {
    /// Names and order of the modalities.
    fn modalities(&self) -> &Modalities;
    /// Number of classes C.
    fn classes(&self) -> usize;
    /// Features of one modality of a batch; rows whose modality is missing are zero.
    fn encode(&self, m: Modality, batch: &Batch, mode: Mode) -> Result<Tensor>;
    /// Fuses features and evaluates the heads that the model has.
    fn fuse(&self, z: Features, present: &Modal<Option<Presence>>, mode: Mode) -> Result<Forward>;
    /// Each modality's share of the fused logits, where the fusion is a sum over modalities.
    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>>;
    /// The last layer.
    fn head(&self) -> Head<'_>;

    /// Features of every modality of a batch.
    fn encode_all(&self, batch: &Batch, mode: Mode) -> Result<Features> {
        if batch.modalities() != self.modalities().len() {
            bail!("the batch has {} modalities, the model {}", batch.modalities(), self.modalities().len());
        }
        batch.inputs.try_map(|m, _| self.encode(m, batch, mode))
    }

    /// The whole forward pass.
    fn forward(&self, batch: &Batch, mode: Mode) -> Result<Forward> {
        self.fuse(self.encode_all(batch, mode)?, &batch.present, mode)
    }

    /// Fused logits when modality `m` is the only one that is there: the other features are zero and marked missing.
    fn masked_logits(
        &self,
        m: Modality,
        z: &Features,
        present: &Modal<Option<Presence>>,
        mode: Mode,
    ) -> Result<Tensor> {
        let alone = z.try_map(|j, h| if j == m { Ok(h.clone()) } else { h.zeros_like() })?;
        let present = present.try_map(|j, p| {
            if j == m {
                return Ok(p.clone());
            }
            let h = &z[j];
            Presence::new(vec![false; h.dim(0)?], h.dtype(), h.device()).map(Some)
        })?;
        Ok(self.fuse(alone, &present, mode)?.fused)
    }
}

impl std::fmt::Debug for dyn Multimodal + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Multimodal({})", self.modalities().names().join(", "))
    }
}

/// Encoders + fusion + (where asked for) a linear head per modality.
///
/// Without a fusion the decision is made from the heads: the fused logits are their sum, and a balancing method
/// (SUM+CE, MultiModal loss) puts its own rule in its place.
///
/// Parameters are named `encoder.<modality>.…`, `fusion.…` and `head.<modality>.{weight,bias}`.
#[derive(Debug)]
pub struct Composite {
    modalities: Modalities,
    classes: usize,
    encoders: Modal<Box<dyn Encoder>>,
    fusion: Option<Box<dyn Fusion>>,
    heads: Option<Modal<(Tensor, Tensor)>>,
}

impl Composite {
    /// Puts the parts together.
    pub fn new(
        modalities: Modalities,
        classes: usize,
        encoders: Modal<Box<dyn Encoder>>,
        fusion: Option<Box<dyn Fusion>>,
    ) -> Result<Self> {
        if encoders.len() != modalities.len() {
            bail!("{} encoders for {} modalities", encoders.len(), modalities.len());
        }
        Ok(Self { modalities, classes, encoders, fusion, heads: None })
    }

    /// Adds a linear head per modality, `u_m = h_m W_mᵀ + b_m`, with PyTorch's default initialisation.
    pub fn with_heads(mut self, mut scope: Scope<'_>) -> Result<Self> {
        let heads = self.encoders.try_map(|m, encoder| {
            let mut scope = scope.child("head").at(self.modalities.name(m));
            let weight = scope.param("weight", (self.classes, encoder.dim()), Init::linear(encoder.dim()))?;
            let bias = scope.param("bias", self.classes, Init::linear(encoder.dim()))?;
            candle_core::Result::Ok((weight, bias))
        })?;
        self.heads = Some(heads);
        Ok(self)
    }

    /// The fusion, if there is one.
    pub fn fusion(&self) -> Option<&dyn Fusion> {
        self.fusion.as_deref()
    }

    fn head_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        let Some(heads) = &self.heads else { return Ok(None) };
        heads.try_map(|m, (w, b)| mm_kernels::linear::linear(&pooled(&z[m])?, w, Some(b))).map(Some)
    }
}

/// Mean over tokens where features are (B, N, D); (B, D) stays as it is.
pub fn pooled(h: &Tensor) -> Result<Tensor> {
    if h.rank() == 3 { h.mean(1) } else { Ok(h.clone()) }
}

impl Multimodal for Composite {
    fn modalities(&self) -> &Modalities {
        &self.modalities
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn encode(&self, m: Modality, batch: &Batch, mode: Mode) -> Result<Tensor> {
        let mode = mode.stream("encoder").stream(self.modalities.name(m));
        let x = &batch.inputs[m];
        let h = match &batch.lengths[m] {
            Some(lengths) => self.encoders[m].forward_padded(x, lengths, mode)?,
            None => self.encoders[m].forward(x, mode)?,
        };
        match &batch.present[m] {
            Some(p) => p.apply(&h),
            None => Ok(h),
        }
    }

    fn fuse(&self, z: Features, present: &Modal<Option<Presence>>, mode: Mode) -> Result<Forward> {
        let heads = self.head_logits(&z)?;
        let split = match &self.fusion {
            Some(fusion) => fusion.split_logits(&z)?,
            None => heads.clone(),
        };
        let fused = match (&split, &self.fusion) {
            (Some(parts), _) => sum(parts.values())?,
            (None, Some(fusion)) => fusion.fuse(&z, present, mode.stream("fusion"))?,
            (None, None) => bail!("a model without a fusion needs heads: call `with_heads`"),
        };
        Ok(Forward { features: z, fused, heads, split })
    }

    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        match &self.fusion {
            Some(fusion) => fusion.split_logits(z),
            None => self.head_logits(z),
        }
    }

    fn head(&self) -> Head<'_> {
        self.fusion.as_ref().map_or(Head::Opaque, |f| f.head())
    }
}

/// The sum of equally shaped tensors, left to right.
pub fn sum(parts: &[Tensor]) -> Result<Tensor> {
    let Some((first, rest)) = parts.split_first() else { bail!("sum of no tensors") };
    rest.iter().try_fold(first.clone(), |total, part| &total + part)
}

/// A tensor's values on the host in f64, row-major: one device-to-host transfer.
pub fn to_host(x: &Tensor) -> Result<Vec<f64>> {
    let x = x.detach().flatten_all()?;
    match x.dtype() {
        DType::F64 => x.to_vec1::<f64>(),
        DType::F32 => Ok(x.to_vec1::<f32>()?.into_iter().map(f64::from).collect()),
        _ => x.to_dtype(DType::F64)?.to_vec1::<f64>(),
    }
}
