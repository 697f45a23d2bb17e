//! This process's own signals: which of them reach the command, and when they wait.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that are passed on to the command.
const FORWARDED: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// This process's signals, held back from their default actions so that they can be passed on.
pub struct Signals(SignalFd);

impl Signals {
    /// Holds them back from now on.
    pub fn block() -> Result<Self> {
        hold_signals()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&watched(), flags).context("watch for signals")?))
    }

    /// Those that came since somebody asked last.
    pub fn arrived(&self) -> impl Iterator<Item = Signal> {
        let next = || self.0.read_signal().ok().flatten();
        std::iter::from_fn(next).filter_map(|info| Signal::try_from(info.ssi_signo as i32).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Has signals wait until there is somebody to pass them on: for the time in which there is no
/// machine yet, but something to clean up.
pub fn hold_signals() -> Result<()> {
    watched().thread_block().context("block the signals to forward")
}

/// Lets them act again, those that waited too: for the time in which there is nothing to clean up.
pub fn release_signals() -> Result<()> {
    watched().thread_unblock().context("let signals act")
}

fn watched() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGWINCH]).collect()
}
