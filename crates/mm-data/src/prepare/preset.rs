//! Recipes by name: the front-ends and frames of published code.
//!
//! | preset | data set | sound | frames | pack of the whole set |
//! |---|---|---|---|---|
//! | `ogm` | `cremad` | `ogm-stft`, 257 x 188 | the first one | 1.4 + 3.9 GB |
//! | `ogm` | `vggsound` | `vggsound-stft`, 129 x 626 | the first three, one per second | |
//! | `mlb-resnet` | `cremad` | `ogm-stft`, 257 x 188 | the first three, one per second | 1.4 + 11.6 GB |
//! | `mlb-resnet` | `ave` | `scipy-psd`, 257 x 1004, of the event | the first four of the event, one per second | |
//! | `mlb-resnet` | `ucf51` | `ucf-stft`, 257 x 136 | the first four, one per second | |
//! | `mlb-conformer` | `cremad` | the samples, 16 kHz, 16 bits, whole clips | `Face_features/*.npy`, at most 150 vectors | |
//!
//! One per second is every int(fps)-th frame, from the first on. Frames keep the size of the files, as both codes crop the
//! whole picture at every epoch; `inputs.video.frames.size = [224, 224]` makes packs of a tenth, whose crops are of coarser
//! pictures. What these codes do to a row when it is read - crops, flips, statistics - are settings of `[data.inputs]`.
//!
//! A preset is a recipe, and nothing else: what the pack says of itself are all settings, so it does not depend on what a
//! name means.
//!
//! Differences: see the data sets' files and those of the front-ends. `ogm` takes the first frame by name, OGM-GE's own loader
//! what the file system lists first.
//!
//! Source: OGM-GE_CVPR2022 @343dc1d, kkontras/MLB @357b5ce and @68ad48d.

use super::{Recipe, Source, Treatment};
use crate::audio::FrontEnd;
use crate::pack::Element;
use mm_core::ConfigError;

/// The names, and for which data sets they are.
const PRESETS: [(&str, &[Source]); 3] = [
    ("ogm", &[Source::CremaD, Source::VggSound]),
    ("mlb-resnet", &[Source::CremaD, Source::Ave, Source::Ucf51]),
    ("mlb-conformer", &[Source::CremaD]),
];

impl Recipe {
    /// The presets of a data set.
    pub fn presets(source: Source) -> Vec<&'static str> {
        PRESETS.iter().filter(|(_, sources)| sources.contains(&source)).map(|(name, _)| *name).collect()
    }

    /// The recipe of that name for a data set.
    pub fn preset(source: Source, name: &str) -> Result<Self, ConfigError> {
        let known = Self::presets(source);
        if known.is_empty() {
            let rule = format!("the data set {} has no presets; give a recipe", source.name());
            return Err(ConfigError::new("--preset", name, rule));
        }
        if !known.contains(&name) {
            return Err(ConfigError::unknown("--preset", name, &known));
        }
        let (front_end, count) = match (name, source) {
            ("mlb-conformer", _) => return conformer(),
            ("ogm", Source::VggSound) => ("vggsound-stft", 3),
            ("ogm", _) => ("ogm-stft", 1),
            (_, Source::Ave) => ("scipy-psd", 4),
            (_, Source::Ucf51) => ("ucf-stft", 4),
            _ => ("ogm-stft", 3),
        };
        let sound = Treatment::Sound {
            front_end: FrontEnd::named(front_end)?,
            element: Element::F32,
            noise_db: None,
        };
        let frames = Treatment::Frames { size: None, count, channels: 3, step: None };
        let inputs = [("audio".to_owned(), sound), ("video".to_owned(), frames)].into();
        Ok(Self { inputs, modalities: Some(vec!["audio".into(), "video".into()]), labels: None })
    }
}

/// Samples as they are, for Wav2Vec2, and the vectors of faces.
fn conformer() -> Result<Recipe, ConfigError> {
    let mut front_end = FrontEnd::named("waveform")?;
    if let FrontEnd::Waveform(settings) = &mut front_end {
        // One mean and one deviation of all training rows are taken off when a row is read.
        settings.normalize = false;
    }
    let sound = Treatment::Sound { front_end, element: Element::I16, noise_db: None };
    let faces = Treatment::Sequence { most: Some(150) };
    let inputs = [("audio".to_owned(), sound), ("faces".to_owned(), faces)].into();
    Ok(Recipe { inputs, modalities: Some(vec!["audio".into(), "faces".into()]), labels: None })
}
