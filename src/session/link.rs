//! Frames over the machine's non-blocking channel.

use std::os::fd::OwnedFd;

use anyhow::Result;
use nix::errno::Errno;
use nix::unistd::{read, write};
use sekexe_init::protocol::{Decoder, FrameError, ToGuest, ToHost, encode};

/// Bytes asked for in one read.
const READ_SIZE: usize = 1 << 20;

/// Bytes under way in both directions.
#[derive(Default)]
pub struct Link {
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
}

impl Link {
    /// Queues a message.
    pub fn send(&mut self, message: &ToGuest<'_>) -> Result<()> {
        Ok(encode(message, &mut self.out)?)
    }

    /// Whether bytes wait to be written.
    pub fn has_backlog(&self) -> bool {
        self.written < self.out.len()
    }

    /// Writes what the channel takes now. The error says what was seen.
    pub fn write(&mut self, channel: &OwnedFd) -> Result<(), String> {
        while self.has_backlog() {
            match write(channel, &self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err("it closed its channel".into()),
                Err(e) => return Err(format!("its channel failed: {}", e.desc())),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what has arrived. The error says what was seen.
    pub fn read(&mut self, channel: &OwnedFd) -> Result<(), String> {
        match read(channel, self.decoder.space(READ_SIZE)) {
            Ok(0) | Err(Errno::ECONNRESET) => return Err("it closed its channel".into()),
            Ok(n) => self.decoder.received(n),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(format!("its channel failed: {}", e.desc())),
        }
        Ok(())
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<ToHost<'_>>, FrameError> {
        self.decoder.next()
    }

    /// Takes over what was queued on `other` meanwhile.
    pub fn append(&mut self, other: Self) {
        self.out.extend_from_slice(&other.out[other.written..]);
    }
}
