//! One TCP connection: a host socket and its end towards the guest, and bytes between the two.
//!
//! Each side's end of stream and each side's reset are passed on to the other; a side that does not
//! read stops the other one, because the buffers between them are bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use smoltcp::socket::tcp::State;

use super::guest_end::{BUFFER, GuestEnd};
use super::spliced::{Pipes, Sockets, Spliced};
use crate::net::core::Core;
use crate::net::emit::Ends;
use crate::net::frame::TCP;
use crate::net::log::{Fate, Protocol};
use crate::sys::tcp::Progress;

/// Bytes read from the host's socket before they go on to the guest.
const PIECE: usize = 512 << 10;
/// Bytes after which a connection was not a short one.
const MUCH: u64 = 128 << 10;
/// Rounds in one turn before others get theirs.
const TURN: usize = 4;
/// Bytes in both directions after which a connection is worth being handed over to the kernel.
const HEAVY: u64 = 1 << 20;
/// Bytes for the guest after which those to come stay in the host's socket, where that is possible.
const LONG: u64 = 256 << 10;
/// How long the guest has to be silent for that, unless it may not send.
const SILENCE: Duration = Duration::from_millis(1);
/// How long bytes may be held back for it.
const PATIENCE: Duration = Duration::from_millis(50);

/// The two ends of a connection as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

impl Flow {
    /// The ends of a packet to the guest.
    pub fn inward(&self) -> Ends {
        Ends { source: self.remote.ip(), destination: self.guest.ip() }
    }

    /// The ends of a packet from the guest.
    pub fn outward(&self) -> Ends {
        Ends { source: self.guest.ip(), destination: self.remote.ip() }
    }
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// It waits for one of its ends, at most until then.
    Waits(Option<Instant>),
    /// It has more to do, when there is room on the way to the guest.
    HasMore,
    /// Nothing is under way between the guest and us, and nothing will be before the next turn.
    Rests,
    /// It is over.
    Ended,
}

/// See the module.
pub struct Connection {
    /// Its ends.
    pub flow: Flow,
    /// When it must be looked at again, if that is scheduled.
    pub scheduled: Option<Instant>,
    /// Whether its turn is due.
    pub is_due: bool,
    /// Whether we are woken when the host's socket takes bytes again.
    pub minds_room: bool,
    protocol: Protocol,
    guest: GuestEnd,
    host: TcpStream,
    readable: bool,
    writable: bool,
    hung_up: bool,
    established: bool,
    /// The host's end of stream was passed on.
    host_finished: bool,
    /// The guest's end of stream has come, after everything else of the guest's.
    guest_closed: bool,
    /// It was passed on.
    guest_finished: bool,
    /// There is nothing to be said to the guest any more, but something of the guest's to pass on.
    lingers: bool,
    failure: Option<ErrorKind>,
    sent: u64,
    received: u64,
    /// Since when bytes are held back so that it may be handed over.
    held_since: Option<Instant>,
    /// Whether the guest was then asked how far it is.
    has_asked: bool,
    /// How many bytes must have gone by before that is tried.
    heavy_at: u64,
    /// How many, before they stay in the host's socket.
    peek_at: u64,
}

impl Connection {
    /// Answers the guest's first segment, now that the host's socket is connected.
    pub fn accept(core: &mut Core, flow: Flow, host: TcpStream, guest: GuestEnd, syn: &[u8]) -> Self {
        let mut connection = Self::new(flow, host, guest, Protocol::Tcp);
        // It cannot fail: the socket is new and the port is not zero.
        if !connection.guest.listen(flow) {
            connection.failure = Some(ErrorKind::InvalidInput);
        }
        connection.take(core, syn);
        connection
    }

    /// Connects to the guest for somebody who connected to a published port.
    pub fn dial(flow: Flow, host: TcpStream, guest: GuestEnd) -> Self {
        let mut connection = Self::new(flow, host, guest, Protocol::PublishedTcp);
        if !connection.guest.connect(flow) {
            connection.failure = Some(ErrorKind::InvalidInput);
        }
        connection
    }

    fn new(flow: Flow, host: TcpStream, guest: GuestEnd, protocol: Protocol) -> Self {
        // What the guest wrote at once shall go at once.
        let _ = host.set_nodelay(true);
        Self {
            flow,
            scheduled: None,
            is_due: false,
            minds_room: false,
            protocol,
            guest,
            host,
            // An event says when it is.
            readable: false,
            writable: true,
            hung_up: false,
            established: false,
            host_finished: false,
            guest_closed: false,
            guest_finished: false,
            lingers: false,
            failure: None,
            sent: 0,
            received: 0,
            held_since: None,
            has_asked: false,
            heavy_at: HEAVY,
            peek_at: LONG,
        }
    }

    /// The host's socket.
    pub fn host(&self) -> &TcpStream {
        &self.host
    }

    /// Whether the host's socket is full.
    pub fn is_stuck(&self) -> bool {
        !self.writable
    }

    /// Takes a packet of the guest's.
    pub fn take(&mut self, core: &mut Core, packet: &[u8]) {
        self.guest.take(core, packet);
    }

    /// Something happened to the host's socket.
    pub fn on_event(&mut self, flags: EpollFlags) {
        let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        self.hung_up |= flags.intersects(ended);
        self.readable |= flags.intersects(EpollFlags::EPOLLIN | ended);
        self.writable |= flags.contains(EpollFlags::EPOLLOUT);
    }

    /// Moves what can be moved.
    pub fn turn(&mut self, core: &mut Core) -> io::Result<Turned> {
        for _ in 0..TURN {
            self.hold(core);
            let mut moved = false;
            if self.held_since.is_none() {
                moved |= self.send_to_host();
                moved |= self.receive(core);
            }
            // smoltcp would soon forget what is left.
            if !self.lingers {
                moved |= self.guest.send(core, self.host.as_fd())?;
            }
            if core.out.is_heavy() {
                core.out.flush()?;
            }
            if self.guest.lacks_room(core) {
                core.out.flush()?;
                if self.guest.lacks_room(core) {
                    return Ok(Turned::HasMore);
                }
                continue;
            }
            moved |= self.guest.rouse(core, self.flow);
            if !moved {
                return Ok(match self.rest(core) {
                    Some(turned) => turned,
                    None => self.after_turn(core.now),
                });
            }
        }
        Ok(Turned::HasMore)
    }

    /// Holds bytes back if it is time to hand the connection over.
    fn hold(&mut self, core: &Core) {
        let is_heavy = self.sent + self.received >= self.heavy_at;
        if is_heavy && self.held_since.is_none() && core.has_outside_for(self.flow) {
            let is_open = self.established && !self.host_finished && !self.guest_finished;
            if is_open && self.guest.socket().state() == State::Established {
                self.held_since = Some(core.now);
                self.has_asked = false;
            }
        }
    }

    /// Whether it rests, or what it waits for until it does; nothing if that is not to be.
    fn rest(&mut self, core: &mut Core) -> Option<Turned> {
        let (since, now) = (self.held_since?, core.now);
        let socket = self.guest.socket();
        let (state, unacknowledged) = (socket.state(), socket.send_queue());
        let seen = self.guest.seen();
        if state == State::Established && now < since + PATIENCE {
            if unacknowledged > 0 || !seen.is_quiet(SILENCE, now) {
                if unacknowledged > 0 && !self.has_asked {
                    self.has_asked = true;
                    core.out.payload(self.flow.inward(), TCP, &seen.question(self.flow));
                }
                let next = self.guest.next(now).map_or(now + SILENCE, |at| at.min(now + SILENCE));
                return Some(Turned::Waits(Some(next)));
            }
            self.send_to_host();
            if self.guest.socket().recv_queue() == 0 && self.failure.is_none() {
                return Some(Turned::Rests);
            }
        }
        self.go_on();
        Some(Turned::HasMore)
    }

    /// It is not handed over for now.
    pub fn go_on(&mut self) {
        self.held_since = None;
        self.heavy_at = (self.sent + self.received) * 2;
    }

    /// It cannot be handed over.
    pub fn stay(&mut self) {
        self.held_since = None;
        self.heavy_at = u64::MAX;
    }

    /// Bytes of the guest's that the host's socket has yet to take; the end of the stream counts as one.
    pub fn unsent(&mut self) -> usize {
        let end = usize::from(self.guest_closed && !self.guest_finished);
        let socket = self.guest.socket();
        if self.failure.is_some() { 0 } else { socket.recv_queue() + end }
    }

    /// Bytes from the guest and to it so far.
    pub fn moved(&self) -> (u64, u64) {
        (self.sent, self.received)
    }

    /// Where our end of it is, while it rests.
    pub fn progress(&mut self) -> Progress {
        self.guest.seen_open().progress()
    }

    /// Leaves it to the kernel, and tells a guest that was kept from sending that it may: of the kernel's
    /// own first word, which has an old number, it does not take a window.
    pub fn hand_over(self, core: &mut Core, guest: TcpStream, pipes: Pipes) -> Spliced {
        core.out.payload(self.flow.inward(), TCP, &self.guest.seen().answer(self.flow));
        let sockets = Sockets { guest, moved: self.moved(), host: self.host };
        Spliced::new(self.flow, self.protocol, sockets, pipes)
    }

    fn after_turn(&mut self, now: Instant) -> Turned {
        let socket = self.guest.socket();
        // Listening again is how smoltcp takes a handshake that the guest broke off.
        if matches!(socket.state(), State::Closed | State::TimeWait | State::Listen) {
            self.lingers = self.guest_closed && socket.can_recv() && self.failure.is_none();
            return if self.lingers { Turned::Waits(None) } else { Turned::Ended };
        }
        if !self.established && socket.may_send() {
            self.established = true;
            // An idle connection may stay so for as long as both ends want.
            socket.set_timeout(None);
        }
        Turned::Waits(self.guest.next(now))
    }

    /// Guest to host. Says whether something moved.
    fn send_to_host(&mut self) -> bool {
        let Self { guest, host, .. } = self;
        let socket = guest.socket();
        let mut moved = false;
        while self.writable && socket.can_recv() {
            let mut result = Ok(0);
            let _ = socket.recv(|bytes| {
                result = host.write(bytes);
                (result.as_ref().copied().unwrap_or(0), ())
            });
            match result {
                Ok(count) => {
                    self.sent += count as u64;
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) => {
                    self.writable = false;
                    self.failure = Some(error.kind());
                    socket.abort();
                }
            }
        }
        self.guest_closed |= is_done(socket.state());
        if self.guest_closed && !socket.can_recv() && !self.guest_finished {
            self.guest_finished = true;
            let _ = host.shutdown(Shutdown::Write);
            moved = true;
        }
        moved
    }

    /// Host to guest, by one way or the other. Says whether something moved.
    fn receive(&mut self, core: &Core) -> bool {
        let is_due = self.received >= self.peek_at && core.out.can_place() && !self.host_finished;
        let (socket, peeked) = self.guest.peeked();
        if is_due && peeked.is_none() && socket.may_send() {
            if socket.send_queue() > 0 {
                // Nothing may be under way, which is soon.
                return false;
            }
            if self.guest.peek(self.host.as_fd()).is_err() {
                self.peek_at = u64::MAX;
            }
        }
        match self.show_to_guest() {
            Ok(Some(moved)) => moved,
            Ok(None) => self.receive_from_host(),
            Err(error) => {
                self.readable = false;
                if self.failure.is_none() {
                    self.failure = Some(error.kind());
                    self.guest.socket().abort();
                }
                true
            }
        }
    }

    /// Host to guest, while data stay in the host's socket. Says whether something moved, if they do.
    fn show_to_guest(&mut self) -> io::Result<Option<bool>> {
        let (socket, Some(peeked)) = self.guest.peeked() else { return Ok(None) };
        let host = self.host.as_fd();
        if let Some(failure) = peeked.failure() {
            return Err(failure.into());
        }
        peeked.throw_away(host, socket.send_queue())?;
        if !self.readable || self.host_finished || !socket.can_send() {
            return Ok(Some(false));
        }
        let told = peeked.tell(host, socket)?;
        self.received += told as u64;
        self.readable = told > 0;
        if told == 0 && self.hung_up && peeked.is_at_end(host)? {
            self.host_finished = true;
            socket.close();
            return Ok(Some(true));
        }
        Ok(Some(told > 0))
    }

    /// Host to guest, by smoltcp's buffer. Says whether something moved.
    fn receive_from_host(&mut self) -> bool {
        let Self { guest, host, .. } = self;
        let socket = guest.socket();
        let mut moved = false;
        let mut left = PIECE.min(BUFFER.saturating_sub(socket.send_queue()));
        while left > 0 && self.readable && !self.host_finished && socket.can_send() {
            let mut result = Ok(0);
            let mut asked = 0;
            let _ = socket.send(|buffer| {
                asked = buffer.len().min(left);
                result = host.read(&mut buffer[..asked]);
                (result.as_ref().copied().unwrap_or(0), ())
            });
            match result {
                Ok(0) => {
                    self.host_finished = true;
                    socket.close();
                    moved = true;
                }
                Ok(count) => {
                    self.received += count as u64;
                    left -= count;
                    // A short read found the socket empty; what comes later is an event of its own.
                    self.readable = count == asked || self.hung_up;
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) => {
                    self.readable = false;
                    self.failure = Some(error.kind());
                    socket.abort();
                    moved = true;
                }
            }
        }
        moved
    }

    /// Ends the host's side as the guest's side ended, writes the log, and leaves the guest's end to
    /// the next one, unless it has filled so much memory that it had better give that back.
    pub fn end(mut self, core: &mut Core) -> Option<GuestEnd> {
        let state = self.guest.socket().state();
        // What the guest has closed and not reset need not be waited for.
        let in_order = self.guest_finished && (self.host_finished || state != State::Closed);
        if state != State::TimeWait && !in_order {
            // Closing it then sends a reset.
            let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(&self.host, sockopt::Linger, &abort);
        }
        let remote = self.flow.remote;
        let fate = match self.failure {
            Some(kind) if self.sent == 0 && self.received == 0 => Fate::Failed(kind.to_string()),
            _ => Fate::Carried,
        };
        core.log.add(self.protocol, remote, core.names.of(remote.ip()), fate, self.moved());
        (self.sent.max(self.received) < MUCH).then_some(self.guest)
    }
}

/// Whether the guest's end of stream has come.
fn is_done(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}
