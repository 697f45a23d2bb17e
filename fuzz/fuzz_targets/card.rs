//! Whatever a guest announces as its card and writes into its memory, we neither fail, nor wait, nor
//! grow, nor touch memory that is not the guest's.
//!
//! An input is what one guest does: it says messages, well formed or not, writes anywhere into the
//! memory that it shares, offers frames as its driver would, and wakes us. Each has a stack of its
//! own, for after the first message that makes no sense there is no card any more.
#![no_main]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use sekexe_ci::net::policy::Policy;
use sekexe_ci::net::{Addresses, Card, CardKind, Inbox, Settings, Stack};

const MTU: usize = 65_520;
const MEMORY: u64 = 256 << 10;
const ENTRIES: u64 = 16;
/// How far queues are apart, where their parts are from the beginning of each, and buffers.
const APART: u64 = 0x8000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x10000;
/// How long one input may take: less than the time for which a card waits for half a message twice.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most resident memory of a run, sanitizer included, in KiB.
const MOST_MEMORY: u64 = 1 << 20;

/// Requests of the vhost-user protocol.
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;

/// What lives through all inputs.
struct World {
    inbox: Inbox,
    inputs: u64,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// A guest, with its stack.
struct Guest {
    socket: OwnedFd,
    memory: File,
    kicks: [EventFd; 2],
    calls: (OwnedFd, OwnedFd),
    offered: [u16; 2],
    stack: Stack,
    addresses: Addresses,
    now: Instant,
}

impl Guest {
    fn new() -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let pair = || socketpair(AddressFamily::Unix, SockType::Stream, None, flags).expect("a pair");
        let (socket, card) = pair();
        let memory = File::from(memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING).expect("memory"));
        memory.set_len(MEMORY).expect("its size");
        fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("a seal");
        let kick = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an event");
        let addresses = Addresses::choose(&[]);
        let everything = "0.0.0.0/0".parse().expect("a range");
        let settings = Settings {
            addresses,
            policy: Policy { allow: vec![], deny: vec![everything] },
            host_loopback: BTreeSet::new(),
            published: vec![],
            resolv_conf: "/nowhere".into(),
            log_everything: false,
        };
        let card = Card { fd: card, kind: CardKind::Memory, offload: true, mtu: MTU, outside: None };
        let stack = Stack::new(card, settings).expect("a stack");
        let (kicks, offered, now) = ([kick(), kick()], [0; 2], Instant::now());
        Self { socket, memory, kicks, calls: pair(), offered, stack, addresses, now }
    }

    /// Says something, as far as the socket has room for it.
    fn say(&self, request: u32, body: &[u8], fd: Option<RawFd>) {
        let header = words(&[request, 1, body.len() as u32]);
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, flags, None);
    }

    /// What a kernel says about its card, but for one message, which is left out.
    fn announce(&self, without: u8) {
        let call = self.calls.0.as_raw_fd();
        let memory = [words(&[1, 0]), numbers(&[0, MEMORY, 0, 0])].concat();
        let features = numbers(&[1 | 2 | 8 | 32 | 3 << 11 | 1 << 29 | 1 << 30 | 1 << 32]);
        let mut all =
            vec![(SET_FEATURES, features, None), (SET_MEM_TABLE, memory, Some(self.memory.as_raw_fd()))];
        for queue in [0, 1] {
            let base = u64::from(queue) * APART;
            let places = numbers(&[base, base + USED, base + AVAILABLE, 0]);
            let kick = self.kicks[queue as usize].as_raw_fd();
            all.extend([
                (SET_VRING_CALL, numbers(&[queue.into()]), Some(call)),
                (SET_VRING_NUM, words(&[queue, ENTRIES as u32]), None),
                (SET_VRING_BASE, words(&[queue, 0]), None),
                (SET_VRING_ADDR, [words(&[queue, 0]), places].concat(), None),
                (SET_VRING_KICK, numbers(&[queue.into()]), Some(kick)),
                (SET_VRING_ENABLE, words(&[queue, 1]), None),
            ]);
        }
        for (number, (request, body, fd)) in all.into_iter().enumerate() {
            if number != usize::from(without) {
                self.say(request, &body, fd);
            }
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let room = MEMORY.saturating_sub(at) as usize;
        let _ = self.memory.write_all_at(&bytes[..bytes.len().min(room)], at);
    }

    /// Writes an entry of a queue's table, and makes it the next one that is offered.
    fn offer(&mut self, queue: usize, entry: [u8; 4], place: u64, length: u32) {
        let [number, flags, next, count] = entry;
        let base = queue as u64 * APART;
        let mut descriptor = [numbers(&[place]), words(&[length])].concat();
        descriptor.extend([u16::from(flags & 7), next.into()].map(u16::to_ne_bytes).concat());
        self.write(base + u64::from(number) % ENTRIES * 16, &descriptor);
        let slot = base + AVAILABLE + 4 + u64::from(self.offered[queue]) % ENTRIES * 2;
        self.write(slot, &u16::from(number).to_ne_bytes());
        self.offered[queue] = self.offered[queue].wrapping_add(count.into());
        self.write(base + AVAILABLE + 2, &self.offered[queue].to_ne_bytes());
    }

    /// Asks who has the gateway's address, which is answered.
    fn ask(&mut self, entry: u8) {
        let place = BUFFERS + u64::from(entry) * 4096;
        let mut frame = vec![0; 12];
        frame.extend([0xff; 6]);
        frame.extend([2, 0x73, 0x65, 0x6b, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0x73, 0x65, 0x6b, 0, 1]);
        frame.extend(self.addresses.guest_v4().octets());
        frame.extend([0; 6]);
        frame.extend(self.addresses.gateway_v4().octets());
        self.write(place, &frame);
        self.offer(1, [entry, 0, 0, 1], place, frame.len() as u32);
    }

    fn turn(&mut self, inbox: &mut Inbox) {
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
        self.now += Duration::from_millis(10);
        self.stack.look(inbox).expect("a guest ends its card, not its stack");
        self.stack.turn(self.now).expect("a guest ends its card, not its stack");
    }

    /// Does one thing that the input says, and says what is left of the input.
    fn act<'a>(&mut self, inbox: &mut Inbox, input: &'a [u8]) -> &'a [u8] {
        let [what, queue, a, b, c, d, rest @ ..] = input else { return &[] };
        let queue = usize::from(queue & 1);
        let number = u32::from_ne_bytes([*a, *b, *c, *d]);
        let (body, behind) = rest.split_at(rest.len().min(usize::from(*d)));
        match what % 8 {
            0 => self.announce(*a),
            1 => {
                let fds = [self.memory.as_raw_fd(), self.kicks[queue].as_raw_fd(), self.calls.0.as_raw_fd()];
                self.say(u32::from(a & 63), body, fds.get(usize::from(*b)).copied());
                return behind;
            }
            2 => {
                self.write(u64::from(u16::from_ne_bytes([*a, *b])) * 4 + u64::from(*c), body);
                return behind;
            }
            3 | 4 => self.offer(queue, [*a, *b, *c, *d], BUFFERS + u64::from(*a) * 4096, 2048),
            5 => self.offer(queue, [*a, *b, *c, 1], u64::from(number) << (d & 31), number),
            6 => self.ask(*a),
            _ => self.turn(inbox),
        }
        rest
    }
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl World {
    fn feed(&mut self, input: &[u8]) {
        let started = Instant::now();
        let mut guest = Guest::new();
        let mut rest = input;
        while !rest.is_empty() {
            rest = guest.act(&mut self.inbox, rest);
        }
        guest.turn(&mut self.inbox);
        guest.turn(&mut self.inbox);
        drop(guest);
        assert!(started.elapsed() < PATIENCE, "a guest kept us waiting for {:?}", started.elapsed());
        self.inputs += 1;
        if self.inputs % 10_000 == 0 {
            let status = std::fs::read_to_string("/proc/self/status").expect("our status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("our memory");
            let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
            assert!(kib < MOST_MEMORY, "grown to {kib} KiB");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut world = WORLD.lock().expect("nobody failed");
    world.get_or_insert_with(|| World { inbox: Inbox::default(), inputs: 0 }).feed(input);
});
