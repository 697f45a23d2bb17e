//! Where a command's bytes come from and go to on the host.
//!
//! Our standard streams are shared with other processes, so they may not be made non-blocking.
//! Instead nothing is read or written before `poll` said that it will not block, and to a pipe no
//! more is written at once than such an answer promises.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{isatty, read, write};
use sekexe_init::protocol::{MAX_DATA, SessionId, ToGuest, WINDOW};

use super::link::Link;

/// Where standard input comes from.
#[derive(Debug)]
pub enum Input {
    /// Nowhere: the command reads `/dev/null`.
    Null,
    /// A descriptor of ours.
    Fd(OwnedFd),
}

impl Input {
    /// Whether there is anything to pass on.
    pub fn is_some(&self) -> bool {
        matches!(self, Self::Fd(_))
    }
}

/// A function that takes bytes.
pub type Taker = Box<dyn FnMut(&[u8])>;

/// Where an output goes.
pub enum Output {
    /// A descriptor of ours.
    Fd(OwnedFd),
    /// A descriptor of ours, and a function that sees the bytes once they were written.
    Watched(OwnedFd, Taker),
    /// Memory.
    Capture,
    /// A function, which takes every byte that it is given.
    Hand(Taker),
}

/// Standard input under way to the guest.
pub struct Source {
    fd: Option<OwnedFd>,
    credit: u32,
    buffer: Vec<u8>,
}

impl Source {
    pub fn new(input: Input) -> Self {
        let fd = match input {
            Input::Null => None,
            Input::Fd(fd) => Some(fd),
        };
        Self { fd, credit: WINDOW, buffer: Vec::new() }
    }

    /// What to wait on before [`Source::feed`].
    pub fn wants(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().filter(|_| self.credit > 0).map(AsFd::as_fd)
    }

    pub fn add_credit(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes);
    }

    /// The command does not read any more.
    pub fn close(&mut self) {
        self.fd = None;
    }

    /// Sends what can be read without waiting.
    pub fn feed(&mut self, session: SessionId, link: &mut Link) -> Result<()> {
        while !link.has_backlog()
            && let Some(fd) = self.fd.as_ref().filter(|_| self.credit > 0)
        {
            if !is_ready(fd.as_fd(), PollFlags::POLLIN) {
                break;
            }
            self.buffer.resize(MAX_DATA, 0);
            let most = MAX_DATA.min(self.credit as usize);
            match read(fd, &mut self.buffer[..most]) {
                Ok(0) => self.fd = None,
                Ok(n) => {
                    self.credit -= n as u32;
                    link.send(&ToGuest::Stdin { session, data: &self.buffer[..n] })?;
                    break;
                }
                Err(Errno::EINTR | Errno::EAGAIN) => break,
                // A terminal that is gone, or a descriptor closed for reading, has no more to say.
                Err(_) => self.fd = None,
            }
            if self.fd.is_none() {
                link.send(&ToGuest::StdinEof { session })?;
            }
        }
        Ok(())
    }
}

/// What became of bytes for an output.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// So many were written.
    Bytes(u32),
    /// Its reader has gone.
    Closed,
    /// It cannot be written, for a reason that the user must know.
    Failed(String),
}

enum Target {
    Fd { fd: OwnedFd, at_once: usize, watcher: Option<Taker> },
    Capture(Vec<u8>),
    Hand(Taker),
    Gone,
}

/// Output under way from the guest.
pub struct Sink {
    target: Target,
    waiting: Vec<u8>,
    start: usize,
    /// Bytes handed on since the last [`Sink::flush`].
    passed: u32,
}

impl Sink {
    pub fn new(output: Output) -> Self {
        let to = |fd, watcher| Target::Fd { at_once: safe_write_size(&fd), fd, watcher };
        let target = match output {
            Output::Fd(fd) => to(fd, None),
            Output::Watched(fd, watcher) => to(fd, Some(watcher)),
            Output::Capture => Target::Capture(Vec::new()),
            Output::Hand(function) => Target::Hand(function),
        };
        Self { target, waiting: Vec::new(), start: 0, passed: 0 }
    }

    /// Accepts bytes; those for a descriptor wait until it can take them.
    pub fn take(&mut self, data: &[u8]) {
        match &mut self.target {
            Target::Fd { .. } => self.waiting.extend_from_slice(data),
            Target::Capture(bytes) => bytes.extend_from_slice(data),
            Target::Hand(function) => function(data),
            Target::Gone => {}
        }
        if !matches!(self.target, Target::Fd { .. }) {
            self.passed += data.len() as u32;
        }
    }

    /// What to wait on before [`Sink::flush`].
    pub fn wants(&self) -> Option<BorrowedFd<'_>> {
        match &self.target {
            Target::Fd { fd, .. } if self.start < self.waiting.len() => Some(fd.as_fd()),
            _ => None,
        }
    }

    /// Writes what can be written without waiting.
    pub fn flush(&mut self) -> Written {
        let mut written = std::mem::take(&mut self.passed);
        while let Target::Fd { fd, at_once, watcher } = &mut self.target
            && self.start < self.waiting.len()
            && is_ready(fd.as_fd(), PollFlags::POLLOUT)
        {
            let end = self.waiting.len().min(self.start + *at_once);
            match write(fd, &self.waiting[self.start..end]) {
                Ok(n) => {
                    if let Some(watcher) = watcher {
                        watcher(&self.waiting[self.start..self.start + n]);
                    }
                    self.start += n;
                    written += n as u32;
                }
                Err(Errno::EINTR | Errno::EAGAIN) => break,
                Err(e) => {
                    self.target = Target::Gone;
                    self.waiting = Vec::new();
                    self.start = 0;
                    return match e {
                        Errno::EPIPE => Written::Closed,
                        e => Written::Failed(format!("cannot write the command's output: {}", e.desc())),
                    };
                }
            }
        }
        if self.start == self.waiting.len() {
            self.waiting.clear();
            self.start = 0;
        }
        Written::Bytes(written)
    }

    /// Writes everything, waiting for the reader. Returns why it could not, if the user must know.
    pub fn flush_all(&mut self) -> Option<String> {
        loop {
            if let Written::Failed(why) = self.flush() {
                return Some(why);
            }
            let fd = self.wants()?;
            let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE);
        }
    }

    pub fn into_captured(self) -> Vec<u8> {
        match self.target {
            Target::Capture(bytes) => bytes,
            _ => Vec::new(),
        }
    }
}

/// How much a writable `fd` takes without blocking: anything for a file, a page for a pipe
/// (`pipe(7)`), and as little for whatever else may block.
fn safe_write_size(fd: &OwnedFd) -> usize {
    let kind = fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    match kind {
        Ok(SFlag::S_IFREG) => MAX_DATA,
        Ok(SFlag::S_IFCHR) if !isatty(fd).unwrap_or(true) => MAX_DATA,
        _ => libc::PIPE_BUF,
    }
}

fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    matches!(poll(&mut [PollFd::new(fd, events)], PollTimeout::ZERO), Ok(n) if n > 0)
}

#[cfg(test)]
mod tests {
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    #[test]
    fn a_full_pipe_takes_what_fits_and_the_rest_waits() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut sink = Sink::new(Output::Fd(writer));
        sink.take(&vec![7; 1 << 20]);
        let Written::Bytes(first) = sink.flush() else { panic!("a pipe with a reader") };
        assert!(first > 0 && first < 1 << 20, "{first}");
        assert!(sink.wants().is_some());
        let mut buffer = vec![0; 1 << 20];
        assert_eq!(read(&reader, &mut buffer).unwrap(), first as usize);
        assert!(matches!(sink.flush(), Written::Bytes(n) if n > 0));
    }

    #[test]
    fn a_reader_that_left_is_not_an_error() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(reader);
        let mut sink = Sink::new(Output::Fd(writer));
        sink.take(b"x");
        assert_eq!(sink.flush(), Written::Closed);
        sink.take(b"more");
        assert_eq!(sink.flush(), Written::Bytes(4));
    }

    #[test]
    fn a_watcher_sees_what_was_written_and_no_more() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let eye = seen.clone();
        let watcher = Box::new(move |bytes: &[u8]| eye.borrow_mut().extend_from_slice(bytes));
        let mut sink = Sink::new(Output::Watched(writer, watcher));
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| n as u8).collect();
        sink.take(&bytes);
        let Written::Bytes(first) = sink.flush() else { panic!("a pipe with a reader") };
        assert!(*seen.borrow() == bytes[..first as usize]);
        drop(reader);
        // A process that another test has just forked may hold the other end until its exec.
        let closed = loop {
            match sink.flush() {
                Written::Bytes(0) => std::thread::yield_now(),
                other => break other,
            }
        };
        assert_eq!(closed, Written::Closed);
        assert_eq!(seen.borrow().len(), first as usize);
    }

    #[test]
    fn a_full_disk_is_one() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut sink = Sink::new(Output::Fd(full.into()));
        sink.take(b"x");
        let Written::Failed(why) = sink.flush() else { panic!("/dev/full took a byte") };
        assert!(why.contains("No space left"), "{why}");
    }
}
