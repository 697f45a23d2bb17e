//! A machine's temporary directory, which does not outlive it.
//!
//! Whoever uses a directory holds a lock on it. A directory with our name that nobody has locked
//! was left by a run that was killed, and the next run removes it, holding the lock meanwhile. That
//! may meet a directory between being made and being locked: its maker looks whether it is still
//! there once it has the lock, and makes another if not.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Uid;

const PREFIX: &str = "sekexe-";
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
        let (path, lock) = make_locked(place)?;
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

fn make_locked(place: &Path) -> std::io::Result<(PathBuf, File)> {
    loop {
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
        let lock = match File::open(made.path()) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        lock.lock()?;
        if made.path().exists() {
            // From here on we remove it ourselves.
            return Ok((made.keep(), lock));
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
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if !metadata.is_dir() || metadata.uid() != Uid::effective().as_raw() {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else { continue };
        if lock.try_lock().is_ok() {
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
    fn runs_that_start_at_once_leave_each_other_their_directories() {
        let place = tempfile::tempdir().unwrap();
        let places = [place.path().to_owned()];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let made = RunDir::create(&places).unwrap();
                        fs::write(made.path().join("file"), "ours").unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
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
