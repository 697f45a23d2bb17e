//! The end of a machine: what commands wrote last reaches the host's files, and what they sent last the
//! other ends of their connections.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

use super::{Connection, Death, timeout};
use crate::machine::Ended;
use crate::net::Record;

/// How long the guest has to write everything back, and to have everything sent.
const WRITE_BACK_GRACE: Duration = Duration::from_secs(60);
/// When the user is told that the machine's end takes time.
const LATE: Duration = Duration::from_secs(1);

impl Connection {
    /// Has the guest write everything back and ends the machine. An error means that what commands
    /// wrote may not all have reached the host's files. Where that takes time, `late` is asked whether to
    /// wait for what is to be sent; a signal of ours ends such waiting.
    pub fn shut_down(&mut self, late: &mut dyn FnMut() -> bool) -> Result<Ended> {
        let written_back = self.write_back(late);
        let ended = self.machine.end()?;
        self.console.finish(&self.machine);
        written_back.map(|()| ended)
    }

    fn write_back(&mut self, late: &mut dyn FnMut() -> bool) -> Result<()> {
        let began = Instant::now();
        let (is_late, deadline) = (began + LATE, began + WRITE_BACK_GRACE);
        let mut next = is_late;
        if !self.closing {
            self.close()?;
        }
        // Those that were for the command.
        self.unhandled.clear();
        while !self.bye {
            let now = Instant::now();
            if now >= deadline {
                bail!("the guest did not finish writing within {} s", WRITE_BACK_GRACE.as_secs());
            }
            let is_asked = now >= is_late && next == is_late;
            if is_asked {
                next = deadline;
            }
            let is_interrupted = is_interrupt(self.unhandled.drain(..));
            if !self.hurries && (is_interrupted || (is_asked && !late())) {
                self.hurries = true;
                self.close()?;
            }
            self.step(Some(next)).map_err(|Death(failure)| anyhow!("{failure}"))?;
        }
        Ok(())
    }

    /// Ends the network, after the machine, when what commands sent last has gone on to where it was
    /// for, and says whom the guest talked to. `late` is asked whether to wait where that takes time.
    pub fn detach_network(&mut self, late: &mut dyn FnMut() -> bool) -> Record {
        let Some(mut network) = self.network.take() else { return Record::default() };
        network.finish();
        let mut is_late = Some(Instant::now() + LATE);
        while !self.hurries {
            let ended = PollFd::new(network.ended(), PollFlags::POLLIN);
            let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
            let mut fds = [ended, signals];
            let happened = poll(&mut fds, timeout(is_late));
            if fds[0].any() == Some(true) {
                break;
            }
            self.hurries = is_interrupt(self.signals.arrived()) || (happened == Ok(0) && !late());
            is_late = is_late.filter(|_| happened != Ok(0));
        }
        // Why it failed was the reason of the machine's end.
        network.stop().unwrap_or_default()
    }
}

/// Whether one of these signals wants us to end.
fn is_interrupt(signals: impl IntoIterator<Item = Signal>) -> bool {
    signals.into_iter().fold(false, |interrupts, signal| interrupts | (signal != Signal::SIGWINCH))
}
