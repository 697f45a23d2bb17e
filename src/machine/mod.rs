//! A machine: whatever runs our init as PID 1 and gives us a byte channel to it.
//!
//! Nothing above this module may assume which kind it is. A machine ends with its [`Machine`]:
//! dropping it kills every process and removes every file that it had on the host.

pub mod card;
pub mod hidden;
pub mod namespaces;
pub mod none;
pub mod run_dir;
pub mod shadows;
pub mod uml;

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context, Result};
use namespaces::group::Group;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::Pid;
use run_dir::RunDir;
use serde::Serialize;

use crate::sys;
use crate::sys::namespaces::Entered;

/// The machine's PID 1.
const INIT: &[u8] = include_bytes!(env!("SEKEXE_INIT"));

/// Bytes that the channel's socket holds in each direction.
const SOCKET_BUFFER: usize = 4 << 20;

/// Which host files the machine may touch.
#[derive(Debug, Clone)]
pub struct Access {
    /// Directory that becomes the machine's root.
    pub rootfs: PathBuf,
    /// Paths that it may change.
    pub writable: Vec<PathBuf>,
    /// Further paths that it may read.
    pub readable: Vec<PathBuf>,
    /// Paths that it must not read. Must not lie inside `writable` or `readable`.
    pub hidden: Vec<PathBuf>,
}

/// What kind of machine it is, as far as those above it may tell people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A guest kernel.
    Uml,
    /// Namespaces of the host's kernel.
    Namespaces,
    /// No isolation at all.
    None,
}

impl Kind {
    /// Its name in options and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Namespaces => "namespaces",
            Self::None => "none",
        }
    }
}

/// A started machine, not necessarily set up yet.
pub struct Machine {
    /// Which kind it is.
    pub kind: Kind,
    /// Our end of the channel, non-blocking.
    pub channel: OwnedFd,
    /// What the machine prints on its console, non-blocking.
    pub console: OwnedFd,
    /// Readable when the machine's main process has ended.
    pub pidfd: OwnedFd,
    /// Where its network card comes from, if it gets one.
    pub card: Option<card::Source>,
    /// What was really enforced on its processes.
    pub confinement: Confinement,
    /// Bytes that may be under way to the guest, where its carrier holds only so many.
    pub line_buffer: Option<usize>,
    pid: Pid,
    ended: Option<Ended>,
    /// Whether nobody can miss its mounts if they outlive it for a moment.
    mounts_may_linger: bool,
    /// Its mounts, once they are complete.
    mounts: Option<OwnedFd>,
    /// The control group that limits it, removed when no process is in it any more.
    group: Option<Group>,
    /// Removed last, when no process writes there any more.
    run_dir: Option<RunDir>,
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
    /// Landlock's ABI version as far as it was used, 0 where it was not.
    pub landlock_abi: u32,
    /// Set-user-id programs and the like give nothing.
    pub no_new_privs: bool,
    /// The host's mounts are read-only for the machine, so that modes, owners and times of files
    /// are out of its reach too; Landlock has no rights for those.
    pub read_only_mounts: bool,
    /// The machine has mounts, processes, a network and users of its own.
    pub namespaces: bool,
    /// System calls that no step needs are refused by the host's kernel.
    pub seccomp_filter: bool,
    /// Host paths that the machine may change.
    pub writable: Vec<String>,
    /// Host paths that exist and cannot be read from inside.
    pub hidden: Vec<String>,
}

impl Confinement {
    /// Notes which paths may be changed and which are hidden.
    pub fn admit(&mut self, access: &Access) {
        let texts = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
        self.writable = texts(&access.writable);
        self.hidden = texts(&access.hidden);
    }

    /// Whether the host's kernel enforces which files may be read and written.
    pub fn is_enforced(&self) -> bool {
        self.landlock_abi > 0 || self.namespaces
    }
}

impl Machine {
    /// One whose main process is the init itself.
    fn of_init(
        kind: Kind,
        entered: Entered,
        channel: OwnedFd,
        console: OwnedFd,
        confinement: Confinement,
    ) -> Self {
        Self {
            kind,
            channel,
            console,
            pidfd: entered.pidfd,
            card: None,
            confinement,
            line_buffer: None,
            pid: entered.pid,
            ended: None,
            mounts_may_linger: false,
            mounts: None,
            group: None,
            run_dir: None,
        }
    }

    /// Whether a control group of its own limits it.
    pub fn has_group(&self) -> bool {
        self.group.is_some()
    }

    /// Process id of the machine's main process.
    pub fn id(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Notes that the machine is set up. From now on the end of its init need not be the end of its
    /// mounts, which takes the kernel as long as making them did.
    pub fn came_up(&mut self) {
        if self.mounts_may_linger {
            self.mounts = sys::namespaces::mounts_of(&self.pidfd);
        }
    }

    /// Ends the machine at once, if it has not ended, and says how it ended.
    pub fn end(&mut self) -> Result<Ended> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        // It is a session and group of its own. Processes of the guest die with the main one; the
        // group's signal also meets those that were just being created.
        let _ = nix::sys::signal::killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
        // Removing its files and taking its memory back go on side by side.
        self.run_dir.iter().for_each(RunDir::clear);
        let reaped = sys::reap(self.pid).context("wait for the machine's process")?;
        self.mounts.take().into_iter().for_each(sys::net::leave_to_collector);
        Ok(*self.ended.insert(Ended { status: reaped.status, peak_rss_bytes: reaped.peak_rss_bytes }))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Name under which this program is the init; `main` looks for it.
pub const INIT_NAME: &CStr = c"sekexe-init";

/// This program's file, whatever has become of its name.
const OWN_PROGRAM: &CStr = c"/proc/self/exe";

/// Both ends of a channel: ours, non-blocking, and the machine's.
fn channel() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    for end in [&ours, &theirs] {
        // The kernel gives less where its limit is lower, which is fine.
        let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER);
    }
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

/// Both ends of a console: ours, non-blocking, and the machine's.
fn console() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}
