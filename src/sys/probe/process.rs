//! Children that make nothing but system calls.

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Added to the number of the signal that ended a process that another one has waited for.
pub const SIGNALLED: i32 = 128;

/// Leaves the rest to a child, and ends when it has ended.
pub fn descend(namespaces: CloneFlags) -> nix::Result<()> {
    let Some(child) = clone(namespaces)? else { return Ok(()) };
    // Without this the child's end of the pipe would not be the last one.
    match waitpid(child, Some(WaitPidFlag::__WALL)) {
        Ok(WaitStatus::Signaled(_, signal, _)) => leave(SIGNALLED + signal as i32),
        Ok(WaitStatus::Exited(_, status)) => leave(status),
        _ => leave(0),
    }
}

/// A child, to which `None` is given. It dies with us, and tells nobody of its end but who waits
/// for it by name: no `SIGCHLD` disturbs the rest of the program.
///
/// The caller keeps the child from everything that takes a lock, which another thread may have
/// held at the fork.
pub fn fork() -> nix::Result<Option<Pid>> {
    clone(CloneFlags::empty())
}

/// The same in fresh namespaces.
fn clone(namespaces: CloneFlags) -> nix::Result<Option<Pid>> {
    let parent = std::process::id();
    // SAFETY: `clone_args` is plain data for which all zeroes is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces.bits() as u64;
    // SAFETY: without CLONE_VM and with no new stack these are forks: the child has a copy of
    // everything. The arguments are as long as said.
    let result = unsafe {
        if namespaces.is_empty() {
            // Known to every filter and every kernel.
            libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0)
        } else {
            libc::syscall(libc::SYS_clone3, &arguments, size_of_val(&arguments))
        }
    };
    match Errno::result(result)? {
        0 => {
            // SAFETY: plain system calls; the limit lives until its call returns.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // A filter that kills would leave a file in the user's directory.
                libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
                // In a new pid namespace the parent has no number.
                let now = libc::getppid() as u32;
                if now != parent && now != 0 {
                    libc::_exit(1);
                }
            }
            Ok(None)
        }
        child => Ok(Some(Pid::from_raw(child as i32))),
    }
}

/// Ends the process, and with it nothing else.
pub fn leave(status: i32) -> ! {
    // SAFETY: ends the process at once; nothing of the parent's is flushed or removed.
    unsafe { libc::_exit(status) }
}
