//! A shard on its way to the disk: rows are put aside as they are made, and become one file when all are there.
//!
//! A safetensors file begins with the sizes of its tensors, and those of clips of any length are known at the end only.
//! What has been made therefore waits in files without names, one for each modality, and not in memory: a preparation
//! holds the rows of a few pieces, however many rows there are.

use super::FileEntry;
use super::plan::Plan;
use super::write::TEMPORARY;
use crate::DataError;
use crate::dataset::hex;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, Write};
use std::path::Path;

/// The bytes of a row, and its length.
pub(super) type Bytes = (Vec<u8>, usize);

/// The rows of a shard so far.
#[derive(Debug)]
pub(super) struct Spool {
    file: String,
    rows: usize,
    /// By modality.
    parts: Vec<BufWriter<File>>,
    /// By modality.
    lengths: Vec<Vec<usize>>,
}

impl Spool {
    /// For the shard `file` of the folder `dir`.
    pub(super) fn new(dir: &Path, plan: &Plan, file: &str) -> Result<Self, DataError> {
        let path = dir.join(file).display().to_string();
        let part = |_| Ok(BufWriter::with_capacity(1 << 16, tempfile::tempfile_in(dir)?));
        let parts = (0..plan.modalities.len()).map(part).collect::<std::io::Result<_>>();
        let parts = parts.map_err(|source| failed(&path, source))?;
        Ok(Self { file: path, rows: 0, parts, lengths: vec![Vec::new(); plan.modalities.len()] })
    }

    /// Puts the next rows behind those that are there: of each row what each modality has.
    pub(super) fn append(&mut self, rows: Vec<Vec<Bytes>>) -> Result<(), DataError> {
        for row in rows {
            self.rows += 1;
            for ((part, lengths), (bytes, length)) in self.parts.iter_mut().zip(&mut self.lengths).zip(row) {
                part.write_all(&bytes).map_err(|source| failed(&self.file, source))?;
                lengths.push(length);
            }
        }
        Ok(())
    }

    /// Writes the file under its name, if a checksum is given only where that is its; by modality the lengths of the rows.
    pub(super) fn finish(
        self,
        dir: &Path,
        plan: &Plan,
        name: &str,
        expected: Option<&str>,
    ) -> Result<(FileEntry, Vec<Vec<usize>>), DataError> {
        let (path, rows) = (self.file, self.rows);
        let mut tensors = Vec::new();
        for ((modality, lengths), part) in plan.modalities.iter().zip(&self.lengths).zip(self.parts) {
            let mut part = part.into_inner().map_err(|e| failed(&path, e.into_error()))?;
            let bytes = part.stream_position().map_err(|source| failed(&path, source))? as usize;
            let mut shape = modality.dims.clone();
            if modality.ragged {
                shape[0] = lengths.iter().sum();
            } else {
                shape.insert(0, rows);
            }
            tensors.push((format!("x_{}", modality.name), modality.element.dtype(), shape, bytes, part));
        }
        // As the library orders them, so that wide types lie at multiples of their size.
        tensors.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut end = 0;
        let mut infos = Vec::new();
        for (name, dtype, shape, bytes, _) in &tensors {
            let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (end, end + bytes) };
            end += bytes;
            infos.push((name.clone(), info));
        }
        let header = header(infos).map_err(|e| DataError::invalid(&path, e, "report this as a fault"))?;
        let entry = put_checked(dir, name, rows, expected, |to| {
            to.write_all(&header)?;
            let mut buffer = vec![0; 1 << 20];
            for (_, _, _, _, part) in &mut tensors {
                part.rewind()?;
                loop {
                    let read = part.read(&mut buffer)?;
                    if read == 0 {
                        break;
                    }
                    to.write_all(&buffer[..read])?;
                }
            }
            Ok(())
        })?;
        Ok((entry, self.lengths))
    }
}

/// The beginning of a safetensors file, byte for byte as the library writes it.
fn header(infos: Vec<(String, TensorInfo)>) -> Result<Vec<u8>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("its header cannot be written ({e})");
    let metadata = Metadata::new(None, infos).map_err(|e| fault(&e))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| fault(&e))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

/// A file whose length and checksum are known when it is written.
pub(super) struct Counted<'a> {
    file: &'a mut File,
    hasher: Sha256,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file under a temporary name, syncs and renames it.
pub(super) fn put(
    dir: &Path,
    name: &str,
    rows: usize,
    fill: impl FnOnce(&mut Counted<'_>) -> std::io::Result<()>,
) -> Result<FileEntry, DataError> {
    put_checked(dir, name, rows, None, fill)
}

/// [`put`], but a file with another checksum than the one that is expected does not take its place.
pub(super) fn put_checked(
    dir: &Path,
    name: &str,
    rows: usize,
    expected: Option<&str>,
    fill: impl FnOnce(&mut Counted<'_>) -> std::io::Result<()>,
) -> Result<FileEntry, DataError> {
    let path = dir.join(name);
    let fail = |source| failed(&path.display().to_string(), source);
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir).map_err(fail)?;
    let mut counted = Counted { file: file.as_file_mut(), hasher: Sha256::new(), bytes: 0 };
    fill(&mut counted).map_err(fail)?;
    let (bytes, hash) = (counted.bytes, hex(&counted.hasher.finalize()));
    if expected.is_some_and(|expected| expected != hash) {
        let rule = "is damaged, and what its raw files give today is not what the index says";
        let remedy =
            "the raw files were changed since: prepare them into another folder, or fetch the old ones";
        return Err(DataError::invalid(&path.display().to_string(), rule, remedy));
    }
    file.as_file().sync_all().map_err(fail)?;
    let file = file.persist(&path).map_err(|e| fail(e.error))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(fail)?;
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)?;
    }
    drop(file);
    Ok(FileEntry { file: name.to_owned(), rows, bytes, sha256: hash })
}

pub(super) fn failed(file: &str, source: std::io::Error) -> DataError {
    DataError::Write { file: file.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{Element, PlannedModality};
    use safetensors::tensor::TensorView;
    use std::collections::BTreeMap;

    #[test]
    fn a_shard_is_what_the_library_writes() {
        let modality = |name: &str, dims: &[usize], ragged, element| PlannedModality {
            name: name.into(),
            dims: dims.to_vec(),
            ragged,
            frames: false,
            element,
        };
        let plan = Plan {
            name: "toy".into(),
            preset: serde_json::Value::Null,
            modalities: vec![
                modality("b", &[2, 2], false, Element::U8),
                modality("a", &[0, 3], true, Element::F32),
                modality("c", &[1], false, Element::F32),
            ],
            classes: vec![],
            ids: vec![],
            labels: vec![],
            columns: BTreeMap::new(),
            indices: BTreeMap::new(),
            rows_per_shard: 8,
        };
        let folder = tempfile::tempdir().expect("temporary folder");
        let row = |i: u8| {
            let places = usize::from(i % 3);
            vec![(vec![i; 4], 2), (vec![i + 100; 12 * places], places), (vec![i + 50; 4], 1)]
        };
        let mut spool = Spool::new(folder.path(), &plan, "shard").expect("writable");
        spool.append((0..4).map(row).collect()).expect("written");
        spool.append((4..7).map(row).collect()).expect("written");
        let (entry, lengths) = spool.finish(folder.path(), &plan, "shard", None).expect("written");
        assert_eq!(lengths, [vec![2; 7], vec![0, 1, 2, 0, 1, 2, 0], vec![1; 7]]);

        let all = |m: usize| (0..7).flat_map(|i| row(i)[m].0.clone()).collect::<Vec<u8>>();
        let data = [all(0), all(1), all(2)];
        let shapes = [vec![7, 2, 2], vec![6, 3], vec![7, 1]];
        let names = ["x_b", "x_a", "x_c"];
        let views = (0..3).map(|m| {
            let dtype = plan.modalities[m].element.dtype();
            (names[m], TensorView::new(dtype, shapes[m].clone(), &data[m]).expect("sizes"))
        });
        let expected = safetensors::serialize(views, None).expect("a file");
        assert_eq!(std::fs::read(folder.path().join("shard")).expect("readable"), expected);
        assert_eq!((entry.bytes, entry.rows), (expected.len() as u64, 7));
        assert_eq!(entry.sha256, hex(&Sha256::digest(&expected)));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
