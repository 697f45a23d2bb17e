//! Tracing a child as the guest's kernel does in ptrace mode: its system calls are caught, and not
//! made.

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Catches a child's first system call after a stop.
pub fn follow() -> nix::Result<()> {
    let Some(child) = super::fork()? else { be_traced() };
    let followed = stopped(child, Signal::SIGSTOP).and_then(|()| {
        // SAFETY: the child is ours and stopped; the call takes no pointers.
        Errno::result(unsafe { libc::ptrace(libc::PTRACE_SYSEMU, child.as_raw(), 0, 0) })?;
        stopped(child, Signal::SIGTRAP)
    });
    let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
    let _ = waitpid(child, Some(WaitPidFlag::__WALL));
    followed
}

/// The child says by its status why it could not be traced.
fn stopped(child: Pid, signal: Signal) -> nix::Result<()> {
    match waitpid(child, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, by) if by == signal => Ok(()),
        WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::EIO),
    }
}

fn be_traced() -> ! {
    // SAFETY: plain system calls without pointers.
    unsafe {
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
            libc::_exit(Errno::last_raw());
        }
        libc::raise(libc::SIGSTOP);
        // Caught, and so without effect.
        libc::_exit(libc::EIO)
    }
}
