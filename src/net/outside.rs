//! The network that the other end of the guest's card is in, where there is a kernel to be had.
//!
//! It has no addresses and forwards nothing, so its kernel drops whatever comes in (IPv6 would answer
//! that there is no way, and has one that leads nowhere). All but the connections that are handed over to
//! it: a routing rule for each makes the kernel take its segments, and a filter on the packet socket keeps
//! them from us. Nobody can be reached from there but the guest, whose root may do there as it likes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, getsockname, listen};
use sekexe_init::netlink::{Requests, Rule};
use sekexe_init::protocol::{PEER, PEER_INDEX};

use super::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, TCP};
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
    v4: Source,
    v6: Option<Source>,
    flows: Vec<Flow>,
}

/// Where new sockets of one family come from. Where sockets are made we cannot be, but one that is
/// accepted is new once it is disconnected.
#[derive(Debug)]
struct Source {
    listener: OwnedFd,
    dialler: OwnedFd,
    /// Where the listener is, once it was needed.
    address: Option<SockaddrStorage>,
}

impl Outside {
    /// From what was opened there: a socket for requests, and two of each family that are not connected,
    /// of IPv4 first.
    pub fn new(mut descriptors: impl Iterator<Item = OwnedFd>) -> Option<Box<Self>> {
        let requests = descriptors.next()?;
        let mut source = || Source::new(&mut descriptors);
        Some(Box::new(Self { requests, v4: source()?, v6: source(), flows: Vec::new() }))
    }

    /// Whether it would take this connection.
    pub fn has_room_for(&self, flow: Flow) -> bool {
        self.flows.len() < MOST && (flow.guest.is_ipv4() || self.v6.is_some())
    }

    /// Makes the kernel the other end of a connection of the guest's.
    pub fn take(
        &mut self,
        card: BorrowedFd<'_>,
        guest: Mac,
        flow: Flow,
        progress: &Progress,
    ) -> Result<OwnedFd> {
        let socket = self.new_socket(flow)?;
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

    fn new_socket(&mut self, flow: Flow) -> Result<OwnedFd> {
        let source = if flow.guest.is_ipv4() { Some(&mut self.v4) } else { self.v6.as_mut() };
        let source = source.context("no sockets of this family")?;
        if source.address.is_none() {
            let mut requests = Requests::default();
            requests.add_link_route(PEER_INDEX, flow.guest.ip());
            requests.add_local_route(flow.guest.ip(), TABLE);
            requests.send_over(&self.requests)?;
        }
        Ok(source.next(flow.guest.is_ipv4())?)
    }
}

impl Source {
    fn new(descriptors: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        Some(Self { listener: descriptors.next()?, dialler: descriptors.next()?, address: None })
    }

    fn next(&mut self, is_v4: bool) -> nix::Result<OwnedFd> {
        let address = match self.address {
            Some(address) => address,
            None => self.listen(is_v4)?,
        };
        connect(self.dialler.as_raw_fd(), &address)?;
        let socket = accept(self.listener.as_fd())?;
        disconnect(socket.as_fd())?;
        disconnect(self.dialler.as_fd())?;
        Ok(socket)
    }

    fn listen(&mut self, is_v4: bool) -> nix::Result<SockaddrStorage> {
        let here: IpAddr = if is_v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        // Before the first connection: what is paced once stays so.
        send_unpaced(self.listener.as_fd())?;
        bind(self.listener.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(here, 0)))?;
        listen(&self.listener, Backlog::new(1)?)?;
        let address = getsockname(self.listener.as_raw_fd())?;
        Ok(*self.address.insert(address))
    }
}

fn rule(flow: &Flow) -> Rule<'static> {
    Rule { at: PEER, from: flow.guest, to: flow.remote, table: TABLE }
}

/// Lets everything through but the segments of these connections.
fn filter(flows: &[Flow]) -> Vec<libc::sock_filter> {
    const ETHERTYPE: u32 = 12;
    let of = |is_v4| flows.iter().filter(|flow| flow.guest.is_ipv4() == is_v4).collect::<Vec<_>>();
    let v4 = filter_v4(&of(true));
    let begin = [op(HALF, ETHERTYPE, 0, 0), op(EQUAL, ETHERTYPE_IPV4.into(), 0, v4.len() as u8)];
    let between = [op(EQUAL, ETHERTYPE_IPV6.into(), 1, 0), PASS];
    [&begin[..], &v4, &between, &filter_v6(&of(false))].concat()
}

/// Instructions for each connection of IPv4, after so many.
const EACH_V4: usize = 5;
const FIRST_V4: usize = 11;
/// A jump has to lead over all of them.
const _: () = assert!(FIRST_V4 + EACH_V4 * MOST < u8::MAX as usize);

const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const PASS: libc::sock_filter = op(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0);
const DROP: libc::sock_filter = op(libc::BPF_RET | libc::BPF_K, 0, 0, 0);
/// Where an Ethernet frame has its IP header.
const IP: u32 = ETHERNET_HEADER as u32;

/// An instruction, and where it goes on if it is a jump that is taken or not.
const fn op(code: u32, k: u32, taken: u8, not_taken: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: taken, jf: not_taken, k }
}

/// The two ports of a segment of the guest's.
fn ports(flow: &Flow) -> u32 {
    u32::from(flow.guest.port()) << 16 | u32::from(flow.remote.port())
}

/// An address as numbers that the filter can compare.
fn words(address: IpAddr) -> Vec<u32> {
    match address {
        IpAddr::V4(address) => vec![address.into()],
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (0..4).map(|word| (bits >> (96 - 32 * word)) as u32).collect()
        }
    }
}

fn filter_v4(flows: &[&Flow]) -> Vec<libc::sock_filter> {
    const FRAGMENT: u32 = IP + 6;
    const PROTOCOL: u32 = IP + 9;
    const SOURCE: u32 = IP + 12;
    const DESTINATION: u32 = IP + 16;
    let Some(first) = flows.first() else { return vec![PASS] };
    let mut program = vec![
        op(BYTE, PROTOCOL, 0, 0),
        op(EQUAL, TCP.into(), 1, 0),
        PASS,
        op(HALF, FRAGMENT, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0x3fff, 0, 1),
        PASS,
        op(WORD, SOURCE, 0, 0),
        op(EQUAL, words(first.guest.ip())[0], 1, 0),
        PASS,
        op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, IP, 0, 0),
    ];
    for flow in flows {
        program.extend([
            op(WORD, DESTINATION, 0, 0),
            op(EQUAL, words(flow.remote.ip())[0], 0, 3),
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, IP, 0, 0),
            op(EQUAL, ports(flow), 0, 1),
            DROP,
        ]);
    }
    program.push(PASS);
    program
}

/// Segments behind extension headers, or in fragments, are none of theirs.
fn filter_v6(flows: &[&Flow]) -> Vec<libc::sock_filter> {
    const NEXT_HEADER: u32 = IP + 6;
    const SOURCE: u32 = IP + 8;
    const DESTINATION: u32 = IP + 24;
    const PORTS: u32 = IP + 40;
    let Some(first) = flows.first() else { return vec![PASS] };
    let mut program = vec![op(BYTE, NEXT_HEADER, 0, 0), op(EQUAL, TCP.into(), 1, 0), PASS];
    for (at, word) in (SOURCE..).step_by(4).zip(words(first.guest.ip())) {
        program.extend([op(WORD, at, 0, 0), op(EQUAL, word, 1, 0), PASS]);
    }
    for flow in flows {
        let parts = words(flow.remote.ip()).into_iter().chain([ports(flow)]);
        // Each part that is another one leads over the rest.
        for ((at, part), over) in
            (DESTINATION..PORTS).step_by(4).chain([PORTS]).zip(parts).zip([9, 7, 5, 3, 1])
        {
            program.extend([op(WORD, at, 0, 0), op(EQUAL, part, 0, over)]);
        }
        program.push(DROP);
    }
    program.push(PASS);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::emit;
    use crate::net::frame::ETHERTYPE_ARP;

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
        let mut payload = [flow.guest.port().to_be_bytes(), flow.remote.port().to_be_bytes()].concat();
        payload.resize(20, 0);
        let ethertype = if flow.guest.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let mut frame = vec![0; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(emit::packets(flow.outward(), protocol, &payload, 1500, 0).next().unwrap());
        frame
    }

    #[test]
    fn exactly_the_segments_of_these_connections_are_left_out() {
        let guests = ["10.0.2.15", "fd73::15"].map(|address| address.parse::<IpAddr>().unwrap());
        let flow = |port, remote: &str| {
            let remote: SocketAddr = remote.parse().unwrap();
            let guest = guests[usize::from(remote.is_ipv6())];
            Flow { guest: SocketAddr::new(guest, port), remote }
        };
        const V4: &str = "192.0.2.1:443";
        const V6: &str = "[2001:db8::1:2:3]:443";
        let (most, half) = (MOST as u16, MOST as u16 / 2);
        for (v4, v6) in [(most, 0), (0, most), (half, half)] {
            let mut flows: Vec<Flow> = (0..v4).map(|n| flow(4000 + n, V4)).collect();
            flows.extend((0..v6).map(|n| flow(4000 + n, V6)));
            let program = filter(&flows);
            for flow in &flows {
                assert!(!lets_through(&program, &frame(*flow, TCP)));
                assert!(lets_through(&program, &frame(*flow, 17)), "another protocol");
                assert!(lets_through(&filter(&[]), &frame(*flow, TCP)));
            }
            let others = [
                "192.0.2.1:80",
                "192.0.2.2:443",
                "[2001:db8::1:2:3]:80",
                "[2001:db8::1:2:4]:443",
                "[2001:db8::1:3:3]:443",
                "[2001:db8:1::1:2:3]:443",
                "[2001:db9::1:2:3]:443",
            ];
            for other in others {
                assert!(lets_through(&program, &frame(flow(4000, other), TCP)), "{other}");
            }
            for remote in [V4, V6] {
                assert!(lets_through(&program, &frame(flow(3999, remote), TCP)));
                let mut forged = flow(4000, remote);
                forged.guest.set_ip(if remote == V4 {
                    [10, 0, 2, 16].into()
                } else {
                    "fd73::16".parse().unwrap()
                });
                assert!(lets_through(&program, &frame(forged, TCP)));
            }
            let mut arp = vec![0; 42];
            arp[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
            assert!(lets_through(&program, &arp));
        }
    }
}
