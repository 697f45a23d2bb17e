use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::*;
use crate::net::addresses::{Addresses, GUEST_MAC, HOST_MAC};
use crate::net::emit::{self, Ends};
use crate::net::frame::ETHERTYPE_IPV4;
use crate::net::{CardKind, Policy};

/// A guest that writes its segments by hand.
struct Guest {
    card: OwnedFd,
    stack: Stack,
    ends: Ends,
    ports: (u16, u16),
    sequence: u32,
    acknowledged: u32,
    window: u16,
}

impl Guest {
    fn new(host_port: u16) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let addresses = Addresses::choose(&[]);
        let card = Card { fd: theirs, kind: CardKind::Socket, offload: false, mtu: 1500, outside: None };
        let settings = Settings {
            addresses,
            policy: Policy::default(),
            host_loopback: BTreeSet::from([host_port]),
            published: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            log_everything: true,
        };
        let ends = Ends { source: addresses.guest_v4().into(), destination: addresses.gateway_v4().into() };
        let stack = Stack::new(card, settings).unwrap();
        Self {
            card: ours,
            stack,
            ends,
            ports: (4000, host_port),
            sequence: 1,
            acknowledged: 0,
            window: u16::MAX,
        }
    }

    fn send(&mut self, flags: u8, data: &[u8]) {
        let mut segment = Vec::new();
        segment.extend(self.ports.0.to_be_bytes());
        segment.extend(self.ports.1.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([0x50, flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend_from_slice(data);
        let frame = self.frame(TCP, &segment);
        self.stack.take_frame(&frame);
        self.sequence += data.len() as u32 + u32::from(flags & 2 != 0);
    }

    fn frame(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = [&HOST_MAC[..], &GUEST_MAC, &ETHERTYPE_IPV4.to_be_bytes()].concat();
        frame.extend(emit::packets(self.ends, protocol, payload, 1500, 0).next().unwrap());
        frame
    }

    /// One that has connected to the host, and the host's end.
    fn connected(now: Instant) -> (Self, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = Self::new(listener.local_addr().unwrap().port());
        guest.send(2, b"");
        assert_eq!(guest.receive(now).0, 0x12, "accepted");
        guest.send(0x10, b"");
        (guest, listener.accept().unwrap().0)
    }

    /// The flags and the data of the next segment for the guest.
    fn receive(&mut self, now: Instant) -> (u8, Vec<u8>) {
        let mut buffer = [0; 2000];
        for _ in 0..1000 {
            self.stack.wait(EpollTimeout::from(1u8)).unwrap();
            self.stack.turn(now).unwrap();
            let Ok(length) = recv(self.card.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) else {
                continue;
            };
            let Some(Frame::Ip(_, packet)) = frame::parse(&buffer[..length]) else { continue };
            let segment = packet.payload;
            let data = segment[usize::from(segment[12] >> 4) * 4..].to_vec();
            let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
            self.acknowledged = sequence + data.len() as u32 + u32::from(segment[13] & 2 != 0);
            return (segment[13], data);
        }
        panic!("nothing came for the guest");
    }
}

#[test]
fn a_connection_that_was_idle_for_half_an_hour_goes_on() {
    let mut now = Instant::now();
    let (mut guest, mut host) = Guest::connected(now);
    guest.send(0x10, b"before");
    assert_eq!(guest.receive(now).0, 0x10);
    let mut read = [0; 6];
    host.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"before");
    for _ in 0..31 {
        now += Duration::from_secs(60);
        guest.stack.turn(now).unwrap();
    }
    guest.send(0x10, b"behind");
    guest.stack.turn(now).unwrap();
    host.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"behind");
    assert_eq!(guest.receive(now).0, 0x10);
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive(now).1, b"answer");
}

#[test]
fn a_guest_that_sends_and_never_looks_does_not_fill_memory() {
    let now = Instant::now();
    let (mut guest, _host) = Guest::connected(now);
    for _ in 0..2000 {
        // Not what comes next, so each is answered.
        guest.sequence += 100_000;
        guest.send(0x10, &[7; 1400]);
        guest.stack.turn(now).unwrap();
    }
    assert!(guest.stack.core.out.waiting() <= 256, "{} frames", guest.stack.core.out.waiting());
}

#[test]
fn a_slow_reader_gets_all_that_came_before_both_sides_were_done() {
    let now = Instant::now();
    let (mut guest, mut host) = Guest::connected(now);
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive(now).0 & 1, 1, "the host's end");
    guest.acknowledged += 1;
    let mut sent = 0;
    // The host's socket takes some, until it is full.
    while guest.stack.tcp.unsent() == 0 {
        guest.send(0x10, &[7; 1400]);
        guest.stack.turn(now).unwrap();
        while recv(guest.card.as_raw_fd(), &mut [0; 2000], MsgFlags::MSG_DONTWAIT).is_ok() {}
        sent += 1400;
    }
    guest.send(0x11, b"");
    for seconds in [0, 1, 11, 60] {
        guest.stack.turn(now + Duration::from_secs(seconds)).unwrap();
    }
    host.set_nonblocking(true).unwrap();
    let mut read = Vec::new();
    for _ in 0..1000 {
        guest.stack.wait(EpollTimeout::from(1u8)).unwrap();
        guest.stack.turn(now + Duration::from_secs(61)).unwrap();
        if host.read_to_end(&mut read).is_ok() {
            break;
        }
    }
    assert_eq!(read.len(), sent);
    assert_eq!(guest.stack.tcp.unsent(), 0);
}

#[test]
fn what_a_guest_short_of_memory_has_lost_is_sent_again() {
    let now = Instant::now();
    let (mut guest, mut host) = Guest::connected(now);
    host.write_all(&[7; 4000]).unwrap();
    let first = guest.receive(now).1;
    let (has, mut lost) = (guest.acknowledged, Vec::new());
    while first.len() + lost.len() < 4000 {
        lost.extend(guest.receive(now).1);
    }
    guest.acknowledged = has;
    for window in [0, u16::MAX] {
        guest.window = window;
        guest.send(0x10, b"");
    }
    let again = guest.receive(now).1;
    assert!(!again.is_empty() && lost.starts_with(&again), "{} bytes", again.len());
}

#[test]
fn what_the_guest_sent_last_goes_on_before_the_network_ends() {
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let guest = Guest::new(host.local_addr().unwrap().port());
    let datagram = emit::datagram(guest.ends, guest.ports, b"last");
    send(guest.card.as_raw_fd(), &guest.frame(UDP, &datagram), MsgFlags::empty()).unwrap();
    drop(guest.card);
    let stop = EventFd::from_value(1).unwrap();
    let record = guest.stack.run(&stop).unwrap();
    let mut read = [0; 8];
    assert_eq!(host.recv(&mut read).unwrap(), 4);
    assert_eq!((&read[..4], record.unsent_bytes), (&b"last"[..], 0));
}

#[test]
fn a_refused_connection_leaves_nothing_but_a_line_in_the_log() {
    let closed: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut guest = Guest::new(closed.port());
    guest.send(2, b"");
    assert_eq!(guest.receive(Instant::now()).0, 0x14, "refused");
    let record = guest.stack.finish();
    assert_eq!((record.contacts.len(), record.contacts[0].times), (1, 1));
}
