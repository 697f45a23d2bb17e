//! The loop: one thread that waits for the guest, the host's sockets and the next deadline.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::Settings;
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
use super::tcp::Tcp;
use super::udp::Udp;

/// Events taken in one turn.
const EVENTS: usize = 128;
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// The longest datagram or message of a host socket.
const LONGEST: usize = 65_536;

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
}

impl Stack {
    /// A stack behind this card. The error is the host's, short of descriptors or memory.
    pub fn new(card: Card, settings: Settings) -> nix::Result<Self> {
        let now = Instant::now();
        let log = Log::new(settings.log_everything);
        let out = Outbox::new(card);
        let mut core = Core::new(out, settings.addresses, settings.policy, settings.host_loopback, log, now)?;
        let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        core.watch(core.out.fd(), Owner::Card, 0, edges)?;
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
        })
    }

    /// Runs until `stop` is raised, and says whom the guest talked to.
    pub fn run(mut self, stop: &EventFd) -> io::Result<Record> {
        self.core.watch(stop.as_fd(), Owner::Stop, 0, EpollFlags::EPOLLIN)?;
        let mut inbox = Inbox::new();
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut has_frames = true;
        loop {
            let patience = self.patience(has_frames);
            let count = match self.core.epoll.wait(&mut events, patience) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            self.core.now = Instant::now();
            for event in &events[..count] {
                match Core::whose(event) {
                    (Owner::Stop, _) => return Ok(self.finish()),
                    (Owner::Card, _) => {
                        has_frames |= event.events().intersects(!EpollFlags::EPOLLOUT);
                        self.core.out.unblock();
                    }
                    (owner, id) => self.on_event(owner, id, event.events()),
                }
            }
            if has_frames {
                has_frames = self.take_frames(&mut inbox)?;
            }
            self.tick();
            self.tcp.turn(&mut self.core)?;
            self.core.out.flush()?;
        }
    }

    fn on_event(&mut self, owner: Owner, id: u64, flags: EpollFlags) {
        let Self { core, buffer, .. } = self;
        match owner {
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
        let (count, more) = match inbox.fill(&self.core.out)? {
            Received::Some(count) => (count, true),
            Received::Last(count) => (count, false),
            Received::Closed => {
                // The guest has switched its card off for good, or is about to end. It has no
                // network then; that is no failure of ours.
                let _ = self.core.epoll.delete(self.core.out.fd());
                (0, false)
            }
        };
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

    fn tick(&mut self) {
        self.dns.tick(&mut self.core);
        if self.core.now >= self.next_sweep {
            self.next_sweep = self.core.now + SWEEP;
            self.udp.tick(&mut self.core);
            self.ping.tick(self.core.now);
        }
    }

    /// How long nothing needs to be done.
    fn patience(&self, has_frames: bool) -> EpollTimeout {
        let waits_for_guest = self.core.out.is_blocked();
        if has_frames || (self.tcp.is_due() && !waits_for_guest) {
            return EpollTimeout::ZERO;
        }
        let next = [self.dns.next_deadline(), self.tcp.next_turn()].into_iter().flatten();
        let next = next.fold(self.next_sweep, Instant::min);
        // Rounded up, so that the deadline has passed when the wait ends.
        let left = next.saturating_duration_since(self.core.now).as_micros().div_ceil(1000);
        EpollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::ZERO)
    }

    fn finish(mut self) -> Record {
        self.tcp.finish(&mut self.core);
        self.udp.finish(&mut self.core);
        self.core.log.into_record()
    }
}
