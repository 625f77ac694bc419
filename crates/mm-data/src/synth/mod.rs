//! Data sets that are generated, file by file, in the layout of published ones.
//!
//! They stand in where the published files are not to be had: everything from the decoding of files to the table of an
//! experiment runs as on the real set. Figures on them say nothing about the real set.
//!
//! | data set | layout | what carries the label |
//! |---|---|---|
//! | [`mod@cremad`] | CREMA-D: `AudioWAV`, `Image-01-FPS`, `processedResults/summaryTable.csv`, on demand `VideoFlash` | the voice (pitch, loudness, tempo, roughness) and the face (brows, eyes, mouth) |

pub mod cremad;
mod face;
mod raster;
mod voice;

pub use cremad::{CremadConfig, Generated, cremad};
