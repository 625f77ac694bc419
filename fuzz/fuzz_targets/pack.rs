//! Any bytes as the index of a pack, beside a good table and a good shard unless the input brings its own: refused with
//! a message, or rows that can be read.
//!
//! An input is `index.json`. What follows a line `--file--` is the table, what follows the next one the shard.
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use mm_data::pack::{Pack, PackedConfig, verify};
use mm_data::Loader;
use mm_fuzz::{FOLDER, readable, split};

const SEPARATOR: &[u8] = b"\n--file--\n";
const TABLE: &[u8] = include_bytes!("../pack/table.safetensors");
const SHARD: &[u8] = include_bytes!("../pack/shard-00000.safetensors");

fuzz_target!(|data: &[u8]| {
    let mut parts = split(data, SEPARATOR).into_iter();
    let dir = FOLDER.path();
    let files = [
        ("index.json", parts.next().unwrap_or_default()),
        ("table.safetensors", parts.next().unwrap_or(TABLE)),
        ("shard-00000.safetensors", parts.next().unwrap_or(SHARD)),
    ];
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).expect("the folder takes files");
    }
    let opened = Pack::open(dir).and_then(|pack| pack.dataset(&PackedConfig::new(dir)));
    match opened {
        Ok(data) => {
            let rows: Vec<usize> = (0..data.rows()).collect();
            assert_eq!(data.ids.len(), rows.len());
            for (_, input) in data.inputs.iter() {
                for &row in &rows {
                    if let Err(error) = input.picture(row) {
                        readable(&error);
                    }
                }
            }
            match Loader::new(&data, rows.clone(), rows.len().max(1)) {
                // Values that are no numbers are an error of the batch.
                Ok(loader) => drop(loader.batch(&rows, DType::F32, &Device::Cpu)),
                Err(error) => readable(&error),
            }
        }
        Err(error) => readable(&error),
    }
    if let Err(error) = verify(dir) {
        readable(&error);
    }
});
