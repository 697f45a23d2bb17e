//! The byte channel to the host: framing on top of a non-blocking device.
//!
//! In namespaces the channel is a socket that this process was started with. In a guest it is a
//! device: a kernel with our driver offers `/dev/hostfd0`. A distribution's kernel has only the first
//! serial line; it is opened once and never closed, since bytes that arrive while it is closed are
//! lost, and it is put into raw mode, since a terminal would rewrite our bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::protocol::{Decoder, ToGuest, ToHost, encode};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{isatty, read, write};

/// Device files that may carry the channel, best first.
const CARRIERS: [&str; 2] = ["/dev/hostfd0", "/dev/ttyS0"];

/// Most bytes asked for in one read.
const READ_SIZE: usize = 256 << 10;

/// The channel and the bytes under way in both directions.
pub struct Channel {
    fd: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
    /// A carrier that holds so little that the host waits for what it sent to be taken.
    is_line: bool,
}

impl Channel {
    /// Takes over a socket.
    pub fn over(socket: OwnedFd) -> Self {
        Self { fd: socket, decoder: Decoder::default(), out: Vec::new(), written: 0, is_line: false }
    }

    /// Opens the best carrier of a guest.
    pub fn open() -> Result<Self> {
        let path = CARRIERS.iter().find(|p| Path::new(p).exists()).context("no carrier device")?;
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = open(*path, flags, Mode::empty()).with_context(|| format!("open {path}"))?;
        let is_line = isatty(&fd).unwrap_or(false);
        if is_line {
            let mut settings = tcgetattr(&fd).context("read the line's settings")?;
            cfmakeraw(&mut settings);
            tcsetattr(&fd, SetArg::TCSANOW, &settings).context("make the line raw")?;
        }
        Ok(Self { fd, decoder: Decoder::default(), out: Vec::new(), written: 0, is_line })
    }

    /// Queues a message.
    pub fn send(&mut self, message: &ToHost<'_>) -> Result<()> {
        Ok(encode(message, &mut self.out)?)
    }

    /// Bytes queued and not yet written.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes what the carrier takes now.
    pub fn flush(&mut self) -> Result<()> {
        while self.written < self.out.len() {
            match write(&self.fd, &self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("write to the host"),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Writes everything, however long it takes.
    pub fn flush_all(&mut self) -> Result<()> {
        loop {
            self.flush()?;
            if self.backlog() == 0 {
                return Ok(());
            }
            self.wait(PollFlags::POLLOUT)?;
        }
    }

    /// Reads what has arrived. An end of file is an error: without a host there is no work.
    pub fn fill(&mut self) -> Result<()> {
        match read(&self.fd, self.decoder.room(READ_SIZE)) {
            Ok(0) => bail!("the host has closed the channel"),
            Ok(n) => {
                self.decoder.received(n);
                if self.is_line {
                    self.send(&ToHost::Received { bytes: n as u32 })?;
                    self.flush()?;
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e).context("read from the host"),
        }
        Ok(())
    }

    /// Waits until something has arrived, and reads it.
    pub fn wait_and_fill(&mut self) -> Result<()> {
        self.wait(PollFlags::POLLIN)?;
        self.fill()
    }

    /// Reads what arrives, if something does in so much time.
    pub fn fill_within(&mut self, patience: Duration) -> Result<()> {
        match ppoll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], Some(patience.into()), None) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => self.fill(),
            Err(e) => Err(e).context("wait for the host"),
        }
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<ToGuest<'_>>> {
        Ok(self.decoder.next()?)
    }

    fn wait(&self, events: PollFlags) -> Result<()> {
        match poll(&mut [PollFd::new(self.fd.as_fd(), events)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("wait for the host"),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
