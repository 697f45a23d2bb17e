//! The loop: one thread that waits for the guest, the host's sockets and the next deadline.

#[cfg(test)]
mod tests;

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
