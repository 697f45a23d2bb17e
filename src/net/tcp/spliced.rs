//! A connection whose end towards the guest is the kernel's: bytes go from one socket to the other
//! through a pipe, and none of them comes to us.
//!
//! Ends of stream, resets and readers that do not read are passed on as by every other connection.

use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::pipe2;

use super::connection::Flow;
use crate::net::core::Core;
use crate::net::log::{Fate, Protocol};
use crate::sys::tcp::{is_closed, move_bytes};

/// Bytes for which the pipe of a way has room that has carried [`BULK`], counted in pages: what a page of
/// it holds may be longer. All pages of all pipes of a user are counted together.
const PIPE: i32 = 1 << 20;
/// Bytes.
const BULK: u64 = 256 << 10;
/// Bytes asked for at once: all that there is room for.
const MOST: usize = 4 << 20;
/// Rounds in one turn before others get theirs.
const TURN: usize = 4;

/// See the module.
pub struct Spliced {
    /// Its ends.
    pub flow: Flow,
    /// Whether its turn is due.
    pub is_due: bool,
    protocol: Protocol,
    guest: TcpStream,
    host: TcpStream,
    to_host: Way,
    to_guest: Way,
    is_reset: bool,
}

/// One direction.
struct Way {
    out_of_pipe: OwnedFd,
    into_pipe: OwnedFd,
    held: usize,
    /// Whether there may be bytes, and room.
    readable: bool,
    writable: bool,
    /// The end of stream came, and was passed on.
    ended: bool,
    finished: bool,
    moved: u64,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// It waits for one of its ends.
    Waits,
    /// It has more to do.
    HasMore,
    /// It is over.
    Ended,
}

/// The pipes of a connection.
pub struct Pipes([(OwnedFd, OwnedFd); 2]);

impl Pipes {
    /// New ones for a connection that has moved so many bytes from the guest and to it. The error is the
    /// host's, which is short of something.
    pub fn new(moved: (u64, u64)) -> nix::Result<Self> {
        let pipe = |moved| {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
            if moved >= BULK {
                let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE));
            }
            Ok::<_, Errno>((reader, writer))
        };
        Ok(Self([pipe(moved.0)?, pipe(moved.1)?]))
    }
}

/// The two sockets of a connection, and what it has moved so far.
pub struct Sockets {
    /// Towards the guest.
    pub guest: TcpStream,
    /// Towards the host.
    pub host: TcpStream,
    /// Bytes from the guest and to it.
    pub moved: (u64, u64),
}

impl Spliced {
    /// Goes on with a connection.
    pub fn new(flow: Flow, protocol: Protocol, sockets: Sockets, pipes: Pipes) -> Self {
        let [to_host, to_guest] = pipes.0;
        let Sockets { guest, host, moved } = sockets;
        Self {
            flow,
            is_due: false,
            protocol,
            guest,
            host,
            to_host: Way::new(to_host, moved.0),
            to_guest: Way::new(to_guest, moved.1),
            is_reset: false,
        }
    }

    /// What both sockets are watched for.
    pub fn interest() -> EpollFlags {
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
    }

    /// The socket towards the guest.
    pub fn guest(&self) -> &TcpStream {
        &self.guest
    }

    /// The socket towards the host.
    pub fn host(&self) -> &TcpStream {
        &self.host
    }

    /// Something happened to the host's socket.
    pub fn on_host_event(&mut self, flags: EpollFlags) {
        on_event(flags, &mut self.to_guest, &mut self.to_host);
    }

    /// Something happened to the kernel's end.
    pub fn on_guest_event(&mut self, flags: EpollFlags) {
        on_event(flags, &mut self.to_host, &mut self.to_guest);
    }

    /// The guest has reset it, of which the kernel's end does not know.
    pub fn on_reset(&mut self) {
        self.is_reset = true;
    }

    /// Moves what can be moved.
    pub fn turn(&mut self) -> Turned {
        for _ in 0..TURN {
            let reset = Err(Errno::ECONNRESET);
            let to_guest = if self.is_reset { reset } else { self.to_guest.turn(&self.host, &self.guest) };
            let to_host = self.to_host.turn(&self.guest, &self.host);
            match (to_guest, to_host) {
                (Ok(false), Ok(false)) => {
                    let finished = self.to_guest.finished && self.to_host.finished;
                    // Until then the guest may repeat itself.
                    let ended = finished && is_closed(self.guest.as_fd());
                    return if ended { Turned::Ended } else { Turned::Waits };
                }
                (Ok(_), Ok(_)) => {}
                _ => {
                    // Closing them then sends resets.
                    let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                    let _ = setsockopt(&self.host, sockopt::Linger, &abort);
                    let _ = setsockopt(&self.guest, sockopt::Linger, &abort);
                    return Turned::Ended;
                }
            }
        }
        Turned::HasMore
    }

    /// Bytes of the guest's that the host's socket has yet to take, as far as we have them; the end of the
    /// stream counts as one.
    pub fn unsent(&self) -> usize {
        self.to_host.held + usize::from(self.to_host.ended && !self.to_host.finished)
    }

    /// Writes the log.
    pub fn end(self, core: &mut Core) {
        let remote = self.flow.remote;
        let moved = (self.to_host.moved, self.to_guest.moved);
        core.log.add(self.protocol, remote, core.names.of(remote.ip()), Fate::Carried, moved);
    }
}

fn on_event(flags: EpollFlags, from: &mut Way, to: &mut Way) {
    let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
    let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
    from.readable |= flags.intersects(EpollFlags::EPOLLIN | ended);
    to.writable |= flags.intersects(EpollFlags::EPOLLOUT | gone);
}

impl Way {
    fn new((out_of_pipe, into_pipe): (OwnedFd, OwnedFd), moved: u64) -> Self {
        Self {
            out_of_pipe,
            into_pipe,
            held: 0,
            readable: true,
            writable: true,
            ended: false,
            finished: false,
            moved,
        }
    }

    /// Moves what can be moved at once. Says whether something was.
    fn turn(&mut self, from: &TcpStream, to: &TcpStream) -> nix::Result<bool> {
        let mut moved = false;
        // With an empty pipe, that there is nothing to be had is the socket's word.
        if self.held == 0 && self.readable && !self.ended {
            match move_bytes(from, &self.into_pipe, MOST) {
                Ok(0) => self.ended = true,
                Ok(count) => self.held = count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.readable = false,
                Err(errno) => return Err(errno),
            }
        } else if self.ended && self.readable {
            self.readable = false;
            // After its end of stream it has only one thing to say.
            if !matches!(from.take_error(), Ok(None)) {
                return Err(Errno::ECONNRESET);
            }
        }
        if self.held > 0 && self.writable {
            match move_bytes(&self.out_of_pipe, to, self.held) {
                Ok(count) => {
                    self.held -= count;
                    self.moved += count as u64;
                    moved = true;
                }
                Err(Errno::EINTR) => moved = true,
                Err(Errno::EAGAIN) => self.writable = false,
                Err(errno) => return Err(errno),
            }
        }
        if self.ended && self.held == 0 && !self.finished {
            self.finished = true;
            let _ = to.shutdown(Shutdown::Write);
            moved = true;
        }
        Ok(moved)
    }
}
