//! Echo requests. The gateway and the name server answer; what is meant for others goes through the
//! host's unprivileged ping sockets, where `net.ipv4.ping_group_range` has us in it. Elsewhere there
//! is no answer, as behind many firewalls.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send, socket,
};

use super::addresses::Role;
use super::core::{Core, Owner};
use super::emit::Ends;
use super::frame::Packet;
use super::icmp::{self, Trouble};
use super::log::{Fate, Protocol};

const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

/// Conversations at once.
const MOST: usize = 64;
/// How long one is kept after its last request.
const IDLE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub struct Ping {
    conversations: HashMap<u64, Conversation>,
    by_ends: HashMap<(IpAddr, IpAddr, [u8; 2]), u64>,
}

struct Conversation {
    guest: IpAddr,
    remote: IpAddr,
    /// The guest's number for it; the host's kernel has one of its own.
    ident: [u8; 2],
    socket: OwnedFd,
    last: Instant,
}

impl Ping {
    /// Takes an ICMP message of the guest's.
    pub fn on_packet(&mut self, core: &mut Core, packet: &Packet<'_>) {
        let (request, reply) = match packet.source {
            IpAddr::V4(_) => (REQUEST_V4, REPLY_V4),
            IpAddr::V6(_) => (REQUEST_V6, REPLY_V6),
        };
        let is_request = packet.payload.len() >= 8 && packet.payload[..2] == [request, 0];
        if !is_request {
            return;
        }
        match core.addresses.role(packet.destination) {
            Role::Gateway | Role::Dns => {
                let ends = Ends { source: packet.destination, destination: packet.source };
                let mut message = packet.payload.to_vec();
                message[0] = reply;
                icmp::send(core, ends, message);
            }
            Role::Outside => self.send_out(core, packet),
            Role::Nobody => icmp::report(core, packet, Trouble::Host),
            Role::Guest => {}
        }
    }

    fn send_out(&mut self, core: &mut Core, packet: &Packet<'_>) {
        let names = core.names.of(packet.destination);
        if let Err(reason) = core.policy.judge(packet.destination, None, names) {
            let to = SocketAddr::new(packet.destination, 0);
            core.log.add(Protocol::Ping, to, names, Fate::Denied(reason), (0, 0));
            return icmp::report(core, packet, Trouble::Prohibited);
        }
        let Some(id) = self.conversation(core, packet) else { return };
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.last = core.now;
        let sent = send(conversation.socket.as_raw_fd(), packet.payload, MsgFlags::MSG_DONTWAIT);
        if let Some(trouble) = sent.err().and_then(Trouble::of) {
            icmp::report(core, packet, trouble);
        }
    }

    fn conversation(&mut self, core: &mut Core, packet: &Packet<'_>) -> Option<u64> {
        let ident = [packet.payload[4], packet.payload[5]];
        let ends = (packet.source, packet.destination, ident);
        if let Some(id) = self.by_ends.get(&ends) {
            return Some(*id);
        }
        if self.conversations.len() >= MOST {
            return None;
        }
        let socket = ping_socket(packet.destination).ok()?;
        let id = core.new_id();
        core.watch(&socket, Owner::Ping, id, EpollFlags::EPOLLIN).ok()?;
        let names = core.names.of(packet.destination);
        core.log.add(Protocol::Ping, SocketAddr::new(packet.destination, 0), names, Fate::Carried, (0, 0));
        let (guest, remote) = (packet.source, packet.destination);
        self.conversations.insert(id, Conversation { guest, remote, ident, socket, last: core.now });
        self.by_ends.insert(ends, id);
        Some(id)
    }

    /// An answer came.
    pub fn on_event(&mut self, core: &mut Core, id: u64, buffer: &mut [u8]) {
        let Some(conversation) = self.conversations.get(&id) else { return };
        let socket = conversation.socket.as_raw_fd();
        while let Ok(length) = recv(socket, buffer, MsgFlags::MSG_DONTWAIT) {
            if length >= 8 && matches!(buffer[0], REPLY_V4 | REPLY_V6) {
                let mut message = buffer[..length].to_vec();
                message[4..6].copy_from_slice(&conversation.ident);
                let ends = Ends { source: conversation.remote, destination: conversation.guest };
                icmp::send(core, ends, message);
            }
        }
    }

    /// Forgets idle conversations.
    pub fn tick(&mut self, now: Instant) {
        self.conversations.retain(|_, conversation| now - conversation.last < IDLE);
        self.by_ends.retain(|_, id| self.conversations.contains_key(id));
    }
}

fn ping_socket(remote: IpAddr) -> Result<OwnedFd, Errno> {
    let (family, protocol) = match remote {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Datagram, flags, protocol)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(remote, 0)))?;
    Ok(socket)
}
