//! The end of a connection that the guest talks to: a smoltcp interface with a single socket.
//!
//! To map, touch and unmap its buffers takes longer than anything else that a short connection does
//! here, so the next connection takes over what the last one left.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time;
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::connection::Flow;
use super::device::Turn;
use super::peeked::Peeked;
use super::seen::Seen;
use crate::net::core::Core;

/// Bytes of each of a connection's two buffers, where there are few connections. Only what is used of
/// them takes memory. With more, bytes have left the processor's caches when they are read again; with
/// less, a guest's queue runs dry.
pub const BUFFER: usize = 1 << 20;
/// The same where the guest's memory is mapped here: each wake-up is a rest for somebody, and the more
/// is under way, the fewer there are. What is left in the host's socket does not come by here anyway.
const SHARED_BUFFER: usize = 4 << 20;
/// The same where there are more connections than [`FEW`].
const MEDIUM_BUFFER: usize = 512 << 10;
/// The same where there are [`MANY`].
pub const SMALL_BUFFER: usize = 128 << 10;
/// How many are few.
const FEW: usize = 32;
/// How many are many.
const MANY: usize = 256;
/// How many are kept for the next connections.
const SPARE: usize = 8;
/// How long the guest has to complete a handshake.
const HANDSHAKE: time::Duration = time::Duration::from_secs(20);

/// See the module.
pub struct GuestEnd {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    buffer: usize,
    started: Instant,
    seen: Seen,
    peeked: Option<Peeked>,
}

/// Those that nobody uses.
#[derive(Default)]
pub struct Spare(Vec<GuestEnd>);

impl Spare {
    /// One for a connection beside so many others.
    pub fn take(&mut self, core: &mut Core, flow: Flow, connections: usize) -> GuestEnd {
        let buffer = match connections {
            ..FEW => BUFFER,
            FEW..MANY => MEDIUM_BUFFER,
            MANY.. => SMALL_BUFFER,
        };
        let kept = if buffer == BUFFER { self.0.pop() } else { None };
        let mut end = kept.unwrap_or_else(|| GuestEnd::new(core, buffer));
        end.begin(core, flow);
        end
    }

    /// Keeps one whose connection is over.
    pub fn keep(&mut self, mut end: GuestEnd) {
        if end.buffer == BUFFER && self.0.len() < SPARE {
            end.socket().abort();
            self.0.push(end);
        }
    }
}

impl GuestEnd {
    fn new(core: &mut Core, buffer: usize) -> Self {
        let bytes = if buffer == BUFFER && core.out.can_place() { SHARED_BUFFER } else { buffer };
        let mut socket = Socket::new(SocketBuffer::new(vec![0; bytes]), SocketBuffer::new(vec![0; bytes]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut config = Config::new(HardwareAddress::Ip);
        // Sequence numbers are known to both ends of a link that nobody else is on.
        config.random_seed = core.new_id().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut seen = Seen::default();
        let mut device = Turn { incoming: None, out: &mut core.out, seen: &mut seen, data: None };
        let interface = Interface::new(config, &mut device, time::Instant::ZERO);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, buffer, started: core.now, seen, peeked: None }
    }

    fn begin(&mut self, core: &Core, flow: Flow) {
        self.started = core.now;
        self.seen = Seen::default();
        self.peeked = None;
        let bits = if flow.remote.is_ipv4() { 32 } else { 128 };
        self.interface.update_ip_addrs(|list| {
            list.clear();
            // It cannot fail: there is room for one.
            let _ = list.push(IpCidr::new(flow.remote.ip().into(), bits));
        });
        self.socket().set_timeout(Some(HANDSHAKE));
    }

    /// Waits for the guest's first segment. Says whether it does.
    pub fn listen(&mut self, flow: Flow) -> bool {
        let at = IpListenEndpoint { addr: Some(flow.remote.ip().into()), port: flow.remote.port() };
        self.socket().listen(at).is_ok()
    }

    /// Connects to the guest. Says whether it does.
    pub fn connect(&mut self, flow: Flow) -> bool {
        let Self { interface, sockets, handle, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        socket.connect(interface.context(), flow.guest, flow.remote).is_ok()
    }

    /// The socket.
    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// What its segments say.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What its segments say, where the next one says that there is room for as much as there can be.
    pub fn seen_open(&mut self) -> &Seen {
        let room = self.socket().recv_capacity();
        self.seen.open(room);
        &self.seen
    }

    /// Takes a packet of the guest's.
    pub fn take(&mut self, core: &mut Core, packet: &[u8]) {
        let now = self.time(core.now);
        self.seen.guest_sends(packet, core.now);
        let mut device =
            Turn { incoming: Some(packet), out: &mut core.out, seen: &mut self.seen, data: None };
        self.interface.poll_ingress_single(now, &mut device, &mut self.sockets);
    }

    /// Leaves what comes from now on in the host's socket. Nothing may be under way to the guest. The
    /// error is that of a host that cannot do so.
    pub fn peek(&mut self, host: BorrowedFd<'_>) -> io::Result<()> {
        self.peeked = Some(Peeked::begin(host, self.seen.progress().to_send)?);
        Ok(())
    }

    /// The socket, and what is in the host's for it, if anything stays there.
    pub fn peeked(&mut self) -> (&mut Socket<'static>, Option<&mut Peeked>) {
        (self.sockets.get_mut(self.handle), self.peeked.as_mut())
    }

    /// Whether it needs room that there is not.
    pub fn lacks_room(&self, core: &Core) -> bool {
        core.out.is_full() || (self.peeked.is_some() && core.out.is_blocked())
    }

    /// Queues what there is for the guest, as far as there is room. Says whether there was something. The
    /// error is the card's.
    pub fn send(&mut self, core: &mut Core, host: BorrowedFd<'_>) -> io::Result<bool> {
        let now = self.time(core.now);
        let data = self.peeked.as_mut().map(|peeked| (peeked, host));
        if data.is_some() {
            // Nothing is placed before what waits.
            core.out.flush()?;
        }
        let mut device = Turn { incoming: None, out: &mut core.out, seen: &mut self.seen, data };
        let mut sent = false;
        while self.interface.poll_egress(now, &mut device, &mut self.sockets) != PollResult::None {
            sent = true;
        }
        Ok(sent)
    }

    /// Has smoltcp send again what nobody has acknowledged, where it waits for nothing. It forgets that it
    /// did when a guest that is short of memory closes its window, loses what was under way, and opens
    /// the window again (smoltcp 0.14: the timer of the probes is stopped, and that of the segments under
    /// way is not started again). Says whether it does.
    pub fn rouse(&mut self, core: &mut Core, flow: Flow) -> bool {
        let now = self.time(core.now);
        if self.socket().send_queue() == 0 || self.interface.poll_at(now, &self.sockets).is_some() {
            return false;
        }
        let seen = self.seen;
        for packet in seen.complaint(flow) {
            let mut device =
                Turn { incoming: Some(&packet), out: &mut core.out, seen: &mut self.seen, data: None };
            self.interface.poll_ingress_single(now, &mut device, &mut self.sockets);
        }
        self.interface.poll_at(now, &self.sockets).is_some()
    }

    /// When it must be looked at again.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        let now = self.time(now);
        let at = self.interface.poll_at(now, &self.sockets)?;
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        Some(self.started + Duration::from_micros(micros))
    }

    fn time(&self, now: Instant) -> time::Instant {
        time::Instant::from_micros(i64::try_from((now - self.started).as_micros()).unwrap_or(i64::MAX))
    }
}
