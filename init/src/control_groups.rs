//! Control groups: where sessions are counted, limited and killed as a whole.
//!
//! The init moves into a leaf of its own, so that the controllers may be handed down (a group with
//! processes cannot do that) and container engines find them.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

const MOUNT: &str = "/sys/fs/cgroup";

/// Mounts the hierarchy and hands its controllers down. Without it commands still run, unlimited.
pub fn set_up(max_tasks: u32, warnings: &mut Vec<String>) {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let attempt = || -> std::io::Result<()> {
        mount(Some("cgroup2"), MOUNT, Some("cgroup2"), flags, Some("nsdelegate"))?;
        let own = Path::new(MOUNT).join("init");
        fs::create_dir(&own)?;
        fs::write(own.join("cgroup.procs"), "0")?;
        let offered = fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers"))?;
        for controller in offered.split_whitespace() {
            let _ = fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), format!("+{controller}"));
        }
        Ok(())
    };
    if let Err(error) = attempt() {
        warnings.push(format!("no control groups: {error}"));
    }
    // The control group's limit covers one command; this one covers what containers start too.
    let _ = fs::write("/proc/sys/kernel/threads-max", max_tasks.saturating_add(64).to_string());
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

/// How often the kernel killed a process because memory ran out, since it started.
pub fn oom_kills() -> u64 {
    counter(Path::new("/proc/vmstat"), "oom_kill")
}

fn counter(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut values = text.lines().filter_map(|l| l.split_once(' ')).filter(|(n, _)| *n == name);
    values.next().and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}
