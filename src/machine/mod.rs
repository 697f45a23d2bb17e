//! A machine: whatever runs our init as PID 1 and gives us a byte channel to it.
//!
//! Nothing above this module may assume which kind it is. A machine ends with its [`Machine`]:
//! dropping it kills every process and removes every file that it had on the host.

pub mod hidden;
pub mod run_dir;
pub mod uml;

use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use run_dir::RunDir;
use serde::Serialize;

use crate::sys;

/// A started machine, not necessarily set up yet.
pub struct Machine {
    /// Our end of the channel, non-blocking.
    pub channel: OwnedFd,
    /// What the machine prints on its console, non-blocking.
    pub console: OwnedFd,
    /// Readable when the machine's main process has ended.
    pub pidfd: OwnedFd,
    /// What was really enforced on its processes.
    pub confinement: Confinement,
    /// Bytes that may be under way to the guest, where its carrier holds only so many.
    pub line_buffer: Option<usize>,
    child: Child,
    ended: Option<Ended>,
    /// Removed last, when no process writes there any more.
    run_dir: RunDir,
}

/// How the machine's main process ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// Its largest resident set in bytes, guest memory included.
    pub peak_rss_bytes: u64,
}

/// What keeps the machine's processes from the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Confinement {
    /// Landlock's ABI version as far as it was used, 0 where the kernel has none.
    pub landlock_abi: u32,
    /// Set-user-id programs and the like give nothing.
    pub no_new_privs: bool,
    /// The host's mounts are read-only for the machine, so that modes, owners and times of files
    /// are out of its reach too; Landlock has no rights for those. Only where we are root.
    pub read_only_mounts: bool,
    /// Host paths that the machine may change.
    pub writable: Vec<String>,
    /// Host paths that exist and cannot be read from inside.
    pub hidden: Vec<String>,
}

impl Confinement {
    /// Whether the host's kernel enforces which files may be read and written.
    pub fn is_enforced(&self) -> bool {
        self.landlock_abi > 0
    }
}

impl Machine {
    fn new(
        child: Child,
        channel: OwnedFd,
        console: OwnedFd,
        confinement: Confinement,
        line_buffer: Option<usize>,
        run_dir: RunDir,
    ) -> Result<Self> {
        let pidfd = sys::open_pidfd(&child).context("watch the machine's process")?;
        Ok(Self { channel, console, pidfd, confinement, line_buffer, child, ended: None, run_dir })
    }

    /// Process id of the machine's main process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the machine at once, if it has not ended, and says how it ended.
    pub fn end(&mut self) -> Result<Ended> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        // It is a session and group of its own. Processes of the guest die with the main one; the
        // group's signal also meets those that were just being created.
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
        let _ = kill(pid, Signal::SIGKILL);
        // Removing its files and taking its memory back go on side by side.
        self.run_dir.clear();
        let reaped = sys::reap(&self.child).context("wait for the machine's process")?;
        Ok(*self.ended.insert(Ended { status: reaped.status, peak_rss_bytes: reaped.peak_rss_bytes }))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
