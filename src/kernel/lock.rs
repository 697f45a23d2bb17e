//! One builder at a time, across processes.
//!
//! `flock` belongs to the open file, so the kernel drops it when the holder
//! ends, however it ends: a lock never outlives its process, and a lock file
//! that lies around means nothing. Lock files are never removed, because
//! removing one that another process is about to lock would give two holders.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// An exclusive lock, held until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl Lock {
    /// Takes the lock at `path`, made if missing. `waiting` is called once if
    /// another process holds it; then this blocks until that process ends.
    pub fn acquire(path: &Path, waiting: impl FnOnce()) -> Result<Self> {
        let name = || format!("cannot lock {}", path.display());
        match Self::try_acquire(path)? {
            Ok(lock) => Ok(lock),
            Err(mut file) => {
                waiting();
                loop {
                    match Flock::lock(file, FlockArg::LockExclusive) {
                        Ok(lock) => return Ok(Self(lock)),
                        Err((back, Errno::EINTR)) => file = back,
                        Err((_, errno)) => return Err(errno).with_context(name),
                    }
                }
            }
        }
    }

    /// Takes the lock if it is free; otherwise gives the open file back.
    pub fn try_acquire(path: &Path) -> Result<std::result::Result<Self, File>> {
        let name = || format!("cannot lock {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(path).with_context(name)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Ok(Self(lock))),
            Err((file, Errno::EWOULDBLOCK)) => Ok(Err(file)),
            Err((_, errno)) => Err(errno).with_context(name),
        }
    }
}
