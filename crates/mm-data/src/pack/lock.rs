//! The exclusive use of a folder.

use super::shard::failed;
use crate::DataError;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// How often it is tried again where the file was gone when it was locked.
const ATTEMPTS: usize = 100;

/// The exclusive use of a folder, given back when it is dropped or the process ends in whatever way.
pub(super) struct Lock {
    path: PathBuf,
    file: Option<File>,
}

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join(".lock");
        let fail = |source| failed(&path.display().to_string(), source);
        let mut attempt = 0;
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let rule = "another process is preparing a pack in this folder";
                    let remedy = "wait for it, or choose another folder";
                    return Err(DataError::invalid(&dir.display().to_string(), rule, remedy));
                }
                // A file system without locks is no reason not to begin.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            // Between opening and locking its holder may have ended and removed it: then the lock is of no file, and
            // the next process would take one of its own beside it.
            // File systems whose numbers of files change from call to call say so for ever.
            if attempt == ATTEMPTS || is_there(&file, &path) {
                return Ok(Self { path, file: Some(file) });
            }
            attempt += 1;
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still held, so nobody's lock is taken away.
        let _ = std::fs::remove_file(&self.path);
        drop(self.file.take());
    }
}

/// Whether an open file is the one that has this name now.
#[cfg(unix)]
fn is_there(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (Ok(own), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (own.dev(), own.ino()) == (named.dev(), named.ino())
}

/// Elsewhere a file that is open keeps its name.
#[cfg(not(unix))]
fn is_there(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_has_it_at_a_time() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let first = Lock::take(folder.path()).expect("nobody has it");
        assert!(Lock::take(folder.path()).is_err_and(|e| e.to_string().contains("another process")));
        drop(first);
        assert!(!folder.path().join(".lock").exists());
        drop(Lock::take(folder.path()).expect("given back"));
    }

    #[test]
    fn a_lock_on_a_file_that_was_removed_is_none() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(".lock");
        let old = File::create(&path).expect("writable");
        assert!(is_there(&old, &path));
        std::fs::remove_file(&path).expect("removed");
        #[cfg(unix)]
        assert!(!is_there(&old, &path));
        let new = File::create(&path).expect("writable");
        #[cfg(unix)]
        assert!(!is_there(&old, &path), "another file has the name");
        assert!(is_there(&new, &path));
    }

    #[test]
    fn threads_that_take_turns_never_meet() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 400 {
                        let Ok(lock) = Lock::take(folder.path()) else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        taken.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
    }
}
