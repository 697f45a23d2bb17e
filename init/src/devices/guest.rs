//! A guest's kernel has all of its own.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::{NOSUID_NOEXEC, NOTHING, attach};

/// Device nodes for the first steps, where the kernel has not mounted them by itself.
pub fn provide_initial() -> Result<()> {
    if Path::new("/dev/null").exists() {
        return Ok(());
    }
    attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")
}

/// Mounts everything that a program expects to find, inside the new root.
pub fn mount_all() -> Result<()> {
    attach("proc", "/proc", NOTHING, "")?;
    attach("sysfs", "/sys", NOTHING, "")?;
    // Part of the throw-away layer, and about to be covered.
    let shared_memory = File::open("/dev/shm");
    attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")?;
    if let Ok(place) = shared_memory {
        uncover(&place, "/dev/shm").context("bind /dev/shm")?;
    }
    attach("devpts", "/dev/pts", NOSUID_NOEXEC, "gid=5,mode=0620,ptmxmode=0666")?;
    attach("mqueue", "/dev/mqueue", NOTHING, "")?;

    // The carrier stays ours: it is open already, and a second opener has nothing to do there.
    let _ = fs::remove_file("/dev/hostfd0");
    super::complete(Path::new("/dev"));
    super::let_everybody_in(Path::new("/dev"));
    Ok(())
}

/// Brings a directory that a later mount has covered back into view.
fn uncover(directory: &File, at: &str) -> Result<()> {
    let source = format!("/proc/self/fd/{}", directory.as_raw_fd());
    fs::create_dir_all(at)?;
    mount(Some(source.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}
