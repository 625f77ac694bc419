#![doc = include_str!("../README.md")]

pub mod batch;
pub mod error;
pub mod gradients;
pub mod modality;
pub mod model;
pub mod params;

pub use batch::{Batch, Presence, RowShape};
pub use error::{Checked, ConfigError, nearest};
pub use gradients::Gradients;
pub use mm_kernels::rng::{self, StepRng};
pub use modality::{Modal, Modalities, Modality};
pub use model::{Composite, Encoder, Features, Forward, Fusion, Head, Mode, Multimodal};
pub use params::{Init, Param, ParamId, ParamStore, Scope, Snapshot};
