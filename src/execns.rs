//! `execns()`: give a program its fresh namespaces at the moment of exec, with every open file
//! closed.
//!
//! `unshare` and `exec` one after the other leave the program with open files that belong to the
//! namespaces it has left, and a process cannot become PID 1 by itself. The call that was proposed
//! for this, `int execns(int unshare_flags, char *filename, char **argv, char **envp)`, is provided
//! here on top of `clone3` and `close_range`: the program gets namespaces that nobody was in
//! before, no descriptor that was not named, and is PID 1 where it gets a namespace of processes.
//!
//! Since a process cannot change its own PID, the program is a child, and the caller turns into its
//! stand-in: it keeps what it holds (locks, semaphores with undo, mappings) until the program ends,
//! shares none of it, and ends as the program ends. If the caller is killed, so is the program.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::RawFd;

use bitflags::bitflags;
use nix::libc;

use crate::sys::namespaces::{self, Entry, Identity, Stage};
use crate::sys::proxy;

bitflags! {
    /// Which namespaces are fresh; the bits are those of `clone(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// Users and capabilities. Root inside is the caller outside; nobody else exists inside.
        const USER = libc::CLONE_NEWUSER as u64;
        /// Processes: the program is PID 1.
        const PID = libc::CLONE_NEWPID as u64;
        /// Network interfaces, addresses, ports, abstract sockets.
        const NET = libc::CLONE_NEWNET as u64;
        /// System V objects and POSIX message queues.
        const IPC = libc::CLONE_NEWIPC as u64;
        /// Host name and domain name.
        const UTS = libc::CLONE_NEWUTS as u64;
        /// Mounts; they are made private, so that none made inside shows up outside.
        const MOUNT = libc::CLONE_NEWNS as u64;
        /// The root of the control groups' hierarchy.
        const CGROUP = libc::CLONE_NEWCGROUP as u64;
        /// The offsets of the monotonic and the boot-time clock.
        const TIME = 0x80;
    }
}

/// Why there is no program. The caller is as it was before.
#[derive(Debug)]
pub struct Failure {
    stage: Stage,
    source: io::Error,
}

impl Failure {
    /// The error number.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// Whether everything but the last step worked: the program cannot be executed.
    pub fn is_of_program(&self) -> bool {
        self.stage == Stage::Exec
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.stage {
            Stage::Clone => "create the namespaces",
            Stage::Maps => "map users and groups into the user namespace",
            Stage::Root => "become root of the user namespace",
            Stage::Prepare => "prepare the process for its program",
            Stage::Exec => "execute the program",
        })
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<(Stage, io::Error)> for Failure {
    fn from((stage, source): (Stage, io::Error)) -> Self {
        Self { stage, source }
    }
}

/// Executes `path` in fresh namespaces, with every file closed, standard streams included.
///
/// On success it does not return. On failure the caller is as before.
///
/// # Errors
///
/// [`Failure::errno`] is that of `clone3(2)` (`EPERM`, `ENOSPC`, `EINVAL` where the kernel has no
/// such namespace), of writing the maps, or of `execve(2)`.
pub fn execns(flags: Flags, path: &CStr, argv: &[CString], envp: &[CString]) -> Result<Infallible, Failure> {
    execns_keeping(&[], flags, path, argv, envp)
}

/// The same, with the descriptors in `keep` left open under their numbers.
///
/// Other threads of the caller live on until the program ends; a caller that wants the meaning of
/// `exec` has one thread.
///
/// # Errors
///
/// As [`execns`], and `EBADF` where one of `keep` is not open.
pub fn execns_keeping(
    keep: &[RawFd],
    flags: Flags,
    path: &CStr,
    argv: &[CString],
    envp: &[CString],
) -> Result<Infallible, Failure> {
    let entry = Entry {
        namespaces: flags.bits(),
        identity: if flags.contains(Flags::USER) { Identity::RootIsCaller } else { Identity::Unchanged },
        program: path,
        argv,
        env: envp,
        stdio: None,
        keep,
        detached: false,
        confined: false,
        cpus: &[],
        ruleset: None,
        group: None,
        max_tasks: None,
    };
    let mask = proxy::hold_signals().map_err(|errno| (Stage::Prepare, errno.into()))?;
    match namespaces::enter(&entry, |_| Ok(())).and_then(|entered| entered.confirm()) {
        Ok(entered) => proxy::stand_in_for(entered.pid, &entered.pidfd),
        Err(failure) => {
            let _ = mask.thread_set_mask();
            Err(failure.into())
        }
    }
}
