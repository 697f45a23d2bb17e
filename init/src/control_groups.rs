//! Control groups: where sessions are counted, limited and killed as a whole.
//!
//! The init stays in the root group, which alone may hold processes and hand its controllers down
//! all the same. Moving a process waits for a grace period of RCU, some ten milliseconds.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::sys::mounts::{self, Attributes};

const MOUNT: &str = "/sys/fs/cgroup";
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Shows the part of the host's hierarchy that a namespaces machine was born in, for changing where
/// it is the machine's own. The host has set its limits. Commands get no groups of their own: the
/// kernel forbids groups beside processes, and to move the init would cost ten milliseconds.
pub fn show(own: bool) -> nix::Result<()> {
    let flags = if own { FLAGS } else { FLAGS | MsFlags::MS_RDONLY };
    mount(Some("cgroup2"), MOUNT, Some("cgroup2"), flags, None::<&str>)
}

/// Mounts a guest's hierarchy and hands its controllers down. Without it commands still run,
/// unlimited.
pub fn set_up(max_tasks: u32, warnings: &mut Vec<String>) {
    let attempt = || -> std::io::Result<()> {
        mount(Some("cgroup2"), MOUNT, Some("cgroup2"), FLAGS, Some("nsdelegate"))?;
        let offered = fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers"))?;
        let wanted: Vec<String> = offered.split_whitespace().map(|name| format!("+{name}")).collect();
        let hand_down = |what: &str| fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), what);
        // One by one costs a walk over all groups each time, but one that refuses does not spoil
        // the others.
        if hand_down(&wanted.join(" ")).is_err() {
            wanted.iter().for_each(|one| drop(hand_down(one)));
        }
        Ok(())
    };
    if let Err(error) = attempt() {
        warnings.push(format!("no control groups: {error}"));
    }
    // The control group's limit covers one command; this one covers what containers start too.
    let _ = fs::write("/proc/sys/kernel/threads-max", max_tasks.saturating_add(64).to_string());
}

/// Keeps the mount of [`show`] within reach when another file system is about to cover it.
pub fn hold() -> Option<OwnedFd> {
    open(MOUNT, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// Shows it once more.
pub fn show_again(held: &OwnedFd) -> nix::Result<()> {
    mounts::bind(held.as_fd(), Path::new(MOUNT), Attributes::NONE)
}

/// The control group of one command.
pub struct Group {
    at: PathBuf,
}

impl Group {
    /// Creates it with a limit on tasks. Nothing where the kernel has no control groups.
    pub fn create(name: &str, max_tasks: u32) -> Option<Self> {
        let at = Path::new(MOUNT).join(name);
        fs::create_dir(&at).ok()?;
        let _ = fs::write(at.join("pids.max"), max_tasks.to_string());
        Some(Self { at })
    }

    /// A file; whoever writes `0` to it is in the group from then on.
    pub fn entrance(&self) -> Option<File> {
        OpenOptions::new().write(true).open(self.at.join("cgroup.procs")).ok()
    }

    /// Kills everything in it. False where the kernel cannot.
    pub fn kill(&self) -> bool {
        fs::write(self.at.join("cgroup.kill"), "1").is_ok()
    }

    /// How often a fork was refused.
    pub fn task_limit_hits(&self) -> u64 {
        counter(&self.at.join("pids.events"), "max")
    }
}

/// Counts what the kernel refused to, or took from, everything in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counters {
    /// Those of a kernel of our own.
    Kernel,
    /// Those of the machine's own control group.
    Group,
    /// None: whatever is counted may have met others.
    None,
}

impl Counters {
    /// How often a process was killed because memory ran out.
    pub fn oom_kills(self) -> u64 {
        match self {
            Self::Kernel => counter(Path::new("/proc/vmstat"), "oom_kill"),
            Self::Group => counter(&Path::new(MOUNT).join("memory.events"), "oom_kill"),
            Self::None => 0,
        }
    }

    /// How often a fork was refused, for commands without a group of their own.
    pub fn task_limit_hits(self) -> u64 {
        match self {
            Self::Group => counter(&Path::new(MOUNT).join("pids.events"), "max"),
            Self::Kernel | Self::None => 0,
        }
    }
}

fn counter(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut values = text.lines().filter_map(|l| l.split_once(' ')).filter(|(n, _)| *n == name);
    values.next().and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}
