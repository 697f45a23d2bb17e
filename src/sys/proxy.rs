//! Standing in for a program that runs as a child: signals go to it, its end becomes ours.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Signals that are passed on when somebody sends them to us.
const PASSED_ON: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGALRM,
];

/// Holds those signals back, from before there is a child that could be meant by them. Returns the
/// mask that was.
pub fn hold_signals() -> nix::Result<SigSet> {
    let set: SigSet = PASSED_ON.into_iter().collect();
    set.thread_swap_mask(SigmaskHow::SIG_BLOCK)
}

/// Becomes the child's stand-in: passes signals on, and ends as it ends. Never returns.
///
/// The signals are held ([`hold_signals`]). A terminal's reach the child by themselves, which is in our
/// process group.
pub fn stand_in_for(pid: Pid, pidfd: &OwnedFd) -> ! {
    let set: SigSet = PASSED_ON.into_iter().collect();
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok();
    loop {
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(signals.as_ref().map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)));
        let waited = poll(&mut fds, PollTimeout::NONE);
        let ended = fds[0].revents().is_some_and(|events| !events.is_empty());
        if ended || !matches!(waited, Ok(_) | Err(Errno::EINTR)) {
            end_as(waitpid(pid, None));
        }
        while let Some(Ok(Some(info))) = signals.as_ref().map(SignalFd::read_signal) {
            let from_a_process = info.ssi_code <= 0;
            if from_a_process {
                // SAFETY: the descriptor is of a child that is not reaped; a null pointer means
                // that the kernel fills the details in.
                unsafe {
                    libc::syscall(
                        libc::SYS_pidfd_send_signal,
                        pidfd.as_raw_fd(),
                        info.ssi_signo,
                        std::ptr::null::<libc::siginfo_t>(),
                        0,
                    );
                }
            }
        }
    }
}

/// Ends this process at once, as a program that was executed in its place would have ended it.
fn end_as(status: nix::Result<WaitStatus>) -> ! {
    let code = match status {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            let mut only = SigSet::empty();
            only.add(signal);
            // SAFETY: the default action is no handler of ours; a core of ours would be misleading.
            unsafe {
                libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
                libc::signal(signal as libc::c_int, libc::SIG_DFL);
            }
            let _ = only.thread_unblock();
            let _ = nix::sys::signal::raise(signal);
            128 + signal as i32
        }
        // Somebody reaped it behind our back; how it ended is not known, and not success.
        _ => 125,
    };
    // SAFETY: runs no code of this process, like the exec that this stands for.
    unsafe { libc::_exit(code) }
}
