//! Datagrams: each pair of guest port and destination is a flow with a connected host socket, so
//! that only the destination can answer and its refusals are heard. Flows that nobody uses go.
//!
//! A published port is a host socket that many peers talk to; each of them appears to the guest
//! under a port of its own at the gateway's address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;

use super::core::{Core, Owner, Route};
use super::dns::Dns;
use super::emit::{self, Ends};
use super::frame::{Packet, UDP};
use super::icmp::{self, Trouble};
use super::log::{Fate, Protocol};

/// Flows at once; the one that was idle longest gives way.
const MOST: usize = 1024;
/// How long a flow is kept after its last datagram (RFC 4787 asks for two minutes).
const IDLE: Duration = Duration::from_secs(180);
/// Datagrams taken from one socket before others get their turn.
const TURN: usize = 32;
/// First port that a peer of a published port may appear under.
const FIRST_PEER_PORT: u16 = 20_000;

/// See the module.
#[derive(Default)]
pub struct Udp {
    flows: HashMap<u64, Flow>,
    by_ends: HashMap<(SocketAddr, SocketAddr), u64>,
    listeners: HashMap<u64, (UdpSocket, u16)>,
    by_peer: HashMap<(u64, SocketAddr), u64>,
    next_peer_port: u16,
}

struct Flow {
    guest: SocketAddr,
    /// The other end as the guest sees it.
    remote: SocketAddr,
    exit: Exit,
    last: Instant,
    bytes: (u64, u64),
}

enum Exit {
    /// To the destination.
    Socket(UdpSocket),
    /// Back to who wrote to a published port.
    Peer { listener: u64, peer: SocketAddr },
}

/// A socket that hears `to` alone.
pub fn host_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}

impl Udp {
    /// Publishes a host socket as a port of the guest's.
    pub fn publish(&mut self, core: &mut Core, socket: UdpSocket, port: u16) -> nix::Result<()> {
        let id = core.new_id();
        core.watch(&socket, Owner::UdpListener, id, EpollFlags::EPOLLIN)?;
        self.listeners.insert(id, (socket, port));
        Ok(())
    }

    /// Takes a datagram of the guest's.
    pub fn on_packet(&mut self, core: &mut Core, dns: &mut Dns, packet: &Packet<'_>) {
        let Some((header, rest)) = packet.payload.split_first_chunk::<8>() else { return };
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let Some(payload) = usize::from(word(4)).checked_sub(8).and_then(|length| rest.get(..length)) else {
            return;
        };
        let guest = SocketAddr::new(packet.source, word(0));
        let remote = SocketAddr::new(packet.destination, word(2));
        let id = match self.by_ends.get(&(guest, remote)) {
            Some(id) => *id,
            None => match core.route(remote) {
                Route::Dns => return dns.ask(core, guest, remote, payload),
                Route::Denied(reason) => {
                    let names = core.names.of(remote.ip());
                    core.log.add(Protocol::Udp, remote, names, Fate::Denied(reason), (0, 0));
                    return icmp::report(core, packet, Trouble::Prohibited);
                }
                Route::To(targets) => match self.open(core, guest, remote, targets[0]) {
                    Ok(id) => id,
                    Err(error) => return fail(core, packet, remote, &error),
                },
            },
        };
        self.send_out(core, id, packet, payload);
    }

    fn open(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        remote: SocketAddr,
        target: SocketAddr,
    ) -> io::Result<u64> {
        let socket = host_socket(target)?;
        let id = core.new_id();
        core.watch(&socket, Owner::Udp, id, EpollFlags::EPOLLIN)?;
        self.insert(core, id, guest, remote, Exit::Socket(socket));
        Ok(id)
    }

    fn insert(&mut self, core: &mut Core, id: u64, guest: SocketAddr, remote: SocketAddr, exit: Exit) {
        if self.flows.len() >= MOST
            && let Some((&oldest, _)) = self.flows.iter().min_by_key(|(_, flow)| flow.last)
        {
            self.forget(core, oldest);
        }
        self.by_ends.insert((guest, remote), id);
        self.flows.insert(id, Flow { guest, remote, exit, last: core.now, bytes: (0, 0) });
    }

    fn send_out(&mut self, core: &mut Core, id: u64, packet: &Packet<'_>, payload: &[u8]) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.last = core.now;
        let sent = match &flow.exit {
            Exit::Socket(socket) => socket.send(payload).or_else(|error| match error.raw_os_error() {
                // What an earlier datagram met, which the guest is told below; this one still goes.
                Some(nix::libc::ECONNREFUSED) => socket.send(payload),
                _ => Err(error),
            }),
            Exit::Peer { listener, peer } => match self.listeners.get(listener) {
                Some((socket, _)) => socket.send_to(payload, peer),
                None => return,
            },
        };
        match sent {
            Ok(sent) => flow.bytes.0 += sent as u64,
            Err(error) => {
                let remote = flow.remote;
                fail(core, packet, remote, &error);
            }
        }
    }

    /// Something came for a flow.
    pub fn on_event(&mut self, core: &mut Core, id: u64, buffer: &mut [u8]) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Exit::Socket(socket) = &flow.exit else { return };
        for _ in 0..TURN {
            match socket.recv(buffer) {
                Ok(length) => {
                    flow.last = core.now;
                    flow.bytes.1 += length as u64;
                    deliver(core, flow.remote, flow.guest, &buffer[..length]);
                }
                Err(error) => {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    if let Some(trouble) = Trouble::of(errno) {
                        tell(core, flow, trouble);
                    }
                    return;
                }
            }
        }
    }

    /// Something came for a published port.
    pub fn on_listener(&mut self, core: &mut Core, id: u64, buffer: &mut [u8]) {
        for _ in 0..TURN {
            let Some((socket, port)) = self.listeners.get(&id) else { return };
            // An error is what became of an answer of ours.
            let Ok((length, peer)) = socket.recv_from(buffer) else { return };
            let port = *port;
            let flow = self.by_peer.get(&(id, peer)).copied();
            let flow = flow.or_else(|| self.admit(core, id, peer, port));
            if let Some(flow) = flow.and_then(|flow| self.flows.get_mut(&flow)) {
                flow.last = core.now;
                flow.bytes.1 += length as u64;
                deliver(core, flow.remote, flow.guest, &buffer[..length]);
            }
        }
    }

    fn admit(&mut self, core: &mut Core, listener: u64, peer: SocketAddr, port: u16) -> Option<u64> {
        let (guest, gateway) = core.addresses.guest_and_gateway(Ipv4Addr::UNSPECIFIED.into());
        let guest = SocketAddr::new(guest, port);
        let remote = (0..MOST).find_map(|_| {
            self.next_peer_port = self.next_peer_port.wrapping_add(1).max(FIRST_PEER_PORT);
            let remote = SocketAddr::new(gateway, self.next_peer_port);
            (!self.by_ends.contains_key(&(guest, remote))).then_some(remote)
        })?;
        let id = core.new_id();
        self.insert(core, id, guest, remote, Exit::Peer { listener, peer });
        self.by_peer.insert((listener, peer), id);
        Some(id)
    }

    /// Forgets idle flows.
    pub fn tick(&mut self, core: &mut Core) {
        let idle = |flow: &Flow| core.now - flow.last >= IDLE;
        let idle: Vec<u64> = self.flows.iter().filter(|(_, flow)| idle(flow)).map(|(id, _)| *id).collect();
        idle.into_iter().for_each(|id| self.forget(core, id));
    }

    /// Everything goes into the log.
    pub fn finish(&mut self, core: &mut Core) {
        let all: Vec<u64> = self.flows.keys().copied().collect();
        all.into_iter().for_each(|id| self.forget(core, id));
    }

    fn forget(&mut self, core: &mut Core, id: u64) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.by_ends.remove(&(flow.guest, flow.remote));
        let protocol = match flow.exit {
            Exit::Socket(_) => Protocol::Udp,
            Exit::Peer { listener, peer } => {
                self.by_peer.remove(&(listener, peer));
                Protocol::PublishedUdp
            }
        };
        core.log.add(protocol, flow.remote, core.names.of(flow.remote.ip()), Fate::Carried, flow.bytes);
    }
}

fn deliver(core: &mut Core, remote: SocketAddr, guest: SocketAddr, payload: &[u8]) {
    let ends = Ends { source: remote.ip(), destination: guest.ip() };
    let datagram = emit::datagram(ends, (remote.port(), guest.port()), payload);
    core.out.payload(ends, UDP, &datagram);
}

/// A datagram could not be sent.
fn fail(core: &mut Core, packet: &Packet<'_>, remote: SocketAddr, error: &io::Error) {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let trouble = match errno {
        Errno::EMSGSIZE => Some(Trouble::TooBig(core.out.mtu() as u16)),
        errno => Trouble::of(errno),
    };
    let Some(trouble) = trouble else { return };
    core.log.add(
        Protocol::Udp,
        remote,
        core.names.of(remote.ip()),
        Fate::Failed(errno.desc().into()),
        (0, 0),
    );
    icmp::report(core, packet, trouble);
}

/// Tells the guest what became of an earlier datagram, of which only the ends are known any more.
fn tell(core: &mut Core, flow: &Flow, trouble: Trouble) {
    let ends = Ends { source: flow.guest.ip(), destination: flow.remote.ip() };
    let datagram = emit::datagram(ends, (flow.guest.port(), flow.remote.port()), &[]);
    for whole in emit::packets(ends, UDP, &datagram, core.out.mtu(), 0) {
        let packet = Packet {
            source: ends.source,
            destination: ends.destination,
            protocol: UDP,
            payload: &datagram,
            whole: &whole,
            fragment: None,
        };
        icmp::report(core, &packet, trouble);
    }
}
