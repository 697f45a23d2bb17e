//! Directories in which a machine's files may go: how large they are, and whether programs run.
//!
//! A place whose file server has gone makes everybody wait who looks at it, so a child looks
//! first.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;

use super::device::{attempt_one, ended};
use super::{Denial, Support};
use crate::sys::probe::{Call, Tried};

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Where it is.
    pub path: PathBuf,
    /// Size of its file system in bytes.
    pub size: u64,
    /// What is free there for us, in bytes.
    pub free: u64,
    /// Whether it is memory.
    pub memory: bool,
    /// Whether programs may be run from there.
    pub exec: bool,
    /// We can write there and run programs from there.
    pub usable: Support,
}

/// Looks at one.
pub fn probe(path: &Path) -> Place {
    let nothing = |denial: Denial| Place {
        path: path.to_owned(),
        size: 0,
        free: 0,
        memory: false,
        exec: false,
        usable: Support::No(denial),
    };
    let refused = |reason: String| nothing(Denial { reason, remedy: None });
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return refused("its name has a NUL byte".into());
    };
    match attempt_one(&[Call::Visit(&name)]) {
        Tried::Done => {}
        tried => return refused(ended(tried)),
    }
    let (Ok(kind), Ok(system)) = (statfs(path), statvfs(path)) else {
        return refused("its file system does not answer".into());
    };
    let exec = !system.flags().contains(FsFlags::ST_NOEXEC);
    Place {
        path: path.to_owned(),
        size: kind.blocks() * kind.block_size().unsigned_abs(),
        free: kind.blocks_available() * kind.block_size().unsigned_abs(),
        memory: kind.filesystem_type() == TMPFS_MAGIC,
        exec,
        usable: usable(path, exec),
    }
}

fn usable(path: &Path, exec: bool) -> Support {
    if let Err(error) = tempfile::tempfile_in(path) {
        return Support::no(
            format!("it cannot be written: {error}"),
            Some("set TMPDIR to a directory that can"),
        );
    }
    if exec {
        return Support::Yes;
    }
    let remedy = format!("sudo mount -o remount,exec {}, or set TMPDIR to another directory", path.display());
    Support::no("it is mounted noexec", Some(&remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_usable_missing_or_read_only() {
        let place = tempfile::tempdir().unwrap();
        let found = probe(place.path());
        assert!(found.free <= found.size && found.size > 0, "{found:?}");
        assert_eq!(found.usable.is_yes(), found.exec, "{found:?}");
        let missing = probe(&place.path().join("none"));
        assert!(missing.usable.denial().unwrap().reason.contains("ENOENT"), "{missing:?}");
        let read_only = probe(Path::new("/proc"));
        assert!(read_only.usable.denial().unwrap().reason.contains("cannot be written"), "{read_only:?}");
    }
}
