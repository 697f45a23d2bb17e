//! The loop: one thread that waits for the guest, the host's sockets and the next deadline.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use sekexe_init::unsent;

use super::core::{Core, Owner};
use super::dns::Dns;
use super::frame::{self, ETHERTYPE_ARP, Frame, ICMP, ICMPV6, Packet, TCP, UDP};
use super::icmp::{self, Trouble};
use super::link::{Card, Inbox, Outbox, Received};
use super::log::{Log, Record};
use super::neighbour;
use super::ping::Ping;
use super::publish::Published;
use super::reassembly::Reassembly;
use super::tcp::{self, Tcp};
use super::udp::Udp;
use super::{AT_ONCE, Settings};

/// Events taken in one turn.
const EVENTS: usize = 128;
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How long the next event is waited for without sleep: to be woken takes about as long, and longer on a
/// virtual machine.
const SPIN: Duration = Duration::from_micros(30);
/// Frames that come at once in a conversation, at most; a stream brings more.
const FEW_FRAMES: usize = 8;
/// The longest datagram or message of a host socket.
const LONGEST: usize = 65_536;

/// What waiting came to.
#[derive(Default)]
struct Happened {
    stop: bool,
    frames: bool,
    /// Whether more may have happened than was looked at.
    more: bool,
}

/// The time in which the guest's last bytes go on.
struct Ending {
    left: u64,
    moved: Instant,
    last: Instant,
}

impl Ending {
    fn begin(now: Instant) -> Self {
        Self { left: u64::MAX, moved: now, last: now + unsent::MOST }
    }

    /// So many are left.
    fn look(&mut self, left: u64, now: Instant) {
        if left != self.left {
            (self.left, self.moved) = (left, now);
        }
    }

    /// When it is over at the latest.
    fn deadline(&self) -> Instant {
        if self.left == 0 { self.moved } else { self.last.min(self.moved + unsent::STALL) }
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.deadline()
    }
}

/// Everything that one guest's network is.
pub struct Stack {
    core: Core,
    tcp: Tcp,
    udp: Udp,
    dns: Dns,
    ping: Ping,
    reassembly: Reassembly,
    buffer: Vec<u8>,
    next_sweep: Instant,
    ending: Option<Ending>,
    /// Whether others run while we wait without sleep.
    has_cpus: bool,
    /// Whether the last frames may be part of a conversation.
    converses: bool,
}

impl Stack {
    /// A stack behind this card. The error is the host's, short of descriptors or memory.
    pub fn new(mut card: Card, settings: Settings) -> io::Result<Self> {
        // A connection's buffers take no memory before they are used.
        crate::sys::net::map_allocations_from(tcp::SMALL_BUFFER as i32);
        let now = Instant::now();
        let log = Log::new(settings.log_everything);
        let outside = card.outside.take();
        let out = Outbox::new(card)?;
        let mut core =
            Core::new(out, outside, settings.addresses, settings.policy, settings.host_loopback, log, now)?;
        core.watch(core.out.fd(), Owner::Card, 0, EpollFlags::EPOLLIN | EpollFlags::EPOLLET)?;
        let (mut tcp, mut udp) = (Tcp::default(), Udp::default());
        for published in settings.published {
            match published {
                Published::Tcp(listener, port) => tcp.publish(&mut core, listener, port)?,
                Published::Udp(socket, port) => udp.publish(&mut core, socket, port)?,
            }
        }
        Ok(Self {
            core,
            tcp,
            udp,
            dns: Dns::new(&settings.resolv_conf),
            ping: Ping::default(),
            reassembly: Reassembly::default(),
            buffer: vec![0; LONGEST],
            next_sweep: now + SWEEP,
            ending: None,
            has_cpus: false,
            converses: false,
        })
    }

    /// Runs until `stop` is raised and, unless that is by [`AT_ONCE`] at least, until the guest's last
    /// bytes have gone on or nobody takes them. Says whom the guest talked to.
    pub fn run(mut self, stop: &EventFd) -> io::Result<Record> {
        self.core.watch(stop.as_fd(), Owner::Stop, 0, EpollFlags::EPOLLIN)?;
        self.has_cpus = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        let mut inbox = Inbox::default();
        let mut has_frames = true;
        loop {
            let happened = self.wait(self.patience(has_frames))?;
            if happened.stop {
                if stop.read()? >= AT_ONCE {
                    return Ok(self.finish());
                }
                self.ending = Some(Ending::begin(self.core.now));
            }
            // What the guest has left on its way is there, whether we were told or not.
            has_frames |= happened.frames || happened.stop;
            if has_frames {
                has_frames = self.take_frames(&mut inbox)?;
            }
            self.turn(self.core.now)?;
            if let Some(ending) = &mut self.ending {
                ending.look(self.tcp.unsent(), self.core.now);
                let has_more = has_frames || happened.more || self.tcp.is_spliced_due();
                if ending.is_over(self.core.now) && !has_more {
                    return Ok(self.finish());
                }
            }
        }
    }

    /// Does what the card and the host's sockets ask for, without waiting. What comes in one batch is
    /// enough.
    pub fn look(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        if self.wait(EpollTimeout::ZERO)?.frames {
            self.take_frames(inbox)?;
        }
        Ok(())
    }

    /// Does what the host's sockets ask for, and waits until something does, or for that long.
    fn wait(&mut self, patience: EpollTimeout) -> io::Result<Happened> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.next_events(&mut events, patience) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        self.core.now = Instant::now();
        let mut happened = Happened { more: count == EVENTS, ..Happened::default() };
        for event in &events[..count] {
            match Core::whose(event) {
                (Owner::Stop, _) => happened.stop = true,
                (Owner::Card, _) => {
                    happened.frames |= event.events().intersects(!EpollFlags::EPOLLOUT);
                    if event.events().contains(EpollFlags::EPOLLOUT) {
                        self.core.out.unblock();
                        self.core.mind_room(false)?;
                    }
                }
                (owner, id) => self.on_event(owner, id, event.events()),
            }
        }
        Ok(happened)
    }

    fn next_events(&self, events: &mut [EpollEvent], patience: EpollTimeout) -> nix::Result<usize> {
        let spins = self.has_cpus && self.converses && !self.tcp.has_spliced();
        if spins && patience != EpollTimeout::ZERO {
            let began = Instant::now();
            while began.elapsed() < SPIN {
                match self.core.epoll.wait(events, EpollTimeout::ZERO) {
                    Ok(0) => std::hint::spin_loop(),
                    done => return done,
                }
            }
        }
        self.core.epoll.wait(events, patience)
    }

    /// Does what is due at this time, and sends what the guest takes.
    pub fn turn(&mut self, now: Instant) -> io::Result<()> {
        self.core.now = now;
        self.dns.tick(&mut self.core);
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.udp.tick(&mut self.core);
            self.ping.tick(now);
        }
        self.tcp.turn(&mut self.core)?;
        self.core.out.flush()?;
        if self.core.out.is_blocked() {
            self.core.mind_room(true)?;
        }
        Ok(())
    }

    fn on_event(&mut self, owner: Owner, id: u64, flags: EpollFlags) {
        let Self { core, buffer, .. } = self;
        match owner {
            Owner::KernelEnd => self.tcp.on_kernel_event(id, flags),
            Owner::Tcp => self.tcp.on_event(core, id, flags),
            Owner::TcpListener => self.tcp.on_listener(core, id),
            Owner::Udp => self.udp.on_event(core, id, buffer),
            Owner::UdpListener => self.udp.on_listener(core, id, buffer),
            Owner::Dns => self.dns.on_event(core, id, buffer),
            Owner::Ping => self.ping.on_event(core, id, buffer),
            Owner::Card | Owner::Stop => {}
        }
    }

    /// Takes one batch. Says whether there may be more.
    fn take_frames(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        let (count, more) = match inbox.fill(&mut self.core.out)? {
            Received::Some(count) => (count, true),
            Received::Last(count) => (count, false),
            Received::Closed => {
                // The guest has switched its card off for good, or is about to end. It has no
                // network then; that is no failure of ours.
                let _ = self.core.epoll.delete(self.core.out.fd());
                (0, false)
            }
        };
        self.converses = count <= FEW_FRAMES;
        for number in 0..count {
            self.take_frame(inbox.frame(number, &self.core.out));
        }
        Ok(more)
    }

    /// Takes one frame of the guest's, whatever it is.
    pub fn take_frame(&mut self, frame: &[u8]) {
        match frame::parse(frame) {
            Some(Frame::Arp(message)) => {
                if let Some(answer) = neighbour::answer_arp(message, &self.core.addresses) {
                    self.core.out.frame(ETHERTYPE_ARP, &answer);
                }
            }
            Some(Frame::Ip(sender, packet)) => {
                if packet.protocol == ICMPV6
                    && let Some((ends, answer)) =
                        neighbour::answer_solicitation(&packet, &self.core.addresses)
                {
                    self.core.out.payload(ends, ICMPV6, &answer);
                } else if self.core.is_guest(packet.source) {
                    self.core.out.set_guest(sender);
                    self.take_packet(&packet);
                }
            }
            None => {}
        }
    }

    fn take_packet(&mut self, packet: &Packet<'_>) {
        if packet.fragment.is_some() {
            if let Some(whole) = self.reassembly.add(packet, self.core.now) {
                self.take_whole(&whole.packet());
            }
        } else {
            self.take_whole(packet);
        }
    }

    fn take_whole(&mut self, packet: &Packet<'_>) {
        let Self { core, dns, .. } = self;
        match packet.protocol {
            TCP => self.tcp.on_packet(core, dns, packet),
            UDP => self.udp.on_packet(core, dns, packet),
            ICMP if packet.source.is_ipv4() => self.ping.on_packet(core, packet),
            ICMPV6 if packet.source.is_ipv6() => self.ping.on_packet(core, packet),
            _ => icmp::report(core, packet, Trouble::Prohibited),
        }
    }

    /// How long nothing needs to be done.
    fn patience(&self, has_frames: bool) -> EpollTimeout {
        let waits_for_guest = self.core.out.is_blocked();
        if has_frames || self.tcp.is_spliced_due() || (self.tcp.is_due() && !waits_for_guest) {
            return EpollTimeout::ZERO;
        }
        let ending = self.ending.as_ref().map(Ending::deadline);
        let next = [self.dns.next_deadline(), self.tcp.next_turn(), ending].into_iter().flatten();
        let next = next.fold(self.next_sweep, Instant::min);
        // Rounded up, so that the deadline has passed when the wait ends.
        let left = next.saturating_duration_since(self.core.now).as_micros().div_ceil(1000);
        EpollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::ZERO)
    }

    fn finish(mut self) -> Record {
        let unsent = self.tcp.unsent();
        self.tcp.finish(&mut self.core);
        self.udp.finish(&mut self.core);
        self.core.out.close();
        self.core.log.into_record(unsent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, UdpSocket};
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
            let ends =
                Ends { source: addresses.guest_v4().into(), destination: addresses.gateway_v4().into() };
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = Guest::new(listener.local_addr().unwrap().port());
        let mut now = Instant::now();
        guest.send(2, b"");
        assert_eq!(guest.receive(now).0, 0x12, "accepted");
        guest.send(0x10, b"before");
        let (mut host, _) = listener.accept().unwrap();
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = Guest::new(listener.local_addr().unwrap().port());
        let now = Instant::now();
        guest.send(2, b"");
        guest.receive(now);
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = Guest::new(listener.local_addr().unwrap().port());
        let now = Instant::now();
        guest.send(2, b"");
        guest.receive(now);
        guest.send(0x10, b"");
        let (mut host, _) = listener.accept().unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut guest = Guest::new(listener.local_addr().unwrap().port());
        let now = Instant::now();
        guest.send(2, b"");
        guest.receive(now);
        guest.send(0x10, b"");
        let (mut host, _) = listener.accept().unwrap();
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
}
