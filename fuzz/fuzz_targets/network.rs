//! Whatever a guest sends, in whatever order, its network neither fails nor grows without bound.
//!
//! One stack lives through all inputs, so that the state that one leaves meets the next. An input is
//! a row of frames: some as they are, most with headers that get them past the first checks. Nothing
//! leaves this machine: the policy denies everything but one port of the loopback, where a listener
//! of ours accepts, sends a little and closes.
#![no_main]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use sekexe_ci::net::policy::Policy;
use sekexe_ci::net::{Addresses, Card, CardKind, Inbox, Settings, Stack};

const MTU: usize = 1500;
/// Most resident memory of a run, sanitizer included, in KiB.
const MOST_MEMORY: u64 = 1 << 20;

struct World {
    stack: Stack,
    inbox: Inbox,
    guest: OwnedFd,
    listener: TcpListener,
    addresses: Addresses,
    port: u16,
    now: Instant,
    inputs: u64,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

impl World {
    fn new() -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (guest, card) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair of sockets");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let port = listener.local_addr().expect("its port").port();
        // With IPv6.
        let addresses = Addresses::choose(&["2001:db8::1".parse().expect("an address")]);
        let everything = ["0.0.0.0/0", "::/0"].map(|range| range.parse().expect("a range"));
        let settings = Settings {
            addresses,
            policy: Policy { allow: vec![], deny: everything.into() },
            host_loopback: BTreeSet::from([port]),
            published: vec![],
            resolv_conf: "/nowhere".into(),
            log_everything: true,
        };
        let card = Card { fd: card, kind: CardKind::Socket, offload: false, mtu: MTU, outside: None };
        let stack = Stack::new(card, settings).expect("a stack");
        Self {
            stack,
            inbox: Inbox::default(),
            guest,
            listener,
            addresses,
            port,
            now: Instant::now(),
            inputs: 0,
        }
    }

    fn feed(&mut self, input: &[u8]) {
        let mut rest = input;
        while let [kind, length, behind @ ..] = rest {
            let (body, behind) = behind.split_at(behind.len().min(usize::from(*length) * 2));
            rest = behind;
            self.stack.take_frame(&self.frame(*kind, body));
        }
        // Time passes faster than outside, so that what waits for a timeout is met too.
        self.stack.look(&mut self.inbox).expect("the host's sockets are there");
        self.now += Duration::from_millis(10);
        self.stack.turn(self.now).expect("the card is there");
        while let Ok((mut stream, _)) = self.listener.accept() {
            let _ = stream.write_all(b"a little");
        }
        let mut buffer = [0; 2048];
        while recv(self.guest.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
        self.inputs += 1;
        if self.inputs % 100_000 == 0 {
            let status = std::fs::read_to_string("/proc/self/status").expect("our status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("our memory");
            let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
            assert!(kib < MOST_MEMORY, "grown to {kib} KiB");
        }
    }

    /// A frame with headers of this kind around `body`.
    fn frame(&self, kind: u8, body: &[u8]) -> Vec<u8> {
        let guest = self.addresses.guest_v4();
        let to = match kind >> 4 & 3 {
            0 => self.addresses.gateway_v4(),
            1 => self.addresses.dns_v4(),
            2 => guest,
            _ => Ipv4Addr::new(203, 0, 113, 9),
        };
        let mut frame = vec![2; 12];
        match kind & 15 {
            0 => return body.to_vec(),
            1 => frame.extend([&[8, 6][..], body].concat()),
            2..=4 => frame.extend([&[0x86, 0xdd][..], &self.ipv6(kind, body)].concat()),
            5 => frame.extend([&[8, 0][..], body].concat()),
            // A segment to the open port, with the flags and numbers of the input.
            6..=9 => {
                let mut segment = body.to_vec();
                segment.resize(segment.len().max(20), 0);
                let from = 1024 + u16::from(segment[0] & 7);
                segment[..2].copy_from_slice(&from.to_be_bytes());
                segment[2..4].copy_from_slice(&self.port.to_be_bytes());
                segment[12] = 0x50 | segment[12] & 0x0f;
                frame.extend([&[8, 0][..], &ipv4(guest, to, 6, 0, &segment)].concat());
            }
            10 => frame.extend([&[8, 0][..], &ipv4(guest, to, 6, 0, body)].concat()),
            11 | 12 => frame.extend([&[8, 0][..], &ipv4(guest, to, 17, 0, body)].concat()),
            13 => frame.extend([&[8, 0][..], &ipv4(guest, to, 1, 0, body)].concat()),
            _ => {
                let place = body.first_chunk::<2>().map_or(0, |place| u16::from_be_bytes(*place));
                frame.extend([&[8, 0][..], &ipv4(guest, to, 17, place, body)].concat());
            }
        }
        frame
    }

    fn ipv6(&self, kind: u8, body: &[u8]) -> Vec<u8> {
        let (IpAddr::V6(guest), IpAddr::V6(gateway)) =
            self.addresses.guest_and_gateway("::1".parse().expect("an address"))
        else {
            unreachable!("the network has IPv6");
        };
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([[6, 17, 58, 44, 0][usize::from(kind >> 4) % 5], 64]);
        packet.extend(guest.octets());
        packet.extend(gateway.octets());
        packet.extend_from_slice(body);
        packet
    }
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, place: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + body.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(place.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend_from_slice(body);
    packet
}

fuzz_target!(|input: &[u8]| {
    let mut world = WORLD.lock().expect("nobody failed");
    world.get_or_insert_with(World::new).feed(input);
});
