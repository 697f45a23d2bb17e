//! A machine's temporary directory, which does not outlive it.
//!
//! Whoever uses a directory holds a lock on it. A directory with our name that nobody has locked
//! was left by a run that was killed, and the next run removes it. A directory gets its final name
//! only after it is locked, so that a new one is never mistaken for an abandoned one.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Uid;

const PREFIX: &str = "sekexe-";
const UNLOCKED_PREFIX: &str = ".sekexe-";
/// Between the creation and the locking of a directory lie microseconds.
const CREATION: Duration = Duration::from_secs(60);
/// Free space without which a machine's own files may not fit, in bytes.
const MIN_FREE: u64 = 16 << 20;

/// The directory; removed when dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Creates a directory in the first of `places` that can be written, after removing what
    /// earlier runs left there.
    pub fn create(places: &[PathBuf]) -> Result<Self> {
        let mut refusals = Vec::new();
        for place in places {
            sweep(place);
            match Self::create_in(place) {
                Ok(created) => return Ok(created),
                Err(error) => refusals.push(format!("{}: {error}", place.display())),
            }
        }
        bail!(
            "no temporary directory can be written ({}); set TMPDIR to one that can, with some space free",
            refusals.join(", ")
        )
    }

    fn create_in(place: &Path) -> std::io::Result<Self> {
        if statvfs(place).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC)) {
            return Err(std::io::Error::other("it is mounted noexec, and the guest starts a program there"));
        }
        let free = free_bytes(place);
        if free < MIN_FREE {
            return Err(std::io::Error::other(format!(
                "{} KiB are free, {} MiB are needed",
                free >> 10,
                MIN_FREE >> 20
            )));
        }
        let made = tempfile::Builder::new().prefix(UNLOCKED_PREFIX).tempdir_in(place)?;
        let lock = File::open(made.path())?;
        lock.lock()?;
        let name = made.path().file_name().unwrap_or_default().to_string_lossy();
        let path = place.join(&name[1..]);
        fs::rename(made.path(), &path)?;
        // It has another name now, under which we remove it ourselves.
        let _ = made.keep();
        // A full disk shows here rather than in the middle of the start.
        let created = Self { path, _lock: lock };
        fs::write(created.path.join("probe"), [0; 4096])?;
        fs::remove_file(created.path.join("probe"))?;
        Ok(created)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it ahead of its time. Whoever still creates files in it finds that it has gone, or
    /// sees them removed when this value is dropped.
    pub fn clear(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }

    /// Bytes that its file system has free for us, 0 where the file system is memory.
    pub fn disk_free(&self) -> u64 {
        match statfs(&self.path) {
            Ok(fs) if fs.filesystem_type() == TMPFS_MAGIC => 0,
            _ => free_bytes(&self.path),
        }
    }
}

/// What a file system has free for us; much, where it does not say.
fn free_bytes(path: &Path) -> u64 {
    statfs(path).map_or(u64::MAX, |fs| fs.blocks_available() * fs.block_size().unsigned_abs())
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Removes what killed runs of this user left in `place`.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let unlocked = name.starts_with(UNLOCKED_PREFIX);
        if !unlocked && !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if !metadata.is_dir() || metadata.uid() != Uid::effective().as_raw() {
            continue;
        }
        let age = metadata.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
        if unlocked && age.is_none_or(|age| age < CREATION) {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else { continue };
        if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner_and_an_abandoned_one_is_swept() {
        let place = tempfile::tempdir().unwrap();
        let places = [place.path().to_owned()];
        let alive = RunDir::create(&places).unwrap();
        let abandoned = place.path().join("sekexe-abandoned");
        fs::create_dir_all(abandoned.join("deep")).unwrap();
        fs::write(place.path().join("sekexe-file"), "not ours").unwrap();

        let second = RunDir::create(&places).unwrap();
        assert!(alive.path().exists() && !abandoned.exists());
        assert!(place.path().join("sekexe-file").exists());
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists() && alive.path().exists());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_passed_over_and_named_if_none_can() {
        let place = tempfile::tempdir().unwrap();
        let missing = place.path().join("missing");
        let made = RunDir::create(&[missing.clone(), place.path().to_owned()]).unwrap();
        assert_eq!(made.path().parent(), Some(place.path()));
        let error = RunDir::create(std::slice::from_ref(&missing)).unwrap_err().to_string();
        assert!(error.contains(missing.to_str().unwrap()) && error.contains("TMPDIR"), "{error}");
    }
}
