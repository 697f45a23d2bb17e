//! The network that the other end of the guest's card is in, where there is a kernel to be had.
//!
//! It has no addresses and forwards nothing, so its kernel drops whatever comes in. All but the
//! connections that are handed over to it: a routing rule for each makes the kernel take its
//! segments, and a filter on the packet socket keeps them from us. Nobody can be reached from there
//! but the guest, whose root may do there as it likes.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use nix::libc;
use nix::sys::socket::{Backlog, SockaddrIn, bind, connect, getsockname, listen};
use sekexe_init::netlink::{Requests, Rule};
use sekexe_init::protocol::{PEER, PEER_INDEX};

use super::frame::{ETHERTYPE_IPV4, Mac, TCP};
use super::tcp::Flow;
use crate::sys::tcp::{Progress, accept, disconnect, restore, resume, send_unpaced, set_filter};

/// Connections that may be there at once: each makes the filter longer, for all that comes.
const MOST: usize = 32;
/// The table in which every address is the kernel's own.
const TABLE: u8 = 100;

/// See the module.
#[derive(Debug)]
pub struct Outside {
    requests: OwnedFd,
    listener: OwnedFd,
    dialler: OwnedFd,
    address: Option<SockaddrIn>,
    flows: Vec<Flow>,
}

impl Outside {
    /// From what was opened there: a socket for requests, and two that are not connected.
    pub fn new(mut descriptors: impl Iterator<Item = OwnedFd>) -> Option<Box<Self>> {
        let [requests, listener, dialler] = std::array::from_fn(|_| descriptors.next());
        Some(Box::new(Self {
            requests: requests?,
            listener: listener?,
            dialler: dialler?,
            address: None,
            flows: Vec::new(),
        }))
    }

    /// Whether it would take this connection.
    pub fn has_room_for(&self, flow: Flow) -> bool {
        self.flows.len() < MOST && flow.remote.is_ipv4() && flow.guest.is_ipv4()
    }

    /// Makes the kernel the other end of a connection of the guest's.
    pub fn take(
        &mut self,
        card: BorrowedFd<'_>,
        guest: Mac,
        flow: Flow,
        progress: &Progress,
    ) -> Result<OwnedFd> {
        let address = self.prepare(flow)?;
        let socket = self.new_socket(&address)?;
        restore(socket.as_fd(), flow.remote, flow.guest, progress)?;
        let mut requests = Requests::default();
        requests.add_neighbour(PEER_INDEX, flow.guest.ip(), guest);
        requests.add_rule(&rule(&flow));
        requests.send_over(&self.requests)?;
        self.flows.push(flow);
        if let Err(errno) = self.filter(card).and_then(|()| resume(socket.as_fd())) {
            self.give_back(card, flow);
            return Err(errno.into());
        }
        Ok(socket)
    }

    /// The kernel is done with a connection.
    pub fn give_back(&mut self, card: BorrowedFd<'_>, flow: Flow) {
        self.flows.retain(|other| *other != flow);
        let mut requests = Requests::default();
        requests.remove_rule(&rule(&flow));
        let _ = requests.send_over(&self.requests);
        let _ = self.filter(card);
    }

    fn filter(&self, card: BorrowedFd<'_>) -> nix::Result<()> {
        set_filter(card, &filter(&self.flows))
    }

    fn prepare(&mut self, flow: Flow) -> Result<SockaddrIn> {
        if let Some(address) = self.address {
            return Ok(address);
        }
        let mut requests = Requests::default();
        requests.add_link_route(PEER_INDEX, flow.guest.ip());
        requests.add_local_route(flow.guest.ip(), TABLE);
        requests.send_over(&self.requests)?;
        let anywhere = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
        // Before the first connection: what is paced once stays so.
        send_unpaced(self.listener.as_fd())?;
        bind(self.listener.as_raw_fd(), &anywhere)?;
        listen(&self.listener, Backlog::new(1)?)?;
        let address = getsockname(self.listener.as_raw_fd())?;
        self.address = Some(address);
        Ok(address)
    }

    /// A new socket of that network. Where sockets are made we cannot be, but one that is accepted
    /// is new once it is disconnected.
    fn new_socket(&self, address: &SockaddrIn) -> nix::Result<OwnedFd> {
        connect(self.dialler.as_raw_fd(), address)?;
        let socket = accept(self.listener.as_fd())?;
        disconnect(socket.as_fd())?;
        disconnect(self.dialler.as_fd())?;
        Ok(socket)
    }
}

fn rule(flow: &Flow) -> Rule<'static> {
    Rule { at: PEER, from: flow.guest, to: flow.remote, table: TABLE }
}

/// Lets everything through but the segments of these connections.
fn filter(flows: &[Flow]) -> Vec<libc::sock_filter> {
    const ALL: u32 = u32::MAX;
    /// Where an Ethernet frame has what is compared.
    const ETHERTYPE: u32 = 12;
    const IP: u32 = 14;
    const FRAGMENT: u32 = IP + 6;
    const PROTOCOL: u32 = IP + 9;
    const SOURCE: u32 = IP + 12;
    const DESTINATION: u32 = IP + 16;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let (word, half, byte) =
        (libc::BPF_LD | libc::BPF_W, libc::BPF_LD | libc::BPF_H, libc::BPF_LD | libc::BPF_B);
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let any = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let pass = op(libc::BPF_RET | libc::BPF_K, ALL, 0, 0);
    let Some(first) = flows.first() else { return vec![pass] };
    let v4 = |address: SocketAddr| match address {
        SocketAddr::V4(address) => u32::from(*address.ip()),
        SocketAddr::V6(_) => 0,
    };
    let mut program = vec![
        op(half | libc::BPF_ABS, ETHERTYPE, 0, 0),
        op(equal, ETHERTYPE_IPV4.into(), 1, 0),
        pass,
        op(byte | libc::BPF_ABS, PROTOCOL, 0, 0),
        op(equal, TCP.into(), 1, 0),
        pass,
        op(half | libc::BPF_ABS, FRAGMENT, 0, 0),
        op(any, 0x3fff, 0, 1),
        pass,
        op(word | libc::BPF_ABS, SOURCE, 0, 0),
        op(equal, v4(first.guest), 1, 0),
        pass,
        op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, IP, 0, 0),
    ];
    for flow in flows {
        let ports = u32::from(flow.guest.port()) << 16 | u32::from(flow.remote.port());
        program.extend([
            op(word | libc::BPF_ABS, DESTINATION, 0, 0),
            op(equal, v4(flow.remote), 0, 3),
            op(word | libc::BPF_IND, IP, 0, 0),
            op(equal, ports, 0, 1),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ]);
    }
    program.push(pass);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::emit::{self, Ends};

    /// What the kernel would do with the filter: whether it lets a frame through.
    fn lets_through(filter: &[libc::sock_filter], frame: &[u8]) -> bool {
        let (mut at, mut loaded, mut index) = (0, 0_u32, 0_u32);
        loop {
            let step = filter[at];
            at += 1;
            let (code, k) = (u32::from(step.code), step.k);
            let bytes = |from: u32, count: usize| {
                let from = from as usize;
                frame[from..from + count].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
            };
            match code {
                0x30 => loaded = bytes(k, 1),
                0x28 => loaded = bytes(k, 2),
                0x20 => loaded = bytes(k, 4),
                0x40 => loaded = bytes(index + k, 4),
                0xb1 => index = (bytes(k, 1) & 0xf) * 4,
                0x15 => at += usize::from(if loaded == k { step.jt } else { step.jf }),
                0x45 => at += usize::from(if loaded & k != 0 { step.jt } else { step.jf }),
                0x06 => return k != 0,
                other => panic!("an unknown instruction: {other:#x}"),
            }
        }
    }

    fn frame(flow: Flow, protocol: u8) -> Vec<u8> {
        let ends = Ends { source: flow.guest.ip(), destination: flow.remote.ip() };
        let mut payload = [flow.guest.port().to_be_bytes(), flow.remote.port().to_be_bytes()].concat();
        payload.resize(20, 0);
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend(emit::packets(ends, protocol, &payload, 1500, 0).next().unwrap());
        frame
    }

    #[test]
    fn exactly_the_segments_of_these_connections_are_left_out() {
        let flow = |port, remote: &str| Flow {
            guest: SocketAddr::from(([10, 0, 2, 15], port)),
            remote: remote.parse().unwrap(),
        };
        let flows: Vec<Flow> = (0..MOST as u16).map(|n| flow(4000 + n, "192.0.2.1:443")).collect();
        let program = filter(&flows);
        for flow in &flows {
            assert!(!lets_through(&program, &frame(*flow, TCP)));
            assert!(lets_through(&program, &frame(*flow, 17)), "another protocol");
            assert!(lets_through(&filter(&[]), &frame(*flow, TCP)));
        }
        for other in ["192.0.2.1:80", "192.0.2.2:443"] {
            assert!(lets_through(&program, &frame(flow(4000, other), TCP)), "{other}");
        }
        assert!(lets_through(&program, &frame(flow(3999, "192.0.2.1:443"), TCP)));
    }
}
