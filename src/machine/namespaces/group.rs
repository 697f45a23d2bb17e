//! A control group (version 2) of a machine's own, to limit what its processes use together.
//!
//! Two levels: the outer one holds the limits, out of the machine's reach; the inner one is where
//! the machine is born, and the root of what it sees. A group that limits memory has to lie where
//! controllers are handed down, so beside our own group or, where that is the top, below it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::detect::control_group;

/// Names start with this, and end with the number of the process that made the group.
const PREFIX: &str = "sekexe-";
/// The group in which the machine is born.
const INNER: &str = "machine";
/// What limits are made of.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// What the machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, without swap.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: u32,
}

/// The group; removed when dropped, which must not happen before the machine has ended.
#[derive(Debug)]
pub struct Group {
    outer: PathBuf,
    inner: OwnedFd,
}

impl Group {
    /// Makes one. The error says what stood in the way.
    pub fn create(limits: Limits) -> io::Result<Self> {
        let own =
            control_group::own().ok_or_else(|| io::Error::other("there is no version 2 of them here"))?;
        let beside = own.parent().filter(|parent| parent.join("cgroup.controllers").exists());
        let mut refusal = io::Error::other("no controllers are handed down to us");
        for parent in beside.into_iter().chain([own.as_path()]) {
            sweep(parent);
            let outer = parent.join(format!("{PREFIX}{}", std::process::id()));
            match fs::create_dir(&outer).and_then(|()| prepare(parent, &outer, limits)) {
                Ok(inner) => return Ok(Self { outer, inner }),
                Err(error) => {
                    remove(&outer);
                    refusal = io::Error::other(format!("{}: {error}", parent.display()));
                }
            }
        }
        Err(refusal)
    }

    /// The group in which the machine is to be born.
    pub fn entrance(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.outer);
    }
}

fn prepare(parent: &Path, outer: &Path, limits: Limits) -> io::Result<OwnedFd> {
    if !has_controllers(outer) {
        // Refused where processes are in that group, but for the one at the very top.
        hand_down(parent)?;
    }
    if !has_controllers(outer) {
        return Err(io::Error::other("no controllers are handed down"));
    }
    if let Some(memory) = limits.memory {
        set(&outer.join("memory.max"), &memory.to_string())?;
        // Not there where the kernel does not count swap.
        let _ = set(&outer.join("memory.swap.max"), "0");
    }
    set(&outer.join("pids.max"), &limits.tasks.to_string())?;
    hand_down(outer)?;
    let inner = outer.join(INNER);
    fs::create_dir(&inner)?;
    // Here once more, because the kernel counts refusals where the limit is.
    set(&inner.join("pids.max"), &limits.tasks.to_string())?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(&inner, flags, Mode::empty())?)
}

fn has_controllers(group: &Path) -> bool {
    let listed = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    CONTROLLERS.iter().all(|name| listed.split_ascii_whitespace().any(|listed| listed == *name))
}

fn hand_down(group: &Path) -> io::Result<()> {
    let wanted = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    set(&group.join("cgroup.subtree_control"), &wanted)
}

/// The kernel's files exist; creating one would hide a mistake.
fn set(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Removes a group and what the machine made below it. One with processes stays.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Removes what killed runs left.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&entry.path());
        }
    }
}
