//! In namespaces the kernel is the host's: what it offers is mounted anew where that shows only
//! what is ours, and a handful of harmless device files is taken over.
//!
//! A new `proc` or `sysfs` may be mounted in a user namespace only while one that hides nothing is
//! mounted already. So this happens before the host's root is left.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

use crate::protocol::{Namespaces, Seal};
use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

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
const EMPTY: [&str; 8] = [
    "proc/acpi",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
];

/// Mounts everything that does not depend on namespaces still to come, below `root`.
pub fn mount_below(root: &Path, namespaces: &Namespaces) -> Result<()> {
    // A directory of the throw-away layer; places in it that need no mount are there already.
    let dev = root.join("dev");
    fs::create_dir_all(dev.join("net")).context("create /dev")?;
    for name in DEVICES {
        take_over(name, &dev).with_context(|| format!("bind /dev/{name}"))?;
    }
    // Where the group of terminals does not exist, they belong to root's.
    let group = if namespaces.many_users { ",gid=5" } else { "" };
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    attach("devpts", dev.join("pts"), NOSUID_NOEXEC, &options)?;
    let _ = symlink("pts/ptmx", dev.join("ptmx"));
    super::complete(&dev);

    attach("proc", root.join("proc"), NOTHING, "")?;
    if namespaces.seal == Seal::UserNamespace || namespaces.host_network {
        // The network of the machine is still to come, and with it the right to a `sysfs` of its
        // own, which then covers this one; or it never comes.
        let host = open(&Path::new(HOST).join("sys"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        fs::create_dir_all(root.join("sys")).context("create /sys")?;
        match namespaces.in_user_namespace {
            false => mounts::bind_alone(host.as_fd(), &root.join("sys")),
            // There the kernel keeps what is mounted below together with what it covers.
            true => mounts::bind(host.as_fd(), &root.join("sys"), Attributes::NONE),
        }
        .context("bind /sys")?;
        if namespaces.host_root {
            // The seal locks this one, and then the kernel refuses every `sysfs` that could be written.
            mounts::set(&root.join("sys"), Attributes::READ_ONLY).context("protect /sys")?;
        }
    }
    if namespaces.seal != Seal::UserNamespace {
        mount_owned(root, namespaces)?;
    }
    if namespaces.host_root {
        close_kernel_files(root).context("close the kernel's own files")?;
    }
    Ok(())
}

/// Mounts what takes namespaces of the machine's own.
pub fn mount_owned(root: &Path, namespaces: &Namespaces) -> Result<()> {
    // The host's root could change the whole kernel by it.
    let flags = if namespaces.host_root { NOTHING | MsFlags::MS_RDONLY } else { NOTHING };
    if !namespaces.host_network {
        attach("sysfs", root.join("sys"), flags, "")?;
    }
    attach("mqueue", root.join("dev/mqueue"), NOTHING, "")
}

/// Binds a device file of the host's, if it has one.
fn take_over(name: &str, dev: &Path) -> Result<()> {
    let source = Path::new(HOST).join("dev").join(name);
    if !fs::symlink_metadata(&source).is_ok_and(|found| found.file_type().is_char_device()) {
        return Ok(());
    }
    let target = dev.join(name);
    File::create(&target)?;
    Ok(mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
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
    // A device file is used by opening it; its mode, owner and times are the host's.
    for name in DEVICES {
        let at = root.join("dev").join(name);
        if at.exists() {
            mounts::set(&at, Attributes::READ_ONLY)?;
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
                mounts::bind(null.as_fd(), &at, Attributes::READ_ONLY)?;
            }
        }
    }
    Ok(())
}
