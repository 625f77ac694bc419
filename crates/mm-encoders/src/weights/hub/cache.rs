//! The files of one repository in the cache; nothing is taken from it whose checksum is not its name.

use super::is_hex;
use crate::weights::error::{Result, WeightsError, shown};
use crate::weights::export::{sync, sync_folder};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// What a file must hash to; also its name among the blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    /// SHA-256 of the contents: the name of a large file.
    Sha256(String),
    /// SHA-1 of git's blob of the contents: the name of a small file.
    Git(String),
}

impl Checksum {
    /// From an entity tag, or the name of a blob; `None` if it is no checksum.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        if is_hex(&text, 64) {
            return Some(Self::Sha256(text));
        }
        is_hex(&text, 40).then_some(Self::Git(text))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Sha256(name) | Self::Git(name) => name,
        }
    }

    /// The checksum of the same kind that a file has.
    pub(super) fn of(&self, path: &Path) -> Result<Self> {
        let fail = WeightsError::io("read", path);
        let mut file = File::open(path).map_err(&fail)?;
        Ok(match self {
            Self::Sha256(_) => Self::Sha256(digest(Sha256::new(), &mut file).map_err(fail)?),
            Self::Git(_) => {
                let length = file.metadata().map_err(&fail)?.len();
                Self::Git(digest(Sha1::new_with_prefix(format!("blob {length}\0")), &mut file).map_err(fail)?)
            }
        })
    }
}

fn digest<D: Digest>(mut state: D, file: &mut File) -> std::io::Result<String> {
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&state.finalize()));
        }
        state.update(buffer.get(..count).unwrap_or_default());
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// What the cache knows of a file of a commit.
#[derive(Debug)]
pub(super) enum Entry {
    /// It is there, and its checksum is right.
    Whole(PathBuf),
    /// The commit has no such file.
    Absent,
    /// The cache does not say.
    Unknown,
    /// It is there, but this is wrong with it.
    Damaged(String),
}

/// The folder of one repository.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `repo` is a checked name.
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        Self { root: cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.root.join("blobs").join(name)
    }

    /// Looks a file up and compares it with its checksum.
    pub(super) fn get(&self, commit: &str, file: &str) -> Result<Entry> {
        let path = self.snapshot(commit).join(file);
        let Ok(about) = fs::symlink_metadata(&path) else {
            let absent = self.root.join(".no_exist").join(commit).join(file).exists();
            return Ok(if absent { Entry::Absent } else { Entry::Unknown });
        };
        if !about.is_symlink() {
            // Where links cannot be made the file is a copy of a blob: of the one that its checksum names.
            for kind in [Checksum::Sha256(String::new()), Checksum::Git(String::new())] {
                if self.blob(kind.of(&path)?.name()).exists() {
                    return Ok(Entry::Whole(path));
                }
            }
            return Ok(Entry::Damaged("its checksum is that of no blob of the repository".to_owned()));
        }
        let (Ok(target), Ok(blobs)) = (path.canonicalize(), self.root.join("blobs").canonicalize()) else {
            return Ok(Entry::Damaged("it is a link to nothing".to_owned()));
        };
        if target.parent() != Some(blobs.as_path()) {
            return Ok(Entry::Damaged(format!(
                "it is a link out of the repository, to {}",
                target.display()
            )));
        }
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(checksum) = Checksum::parse(&name) else {
            return Ok(Entry::Damaged(format!("its blob `{}` is not named by a checksum", shown(&name))));
        };
        let found = checksum.of(&target)?;
        if found == checksum {
            return Ok(Entry::Whole(path));
        }
        Ok(Entry::Damaged(format!("its checksum is {}, and should be {name}", found.name())))
    }

    /// Whether a blob is there and right.
    pub(super) fn has_blob(&self, checksum: &Checksum) -> Result<bool> {
        let path = self.blob(checksum.name());
        let file = fs::symlink_metadata(&path).is_ok_and(|about| about.is_file());
        Ok(file && checksum.of(&path)? == *checksum)
    }

    /// A folder for files that are not checked yet, on the disk of the cache; it goes when the guard does.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir> {
        fs::create_dir_all(&self.root).map_err(WeightsError::io("make", &self.root))?;
        let scratch = tempfile::Builder::new().prefix(".tmp-").tempdir_in(&self.root);
        scratch.map_err(WeightsError::io("write to", &self.root))
    }

    /// Moves a checked file to the blobs, in the place of whatever is there by its name.
    pub(super) fn keep(&self, file: &Path, checksum: &Checksum) -> Result<()> {
        let path = self.blob(checksum.name());
        let dir = self.root.join("blobs");
        fs::create_dir_all(&dir).map_err(WeightsError::io("make", &dir))?;
        sync(file)?;
        fs::rename(file, &path).map_err(WeightsError::io("write", &path))?;
        sync_folder(&dir)
    }

    /// Makes a file of a commit point to its blob.
    pub(super) fn link(&self, commit: &str, file: &str, checksum: &Checksum) -> Result<PathBuf> {
        let dir = self.snapshot(commit);
        let path = dir.join(file);
        let fail = WeightsError::io("write", &path);
        fs::create_dir_all(&dir).map_err(&fail)?;
        let name = checksum.name();
        #[cfg(unix)]
        let make = |at: &Path| std::os::unix::fs::symlink(Path::new("../../blobs").join(name), at);
        #[cfg(not(unix))]
        let make = |at: &Path| fs::copy(self.blob(name), at).map(|_| ());
        let link = tempfile::Builder::new().prefix(".tmp-").make_in(&dir, make).map_err(&fail)?;
        link.into_temp_path().persist(&path).map_err(|e| fail(e.error))?;
        sync_folder(&dir)?;
        Ok(path)
    }

    /// The commit that a branch or tag stood for when the hub was last asked.
    pub(super) fn read_ref(&self, revision: &str) -> Option<String> {
        let mut text = String::new();
        let file = File::open(self.root.join("refs").join(revision)).ok()?;
        file.take(64).read_to_string(&mut text).ok()?;
        let commit = text.trim().to_ascii_lowercase();
        is_hex(&commit, 40).then_some(commit)
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(revision);
        let fail = WeightsError::io("write", &path);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(&fail)?;
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).map_err(&fail)?;
        file.write_all(commit.as_bytes()).map_err(&fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        Ok(())
    }

    /// Remembers that a commit has no such file.
    pub(super) fn mark_absent(&self, commit: &str, file: &str) -> Result<()> {
        let dir = self.root.join(".no_exist").join(commit);
        let fail = WeightsError::io("write", &dir);
        fs::create_dir_all(&dir).map_err(&fail)?;
        match File::options().write(true).create_new(true).open(dir.join(file)) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(fail(e)),
            _ => Ok(()),
        }
    }
}
