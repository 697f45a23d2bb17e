//! Frames over the machine's non-blocking channel.

use std::os::fd::OwnedFd;

use anyhow::Result;
use nix::errno::Errno;
use nix::unistd::{read, write};
use sekexe_init::protocol::{Decoder, FrameError, ToGuest, ToHost, encode};

/// Most bytes asked for in one read: about what a socket holds.
const READ_SIZE: usize = 256 << 10;

/// Bytes under way in both directions.
#[derive(Default)]
pub struct Link {
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
    /// Bytes that the carrier still takes, where it holds only a few.
    room: Option<usize>,
}

impl Link {
    /// A link over a carrier that holds at most `room` bytes, if it is such a one.
    pub fn new(room: Option<usize>) -> Self {
        Self { room, ..Self::default() }
    }

    /// The guest took bytes from a carrier that holds only a few.
    pub fn was_taken(&mut self, bytes: usize) {
        self.room = self.room.map(|room| room + bytes);
    }

    /// Whether bytes wait that the carrier may take.
    pub fn may_write(&self) -> bool {
        self.has_backlog() && self.room != Some(0)
    }

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
        while self.may_write() {
            let waiting = &self.out[self.written..];
            let most = self.room.map_or(waiting.len(), |room| room.min(waiting.len()));
            match write(channel, &waiting[..most]) {
                Ok(n) => {
                    self.written += n;
                    self.room = self.room.map(|room| room - n);
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                // What it said before it closed its channel is still to be read, and then that.
                Err(Errno::EPIPE | Errno::ECONNRESET) => self.written = self.out.len(),
                Err(e) => return Err(format!("its channel failed: {}", e.desc())),
            }
        }
        if !self.has_backlog() {
            self.out.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// Reads what has arrived. The error says what was seen.
    pub fn read(&mut self, channel: &OwnedFd) -> Result<(), String> {
        match read(channel, self.decoder.room(READ_SIZE)) {
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

    /// Takes over what happened to `other` meanwhile.
    pub fn append(&mut self, other: Self) {
        self.out.extend_from_slice(&other.out[other.written..]);
        self.was_taken(other.room.unwrap_or(0));
    }
}
