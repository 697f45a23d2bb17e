//! One TCP connection: a host socket and its end towards the guest, and bytes between the two.
//!
//! The end towards the guest is a smoltcp interface with a single socket. Each side's end of stream
//! and each side's reset are passed on to the other; a side that does not read stops the other one,
//! because the buffers between them are bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time;
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::device::Turn;
use crate::net::core::Core;
use crate::net::log::{Fate, Protocol};

/// How long the guest has to complete a handshake.
const HANDSHAKE: time::Duration = time::Duration::from_secs(20);
/// Rounds in one turn before others get theirs.
const TURN: usize = 16;

/// The two ends of a connection as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// It waits for one of its ends, at most until then.
    Waits(Option<Instant>),
    /// It has more to do, when there is room on the way to the guest.
    HasMore,
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
    protocol: Protocol,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    host: TcpStream,
    readable: bool,
    writable: bool,
    hung_up: bool,
    established: bool,
    /// The host's end of stream was passed on.
    host_finished: bool,
    /// The guest's end of stream was passed on.
    guest_finished: bool,
    failure: Option<ErrorKind>,
    sent: u64,
    received: u64,
    started: Instant,
}

impl Connection {
    /// Answers the guest's first segment, now that the host's socket is connected.
    pub fn accept(core: &mut Core, flow: Flow, host: TcpStream, buffer: usize, syn: &[u8]) -> Self {
        let mut connection = Self::new(core, flow, host, buffer, Protocol::Tcp);
        let end = IpListenEndpoint { addr: Some(flow.remote.ip().into()), port: flow.remote.port() };
        // It cannot fail: the socket is new and the port is not zero.
        if connection.socket().listen(end).is_err() {
            connection.failure = Some(ErrorKind::InvalidInput);
        }
        connection.take(core, syn);
        connection
    }

    /// Connects to the guest for somebody who connected to a published port.
    pub fn dial(core: &mut Core, flow: Flow, host: TcpStream, buffer: usize) -> Self {
        let mut connection = Self::new(core, flow, host, buffer, Protocol::PublishedTcp);
        let Self { interface, sockets, handle, .. } = &mut connection;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        if socket.connect(interface.context(), flow.guest, flow.remote).is_err() {
            connection.failure = Some(ErrorKind::InvalidInput);
        }
        connection
    }

    fn new(core: &mut Core, flow: Flow, host: TcpStream, buffer: usize, protocol: Protocol) -> Self {
        // What the guest wrote at once shall go at once.
        let _ = host.set_nodelay(true);
        let mut socket = Socket::new(SocketBuffer::new(vec![0; buffer]), SocketBuffer::new(vec![0; buffer]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(HANDSHAKE));
        let mut config = Config::new(HardwareAddress::Ip);
        // Sequence numbers are known to both ends of a link that nobody else is on.
        config.random_seed = core.new_id().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut interface =
            Interface::new(config, &mut Turn { incoming: None, out: &mut core.out }, time::Instant::ZERO);
        let bits = if flow.remote.is_ipv4() { 32 } else { 128 };
        // It cannot fail: there is room for one.
        interface.update_ip_addrs(|list| {
            let _ = list.push(IpCidr::new(flow.remote.ip().into(), bits));
        });
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            flow,
            scheduled: None,
            is_due: false,
            protocol,
            interface,
            sockets,
            handle,
            host,
            readable: true,
            writable: true,
            hung_up: false,
            established: false,
            host_finished: false,
            guest_finished: false,
            failure: None,
            sent: 0,
            received: 0,
            started: core.now,
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn time(&self, now: Instant) -> time::Instant {
        time::Instant::from_micros(i64::try_from((now - self.started).as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes a packet of the guest's.
    pub fn take(&mut self, core: &mut Core, packet: &[u8]) {
        let now = self.time(core.now);
        let mut device = Turn { incoming: Some(packet), out: &mut core.out };
        self.interface.poll_ingress_single(now, &mut device, &mut self.sockets);
    }

    /// Something happened to the host's socket.
    pub fn on_event(&mut self, flags: EpollFlags) {
        let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        self.hung_up |= flags.intersects(ended);
        self.readable |= flags.intersects(EpollFlags::EPOLLIN | ended);
        self.writable |= flags.contains(EpollFlags::EPOLLOUT);
    }

    /// Moves what can be moved.
    pub fn turn(&mut self, core: &mut Core) -> std::io::Result<Turned> {
        let now = self.time(core.now);
        for _ in 0..TURN {
            let mut moved = self.send_to_host();
            moved |= self.receive_from_host();
            let mut device = Turn { incoming: None, out: &mut core.out };
            while self.interface.poll_egress(now, &mut device, &mut self.sockets) != PollResult::None {
                moved = true;
            }
            if core.out.is_full() {
                core.out.flush()?;
                if core.out.is_full() {
                    return Ok(Turned::HasMore);
                }
                continue;
            }
            if !moved {
                return Ok(self.after_turn(now));
            }
        }
        Ok(Turned::HasMore)
    }

    fn after_turn(&mut self, now: time::Instant) -> Turned {
        let state = self.socket().state();
        // Listening again is how smoltcp takes a handshake that the guest broke off.
        if matches!(state, State::Closed | State::TimeWait | State::Listen) {
            return Turned::Ended;
        }
        if !self.established && self.socket().may_send() {
            self.established = true;
            // An idle connection may stay so for as long as both ends want.
            self.socket().set_timeout(None);
        }
        let at = self.interface.poll_at(now, &self.sockets);
        Turned::Waits(at.map(|at| {
            let micros = u64::try_from(at.total_micros()).unwrap_or(0);
            self.started + Duration::from_micros(micros)
        }))
    }

    /// Guest to host. Says whether something moved.
    fn send_to_host(&mut self) -> bool {
        let Self { sockets, handle, host, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
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
        let guest_is_done =
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if guest_is_done && !socket.can_recv() && !self.guest_finished {
            self.guest_finished = true;
            let _ = host.shutdown(Shutdown::Write);
            moved = true;
        }
        moved
    }

    /// Host to guest. Says whether something moved.
    fn receive_from_host(&mut self) -> bool {
        let Self { sockets, handle, host, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        let mut moved = false;
        while self.readable && !self.host_finished && socket.can_send() {
            let mut result = Ok(0);
            let mut asked = 0;
            let _ = socket.send(|buffer| {
                asked = buffer.len();
                result = host.read(buffer);
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

    /// Ends the host's side as the guest's side ended, and writes the log.
    pub fn end(mut self, core: &mut Core) {
        let in_order = self.host_finished && self.guest_finished;
        if self.socket().state() != State::TimeWait && !in_order {
            // Closing it then sends a reset.
            let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(&self.host, sockopt::Linger, &abort);
        }
        let remote = self.flow.remote;
        let fate = match self.failure {
            Some(kind) if self.sent == 0 && self.received == 0 => Fate::Failed(kind.to_string()),
            _ => Fate::Carried,
        };
        core.log.add(self.protocol, remote, core.names.of(remote.ip()), fate, (self.sent, self.received));
    }
}
