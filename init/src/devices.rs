//! The file systems that the kernel itself provides: `/dev`, `/proc`, `/sys` and what belongs there.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

const NOSUID_NOEXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Device nodes for the first steps, where the kernel has not mounted them by itself.
pub fn provide_initial() -> Result<()> {
    if Path::new("/dev/null").exists() {
        return Ok(());
    }
    attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")
}

/// Mounts everything that a program expects to find, inside the new root.
pub fn mount_all() -> Result<()> {
    attach("proc", "/proc", NOSUID_NOEXEC | MsFlags::MS_NODEV, "")?;
    attach("sysfs", "/sys", NOSUID_NOEXEC | MsFlags::MS_NODEV, "")?;
    // Part of the throw-away layer, and about to be covered.
    let shared_memory = File::open("/dev/shm");
    attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")?;
    if let Ok(place) = shared_memory {
        uncover(&place, "/dev/shm").context("bind /dev/shm")?;
    }
    attach("devpts", "/dev/pts", NOSUID_NOEXEC, "gid=5,mode=0620,ptmxmode=0666")?;
    attach("mqueue", "/dev/mqueue", NOSUID_NOEXEC | MsFlags::MS_NODEV, "")?;

    // The carrier stays ours: it is open already, and a second opener has nothing to do there.
    let _ = fs::remove_file("/dev/hostfd0");
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, Path::new("/dev").join(name));
    }
    for device in ["null", "zero", "full", "random", "urandom", "tty", "fuse"] {
        let _ = fs::set_permissions(Path::new("/dev").join(device), Permissions::from_mode(0o666));
    }
    Ok(())
}

fn attach(kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("create {at}"))?;
    mount(Some(kind), at, Some(kind), flags, Some(options)).with_context(|| format!("mount {at}"))
}

/// Brings a directory that a later mount has covered back into view.
fn uncover(directory: &File, at: &str) -> Result<()> {
    let source = format!("/proc/self/fd/{}", directory.as_raw_fd());
    fs::create_dir_all(at)?;
    mount(Some(source.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}
