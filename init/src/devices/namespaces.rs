//! In namespaces the kernel is the host's: what it offers is mounted anew where that shows only
//! what is ours, and a handful of harmless device files is taken over.
//!
//! A new `proc` or `sysfs` may be mounted in a user namespace only while one that hides nothing is
//! mounted already. So this happens before the host's root is left.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use sekexe_init::protocol::{Namespaces, Seal};

use super::{NOSUID_NOEXEC, NOTHING, attach};
use crate::root::namespaces::HOST;
use crate::sys::mounts::{self, Attributes};

/// Device files that do nothing to the host.
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"];

/// What the host's root could change of the whole kernel, and Docker closes as well.
const READ_ONLY: [&str; 5] = ["proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs"];
/// What of these belongs to namespaces, and so to the machine.
const STILL_WRITABLE: [&str; 2] = ["proc/sys/net", "proc/sys/fs/mqueue"];
/// What tells the host's root about the whole kernel.
const EMPTY: [&str; 9] = [
    "proc/acpi",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "sys/firmware",
];

/// Mounts everything that does not depend on namespaces still to come, below `root`.
pub fn mount_below(root: &Path, namespaces: &Namespaces) -> Result<()> {
    let dev = root.join("dev");
    // Made before, as one of the throw-away places, and about to be covered.
    let shared_memory = open(&dev.join("shm"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    attach("tmpfs", &dev, MsFlags::MS_NOSUID, "mode=0755,size=1M")?;
    for name in DEVICES {
        take_over(name, &dev).with_context(|| format!("bind /dev/{name}"))?;
    }
    if let Ok(place) = shared_memory {
        fs::create_dir(dev.join("shm"))?;
        mounts::bind(place.as_fd(), &dev.join("shm"), Attributes::NONE).context("bind /dev/shm")?;
    }
    // Where the group of terminals does not exist, they belong to root's.
    let modes = "newinstance,ptmxmode=0666,mode=0620";
    attach("devpts", dev.join("pts"), NOSUID_NOEXEC, &format!("{modes},gid=5"))
        .or_else(|_| attach("devpts", dev.join("pts"), NOSUID_NOEXEC, modes))?;
    let _ = symlink("pts/ptmx", dev.join("ptmx"));
    super::complete(&dev);

    attach("proc", root.join("proc"), NOTHING, "")?;
    fs::create_dir_all(root.join("sys")).context("create /sys")?;
    if namespaces.seal == Seal::UserNamespace {
        // The network of the machine is still to come, and with it the right to a `sysfs` of its
        // own, which then covers this one.
        let host = open(&Path::new(HOST).join("sys"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let bound = match namespaces.host_root {
            true => mounts::bind_alone(host.as_fd(), &root.join("sys")),
            false => mounts::bind(host.as_fd(), &root.join("sys"), Attributes::READ_ONLY),
        };
        bound.context("bind /sys")?;
        mounts::set(&root.join("sys"), Attributes::READ_ONLY).context("bind /sys")?;
    } else {
        mount_owned(root)?;
    }
    if namespaces.host_root {
        close_kernel_files(root).context("close the kernel's own files")?;
    }
    Ok(())
}

/// Mounts what takes namespaces of the machine's own.
pub fn mount_owned(root: &Path) -> Result<()> {
    attach("sysfs", root.join("sys"), NOTHING, "")?;
    attach("mqueue", root.join("dev/mqueue"), NOTHING, "")
}

/// Binds a device file of the host's, if it has one.
fn take_over(name: &str, dev: &Path) -> Result<()> {
    let source = Path::new(HOST).join("dev").join(name);
    let Ok(metadata) = fs::symlink_metadata(&source) else { return Ok(()) };
    if !metadata.file_type().is_char_device() {
        return Ok(());
    }
    let opened = open(&source, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
    let target = dev.join(name);
    target.parent().map_or(Ok(()), fs::create_dir_all)?;
    File::create(&target)?;
    Ok(mounts::bind(opened.as_fd(), &target, Attributes::NONE)?)
}

/// Takes away what the host's root could do with these files. Not needed for anybody else: they
/// belong to a user who does not exist inside.
fn close_kernel_files(root: &Path) -> Result<()> {
    let opened = |name: &str| open(&root.join(name), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok();
    let writable = STILL_WRITABLE.map(|name| (name, opened(name)));
    for name in READ_ONLY {
        if let Some(at) = opened(name) {
            mounts::bind(at.as_fd(), &root.join(name), Attributes::READ_ONLY)?;
        }
    }
    for (name, at) in writable {
        if let Some(at) = at {
            mounts::bind(at.as_fd(), &root.join(name), Attributes::NONE)?;
        }
    }
    for name in EMPTY {
        let at = root.join(name);
        match fs::symlink_metadata(&at) {
            Err(_) => {}
            Ok(found) if found.is_dir() => {
                let flags = MsFlags::MS_RDONLY | NOTHING;
                mount(Some("tmpfs"), &at, Some("tmpfs"), flags, None::<&str>)?;
            }
            Ok(_) => {
                let null = open("/host/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
                mounts::bind(null.as_fd(), &at, Attributes::NONE)?;
            }
        }
    }
    Ok(())
}
