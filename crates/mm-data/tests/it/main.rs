//! Tests of mm-data through its public interface.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod audio_config;
mod audio_golden;
mod audio_wav;
mod config;
mod cremad;
mod csv;
mod dataset;
mod degraded;
mod features;
mod fuzz_seeds;
mod hostile;
mod idx;
mod image;
mod image_files;
mod image_resize;
mod image_sheet;
mod image_transform;
mod layouts;
mod loader;
mod npy;
mod pack;
mod pack_mend;
mod presets;
mod raw_faults;
mod splits;
mod standardize;
mod support;
mod synth_cremad;
mod synthetic;
mod video;
mod video_sets;
