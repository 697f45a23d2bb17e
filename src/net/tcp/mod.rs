//! Connections: found by their ends, opened on the host first.
//!
//! The guest's first segment is kept until the host's socket is connected or is known not to be; so
//! what the guest sees (accepted, refused, unreachable, silence) is what the host saw, and a
//! connection that never comes to be costs a descriptor and the segment.
//!
//! Then smoltcp is the guest's end of it, until the kernel is where that is possible and pays; where the
//! guest's memory is mapped here, at least its data need not come by smoltcp.

mod connection;
mod device;
mod guest_end;
mod peeked;
mod seen;
mod spliced;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

pub use connection::Flow;
use connection::{Connection, Turned};
pub use guest_end::SMALL_BUFFER;
use guest_end::Spare;
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use spliced::{Pipes, Spliced};

use super::core::{Core, Owner, Route};
use super::dns::Dns;
use super::emit::{self, Ends};
use super::frame::{self, Packet, TCP};
use super::icmp::{self, Trouble};
use super::log::{Fate, Protocol};
use crate::sys::tcp::{bound_buffers, send_unpaced};

/// Connections at once. Beyond them a first segment is not answered, as by a busy server.
const MOST: usize = 4096;
/// Connections that wait for the host at once.
const MOST_PENDING: usize = 1024;
/// Connections taken from one published port before others get their turn.
const TURN: usize = 32;

/// Flags of a segment.
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// See the module.
#[derive(Default)]
pub struct Tcp {
    pending: HashMap<u64, Pending>,
    connections: HashMap<u64, Connection>,
    spliced: HashMap<u64, Spliced>,
    spliced_due: Vec<u64>,
    by_flow: HashMap<Flow, u64>,
    due: Vec<u64>,
    timers: BTreeSet<(Instant, u64)>,
    listeners: HashMap<u64, (TcpListener, u16)>,
    spare: Spare,
}

/// A connection that the host is still opening.
struct Pending {
    flow: Flow,
    syn: Vec<u8>,
    host: TcpStream,
    /// Addresses not tried yet, the next one last.
    left: Vec<SocketAddr>,
}

impl Tcp {
    /// Publishes a listening host socket as a port of the guest's.
    pub fn publish(&mut self, core: &mut Core, listener: TcpListener, port: u16) -> nix::Result<()> {
        let id = core.new_id();
        core.watch(&listener, Owner::TcpListener, id, EpollFlags::EPOLLIN)?;
        self.listeners.insert(id, (listener, port));
        Ok(())
    }

    /// Takes a segment of the guest's.
    pub fn on_packet(&mut self, core: &mut Core, dns: &mut Dns, packet: &Packet<'_>) {
        let Some(header) = packet.payload.first_chunk::<20>() else { return };
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flow = Flow {
            guest: SocketAddr::new(packet.source, port(0)),
            remote: SocketAddr::new(packet.destination, port(2)),
        };
        let flags = header[13];
        match self.by_flow.get(&flow).copied() {
            Some(id) => match self.connections.get_mut(&id) {
                Some(connection) => {
                    connection.take(core, packet.whole);
                    mark(&mut self.due, id, connection);
                }
                // The guest asks again, or has changed its mind.
                None if flags & RST != 0 => {
                    self.forget_pending(id);
                    // It came before the kernel took this connection over, which knows nothing of it.
                    if let Some(spliced) = self.spliced.get_mut(&id) {
                        spliced.on_reset();
                        mark_spliced(&mut self.spliced_due, id, spliced);
                    }
                }
                None => {}
            },
            None if flags & (SYN | RST | ACK) == SYN && flow.remote.port() != 0 => {
                self.open(core, dns, flow, packet);
            }
            None => refuse(core, packet),
        }
    }

    fn open(&mut self, core: &mut Core, dns: &mut Dns, flow: Flow, packet: &Packet<'_>) {
        let mut targets = match core.route(flow.remote) {
            Route::To(targets) => targets,
            Route::Dns if !core.policy.has_names() => dns.servers(),
            Route::Dns => {
                core.log.add(Protocol::Tcp, flow.remote, &[], Fate::Denied("names over TCP"), (0, 0));
                return refuse(core, packet);
            }
            Route::Denied(reason) => {
                let names = core.names.of(flow.remote.ip());
                core.log.add(Protocol::Tcp, flow.remote, names, Fate::Denied(reason), (0, 0));
                return refuse(core, packet);
            }
        };
        if self.pending.len() >= MOST_PENDING || self.by_flow.len() >= MOST {
            return;
        }
        targets.reverse();
        let id = core.new_id();
        self.try_next(core, id, flow, packet, targets, Errno::EHOSTUNREACH);
    }

    /// Tries the next address of a connection, or tells the guest that none is left.
    fn try_next(
        &mut self,
        core: &mut Core,
        id: u64,
        flow: Flow,
        packet: &Packet<'_>,
        mut left: Vec<SocketAddr>,
        mut failure: Errno,
    ) {
        while let Some(target) = left.pop() {
            match begin_to_connect(target) {
                Ok((host, is_connected)) => {
                    if core.watch(&host, Owner::Tcp, id, interest(!is_connected)).is_err() {
                        return;
                    }
                    self.by_flow.insert(flow, id);
                    if is_connected {
                        self.establish(core, id, flow, host, packet.whole);
                    } else {
                        self.pending.insert(id, Pending { flow, syn: packet.whole.to_vec(), host, left });
                    }
                    return;
                }
                Err(errno) => failure = errno,
            }
        }
        let (remote, reason) = (flow.remote, Fate::Failed(failure.desc().into()));
        core.log.add(Protocol::Tcp, remote, core.names.of(remote.ip()), reason, (0, 0));
        match Trouble::of(failure) {
            Some(Trouble::Port) => refuse(core, packet),
            Some(trouble) => icmp::report(core, packet, trouble),
            // Silence is what a timeout looks like; the guest's own comes at the same time.
            None => {}
        }
    }

    fn establish(&mut self, core: &mut Core, id: u64, flow: Flow, host: TcpStream, syn: &[u8]) {
        let guest = self.spare.take(core, flow, self.connections.len());
        self.insert(id, Connection::accept(core, flow, host, guest, syn));
    }

    fn insert(&mut self, id: u64, mut connection: Connection) {
        mark(&mut self.due, id, &mut connection);
        self.connections.insert(id, connection);
    }

    fn forget_pending(&mut self, id: u64) {
        if let Some(pending) = self.pending.remove(&id) {
            self.by_flow.remove(&pending.flow);
        }
    }

    /// Something happened to the kernel's end of a connection.
    pub fn on_kernel_event(&mut self, id: u64, flags: EpollFlags) {
        if let Some(spliced) = self.spliced.get_mut(&id) {
            spliced.on_guest_event(flags);
            mark_spliced(&mut self.spliced_due, id, spliced);
        }
    }

    /// Something happened to a host socket.
    pub fn on_event(&mut self, core: &mut Core, id: u64, flags: EpollFlags) {
        if let Some(spliced) = self.spliced.get_mut(&id) {
            spliced.on_host_event(flags);
            return mark_spliced(&mut self.spliced_due, id, spliced);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.on_event(flags);
            mark(&mut self.due, id, connection);
            return;
        }
        let Some(pending) = self.pending.remove(&id) else { return };
        let failure = match pending.host.take_error() {
            Ok(None) if flags.contains(EpollFlags::EPOLLOUT) => {
                self.establish(core, id, pending.flow, pending.host, &pending.syn);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.minds_room = true;
                    connection.on_event(flags);
                }
                return;
            }
            Ok(None) => {
                self.pending.insert(id, pending);
                return;
            }
            Ok(Some(error)) | Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        };
        self.by_flow.remove(&pending.flow);
        let frame = [&[0; 12][..], ethertype(&pending.syn), &pending.syn].concat();
        if let Some(frame::Frame::Ip(_, packet)) = frame::parse(&frame) {
            self.try_next(core, id, pending.flow, &packet, pending.left, failure);
        }
    }

    /// Somebody connected to a published port.
    pub fn on_listener(&mut self, core: &mut Core, id: u64) {
        for _ in 0..TURN {
            let Some((listener, port)) = self.listeners.get(&id) else { return };
            let Ok((host, peer)) = listener.accept() else { return };
            let port = *port;
            if self.by_flow.len() < MOST && host.set_nonblocking(true).is_ok() {
                self.admit(core, host, peer, port);
            }
        }
    }

    fn admit(&mut self, core: &mut Core, host: TcpStream, peer: SocketAddr, port: u16) {
        let (guest, gateway) = core.addresses.guest_and_gateway(peer.ip());
        let is_shown = !peer.ip().is_loopback() && peer.is_ipv4() == guest.is_ipv4();
        let source = if is_shown { peer.ip() } else { gateway };
        let guest = SocketAddr::new(guest, port);
        let mut flow = Flow { guest, remote: SocketAddr::new(source, peer.port()) };
        while self.by_flow.contains_key(&flow) || flow.remote.port() == 0 {
            flow.remote.set_port(flow.remote.port().wrapping_add(1));
        }
        let id = core.new_id();
        if core.watch(&host, Owner::Tcp, id, interest(false)).is_ok() {
            let end = self.spare.take(core, flow, self.connections.len());
            self.insert(id, Connection::dial(flow, host, end));
            self.by_flow.insert(flow, id);
        }
    }

    /// Gives every connection its turn whose time has come. The error is the card's.
    pub fn turn(&mut self, core: &mut Core) -> io::Result<()> {
        while let Some(&(at, id)) = self.timers.first().filter(|(at, _)| *at <= core.now) {
            self.timers.remove(&(at, id));
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.scheduled = None;
                mark(&mut self.due, id, connection);
            }
        }
        for id in std::mem::take(&mut self.due) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.is_due = false;
            let turned = connection.turn(core)?;
            if connection.is_stuck() && !connection.minds_room {
                connection.minds_room = true;
                core.watch_again(connection.host(), Owner::Tcp, id, interest(true))?;
            }
            match turned {
                Turned::HasMore => mark(&mut self.due, id, connection),
                Turned::Rests => self.hand_over(core, id)?,
                Turned::Waits(None) => {}
                Turned::Waits(Some(at)) => {
                    // One that comes too early is looked at in vain, once; that is cheaper than
                    // to change it at each turn.
                    if connection.scheduled.is_none_or(|scheduled| at < scheduled) {
                        connection.scheduled = Some(at);
                        self.timers.insert((at, id));
                    }
                }
                Turned::Ended => {
                    if let Some(connection) = self.connections.remove(&id) {
                        self.by_flow.remove(&connection.flow);
                        connection.scheduled.map(|at| self.timers.remove(&(at, id)));
                        connection.end(core).into_iter().for_each(|end| self.spare.keep(end));
                    }
                }
            }
        }
        self.turn_spliced(core);
        Ok(())
    }

    fn turn_spliced(&mut self, core: &mut Core) {
        for id in std::mem::take(&mut self.spliced_due) {
            let Some(spliced) = self.spliced.get_mut(&id) else { continue };
            spliced.is_due = false;
            match spliced.turn() {
                spliced::Turned::HasMore => mark_spliced(&mut self.spliced_due, id, spliced),
                spliced::Turned::Waits => {}
                spliced::Turned::Ended => {
                    if let Some(spliced) = self.spliced.remove(&id) {
                        self.by_flow.remove(&spliced.flow);
                        let flow = spliced.flow;
                        spliced.end(core);
                        if let Some(outside) = &mut core.outside {
                            outside.give_back(core.out.fd(), flow);
                        }
                    }
                }
            }
        }
    }

    /// Hands a connection over to the kernel, or goes on with it. The error is the card's.
    fn hand_over(&mut self, core: &mut Core, id: u64) -> io::Result<()> {
        // What we have said must not come after what the kernel says.
        core.out.flush()?;
        let Some(mut connection) = self.connections.remove(&id) else { return Ok(()) };
        if !core.out.is_empty() {
            connection.go_on();
            self.insert(id, connection);
            return Ok(());
        }
        let (card, guest) = (core.out.fd(), core.out.guest());
        let taken = core.outside.as_mut().and_then(|outside| {
            let pipes = Pipes::new(connection.moved()).ok()?;
            let kernel = outside.take(card, guest, connection.flow, &connection.progress()).ok()?;
            Some((kernel, pipes))
        });
        match taken {
            Some((kernel, pipes)) => {
                connection.scheduled.map(|at| self.timers.remove(&(at, id)));
                let spliced = connection.hand_over(core, kernel.into(), pipes);
                core.watch(spliced.guest(), Owner::KernelEnd, id, Spliced::interest())?;
                core.watch_again(spliced.host(), Owner::Tcp, id, Spliced::interest())?;
                self.spliced.insert(id, spliced);
            }
            None => {
                connection.stay();
                self.insert(id, connection);
            }
        }
        Ok(())
    }

    /// Whether there are connections that were handed over.
    pub fn has_spliced(&self) -> bool {
        !self.spliced.is_empty()
    }

    /// Whether a turn is due now.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The same of one that needs no room on our way to the guest.
    pub fn is_spliced_due(&self) -> bool {
        !self.spliced_due.is_empty()
    }

    /// When the next turn is due.
    pub fn next_turn(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Bytes of the guest's that host sockets have yet to take.
    pub fn unsent(&mut self) -> u64 {
        let connections = self.connections.values_mut().map(Connection::unsent);
        connections.chain(self.spliced.values().map(Spliced::unsent)).sum::<usize>() as u64
    }

    /// Everything goes into the log.
    pub fn finish(&mut self, core: &mut Core) {
        for (_, connection) in self.connections.drain() {
            connection.end(core);
        }
        for (_, spliced) in self.spliced.drain() {
            spliced.end(core);
        }
    }
}

fn mark_spliced(due: &mut Vec<u64>, id: u64, spliced: &mut Spliced) {
    if !spliced.is_due {
        spliced.is_due = true;
        due.push(id);
    }
}

fn mark(due: &mut Vec<u64>, id: u64, connection: &mut Connection) {
    if !connection.is_due {
        connection.is_due = true;
        due.push(id);
    }
}

fn refuse(core: &mut Core, packet: &Packet<'_>) {
    let ends = Ends { source: packet.destination, destination: packet.source };
    if let Some(reset) = emit::reset(ends, packet.payload) {
        core.out.payload(ends, TCP, &reset);
    }
}

/// What a host socket is watched for. Most never fill, so their room is minded only when they have.
fn interest(in_room: bool) -> EpollFlags {
    let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    flags.set(EpollFlags::EPOLLOUT, in_room);
    flags
}

fn ethertype(packet: &[u8]) -> &'static [u8] {
    if packet[0] >> 4 == 6 { &[0x86, 0xdd] } else { &[0x08, 0x00] }
}

/// A host socket that is connecting, and whether it is connected already.
fn begin_to_connect(target: SocketAddr) -> Result<(TcpStream, bool), Errno> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    bound_buffers(socket.as_fd());
    if target.ip().is_loopback() {
        let _ = send_unpaced(socket.as_fd());
    }
    let target_address = SockaddrStorage::from(target);
    let mut done = connect(socket.as_raw_fd(), &target_address);
    if done == Err(Errno::EINPROGRESS) && target.ip().is_loopback() {
        // The answer was there before the call returned; another call tells it.
        done = connect(socket.as_raw_fd(), &target_address);
    }
    let is_connected = match done {
        Ok(()) => true,
        Err(Errno::EINPROGRESS | Errno::EALREADY) => false,
        Err(errno) => return Err(errno),
    };
    Ok((socket.into(), is_connected))
}
