//! The frame descriptor: batches in, a bounded queue out.
//!
//! Three kinds of descriptor carry Ethernet frames, one message each: a socket of packets whose
//! other end is a guest kernel, a TAP device, and a packet socket on one end of a veth pair. Over a
//! fourth, a guest kernel announces a card in its memory. All but the first can put a small header
//! before each frame (`struct virtio_net_hdr`) that leaves checksums to whoever needs them, which on
//! one machine is nobody.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use vm_memory::VolatileSlice;

use super::addresses::{GUEST_MAC, HOST_MAC};
use super::checksum::Sum;
use super::frame::{Data, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, TCP};
use super::outside::Outside;
use super::virtio::{self, Virtio};
use crate::sys::net::{BATCH, leave_to_collector, receive_each, send_each};

/// The longest frame: an Ethernet header and the longest IP packet, with a header of either kind.
const LONGEST: usize = 65_535 + ETHERNET_HEADER + virtio::HEADER;
/// Bytes of `struct virtio_net_hdr`.
const OFFLOAD_HEADER: usize = 10;
/// Frames that may wait for the guest before producers that can wait shall.
const FULL: usize = 64;
/// Bytes after which a batch goes: as long as they are in the processor's cache, and enough that whoever
/// is woken by the first frame does not go to sleep before the last one.
const HEAVY: usize = 512 << 10;
/// Frames that may wait at all.
const OVERFULL: usize = 256;
/// Buffers that are kept for the next frames.
const SPARE: usize = 2 * FULL;

/// What carries frames to and from the guest.
#[derive(Debug)]
pub struct Card {
    /// One frame in each message, non-blocking, or the socket on which a card is announced.
    pub fd: OwnedFd,
    /// How it is read and written.
    pub kind: CardKind,
    /// Whether each frame has a `struct virtio_net_hdr` before it.
    pub offload: bool,
    /// Longest IP packet.
    pub mtu: usize,
    /// The network that the other end of a pair of links is in.
    pub outside: Option<Box<Outside>>,
}

/// How a card's descriptor is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardKind {
    /// A socket: many messages in one call.
    Socket,
    /// A TAP device: one call for each frame.
    Device,
    /// A guest's memory: no call but to wake who sleeps.
    Memory,
}

/// The same, ready to be used.
enum Carrier {
    Socket(OwnedFd),
    Device(OwnedFd),
    Memory(Virtio),
}

/// What reading came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many frames; there may be more.
    Some(usize),
    /// So many frames, and no more for now.
    Last(usize),
    /// The guest's end is closed.
    Closed,
}

/// Frames on their way in.
pub struct Inbox {
    buffers: Vec<Vec<u8>>,
    lengths: [usize; BATCH],
}

/// A frame in a buffer that is long enough for any, so that a used one need not be cleared.
struct Frame {
    buffer: Vec<u8>,
    length: usize,
}

impl Frame {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Frames on their way out.
pub struct Outbox {
    carrier: Carrier,
    /// Bytes of the header before each frame.
    header: usize,
    mtu: usize,
    guest: Mac,
    queue: VecDeque<Frame>,
    /// Bytes in the queue.
    weight: usize,
    /// Bytes that were placed in the guest's memory since it was last woken.
    placed: usize,
    spare: Vec<Vec<u8>>,
    blocked: bool,
    next_id: u32,
}

/// Room for one batch.
impl Default for Inbox {
    fn default() -> Self {
        // One by one: copies of the first would take memory before there is anything in them.
        Self { buffers: (0..BATCH).map(|_| vec![0; LONGEST]).collect(), lengths: [0; BATCH] }
    }
}

impl Inbox {
    /// Reads what is there. The error is the device's, which then is gone.
    pub fn fill(&mut self, out: &mut Outbox) -> io::Result<Received> {
        let got = match &mut out.carrier {
            Carrier::Socket(socket) => self.fill_from_socket(socket.as_fd()),
            Carrier::Device(device) => self.fill_from_device(device),
            Carrier::Memory(memory) => {
                let attended = memory.attend();
                out.blocked &= !attended.as_ref().is_ok_and(|has_room| *has_room);
                // What a guest that is gone has left there counts.
                let received = memory.receive(&mut self.buffers, &mut self.lengths);
                received.or_else(|error| attended.and(Err(error)))
            }
        };
        match got {
            Ok(0) => Ok(Received::Closed),
            // At the end of file there is no end to empty messages.
            Ok(_) if self.lengths[0] == 0 => Ok(Received::Closed),
            Ok(count) if count == BATCH => Ok(Received::Some(count)),
            Ok(count) => Ok(Received::Last(count)),
            // Said once, and before the frames that are still there.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(Received::Some(0)),
            Err(error) if passes(&error) => Ok(Received::Last(0)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Received::Closed),
            Err(error) => Err(error),
        }
    }

    /// A frame of the last batch, without the card's own header.
    pub fn frame(&self, number: usize, out: &Outbox) -> &[u8] {
        let start = out.header.min(self.lengths[number]);
        &self.buffers[number][start..self.lengths[number]]
    }

    fn fill_from_socket(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut buffers: Vec<IoSliceMut<'_>> =
            self.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        receive_each(socket, &mut buffers, &mut self.lengths)
    }

    fn fill_from_device(&mut self, device: &OwnedFd) -> io::Result<usize> {
        let mut device = DeviceFile(device);
        for count in 0..BATCH {
            match device.read(&mut self.buffers[count]) {
                Ok(length) => self.lengths[count] = length,
                Err(error) if count > 0 && passes(&error) => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(BATCH)
    }
}

/// A descriptor of somebody else's as a file.
struct DeviceFile<'a>(&'a OwnedFd);

impl Read for DeviceFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0, buffer)?)
    }
}

impl Write for DeviceFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outbox {
    /// An empty queue for a card.
    pub fn new(card: Card) -> io::Result<Self> {
        let (carrier, header) = match card.kind {
            CardKind::Socket => (Carrier::Socket(card.fd), OFFLOAD_HEADER),
            CardKind::Device => (Carrier::Device(card.fd), OFFLOAD_HEADER),
            CardKind::Memory => (Carrier::Memory(Virtio::new(card.fd, card.mtu)?), virtio::HEADER),
        };
        Ok(Self {
            carrier,
            header: if card.offload { header } else { 0 },
            mtu: card.mtu,
            guest: GUEST_MAC,
            queue: VecDeque::new(),
            weight: 0,
            placed: 0,
            spare: Vec::new(),
            blocked: false,
            next_id: 0,
        })
    }

    /// Gives the card up, which need not be gone when this returns.
    pub fn close(self) {
        match self.carrier {
            Carrier::Socket(fd) | Carrier::Device(fd) => leave_to_collector(fd),
            Carrier::Memory(_) => {}
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.carrier {
            Carrier::Socket(fd) | Carrier::Device(fd) => fd.as_fd(),
            Carrier::Memory(memory) => memory.fd(),
        }
    }

    /// Where frames go.
    pub fn guest(&self) -> Mac {
        self.guest
    }

    /// Frames that wait for the guest.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits for the guest.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Longest IP packet.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Whether checksums of TCP are left to the card.
    pub fn offload(&self) -> bool {
        self.header > 0
    }

    /// Frames go to this hardware address from now on.
    pub fn set_guest(&mut self, guest: Mac) {
        self.guest = guest;
    }

    /// Whether who can wait should.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= FULL
    }

    /// Whether a batch is worth being sent.
    pub fn is_heavy(&self) -> bool {
        self.weight >= HEAVY
    }

    /// Whether the guest takes no more for now.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the card says unasked when the guest takes frames again.
    pub fn tells_of_room(&self) -> bool {
        matches!(self.carrier, Carrier::Memory(_))
    }

    /// The guest takes frames again.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Queues an IP packet of `length` bytes that `fill` writes, unless too many wait already: whoever
    /// waits while it [is full](Self::is_full) loses none, and what is answered to each packet of a guest
    /// that does not read shall not fill memory.
    pub fn fill_packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let (frame, done) = self.compose(length, fill);
        if self.queue.len() < OVERFULL {
            self.push(frame);
        } else {
            self.recycle(frame);
        }
        done
    }

    /// Whether packets can be placed in the guest's memory rather than queued.
    pub fn can_place(&self) -> bool {
        matches!(self.carrier, Carrier::Memory(_)) && self.offload()
    }

    /// Whether one can be placed now.
    pub fn has_place(&mut self) -> bool {
        match &mut self.carrier {
            Carrier::Memory(memory) if self.queue.is_empty() && !self.blocked => {
                self.blocked = !memory.has_room();
                !self.blocked
            }
            _ => false,
        }
    }

    /// Places an IP packet of `length` bytes that `fill` writes, but for the data that it finds in it:
    /// `copy` brings others to where they belong, or says that it cannot.
    pub fn place_packet<R>(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> (R, Data),
        copy: impl FnOnce(Data, &[VolatileSlice<'_>]) -> bool,
    ) -> R {
        let (frame, (done, data)) = self.compose(length, fill);
        if let Carrier::Memory(memory) = &mut self.carrier {
            let head = &frame.buffer[..frame.length - data.length];
            // If that fails, it is as if the packet was lost on its way.
            let _ = memory.put(head, data.length, |places| copy(data, places));
            self.placed += frame.length;
            if self.placed >= HEAVY {
                self.wake();
            }
        }
        self.recycle(frame);
        done
    }

    fn compose<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> (Frame, R) {
        let (mut frame, start) = self.begin(length);
        let bytes = &mut frame.buffer[..frame.length];
        let done = fill(&mut bytes[start..]);
        let ethertype = if bytes[start] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        bytes[start - 2..start].copy_from_slice(&ethertype.to_be_bytes());
        if self.header > 0 {
            leave_checksum_to_card(bytes, self.header);
        }
        (frame, done)
    }

    /// Queues an IP packet, unless too many wait already: whoever sends packets without waiting
    /// has to bear that one is lost.
    pub fn packet(&mut self, packet: &[u8]) {
        self.frame(if packet[0] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }, packet);
    }

    /// The same for any kind of frame.
    pub fn frame(&mut self, ethertype: u16, body: &[u8]) {
        if self.queue.len() < OVERFULL {
            let (mut frame, start) = self.begin(body.len());
            frame.buffer[start - 2..start].copy_from_slice(&ethertype.to_be_bytes());
            frame.buffer[start..frame.length].copy_from_slice(body);
            self.push(frame);
        }
    }

    /// Queues what carries `payload`, in parts where it is longer than the MTU.
    pub fn payload(&mut self, ends: super::emit::Ends, protocol: u8, payload: &[u8]) {
        self.next_id = self.next_id.wrapping_add(1);
        for packet in super::emit::packets(ends, protocol, payload, self.mtu, self.next_id) {
            self.packet(&packet);
        }
    }

    /// Sends what the guest takes. The error is the device's, which then is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() && !self.blocked {
            let mut frames = self.queue.iter().take(BATCH).map(Frame::bytes);
            let sent = match &mut self.carrier {
                Carrier::Socket(socket) => {
                    let waiting: Vec<IoSlice<'_>> = frames.map(IoSlice::new).collect();
                    send_each(socket.as_fd(), &waiting)
                }
                Carrier::Device(device) => {
                    DeviceFile(device).write(frames.next().unwrap_or_default()).map(|_| 1)
                }
                Carrier::Memory(memory) => memory.send(frames),
            };
            match sent {
                Ok(count) => (0..count).for_each(|_| self.drop_first()),
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (ErrorKind::WouldBlock, _) => self.blocked = true,
                    (ErrorKind::Interrupted, _) => {}
                    (_, Some(libc::EBADFD | libc::EBADF)) => return Err(error),
                    // A card that is down, or closed, or does not like this frame.
                    _ => self.drop_first(),
                },
            }
        }
        if self.placed > 0 {
            self.wake();
        }
        Ok(())
    }

    fn wake(&mut self) {
        self.placed = 0;
        if let Carrier::Memory(memory) = &mut self.carrier {
            // One that is gone is not woken.
            let _ = memory.wake();
        }
    }

    fn push(&mut self, frame: Frame) {
        self.weight += frame.length;
        self.queue.push_back(frame);
    }

    fn drop_first(&mut self) {
        let Some(frame) = self.queue.pop_front() else { return };
        self.weight -= frame.length;
        self.recycle(frame);
    }

    fn recycle(&mut self, frame: Frame) {
        if self.spare.len() < SPARE {
            self.spare.push(frame.buffer);
        }
    }

    /// A frame with its hardware addresses, and where its body begins.
    fn begin(&mut self, length: usize) -> (Frame, usize) {
        let start = self.header + ETHERNET_HEADER;
        let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0; LONGEST]);
        buffer[..start].fill(0);
        buffer[start - ETHERNET_HEADER..start - 8].copy_from_slice(&self.guest);
        buffer[start - 8..start - 2].copy_from_slice(&HOST_MAC);
        (Frame { buffer, length: start + length }, start)
    }
}

/// Has the card complete a TCP segment's checksum if it must ever be seen: the field gets the sum
/// over the pseudo header, and the header says where the rest begins (virtio 1.2, section 5.1.6).
fn leave_checksum_to_card(frame: &mut [u8], header: usize) {
    const NEEDS_CHECKSUM: u8 = 1;
    /// Where TCP has its checksum.
    const FIELD: usize = 16;
    let start = header + ETHERNET_HEADER;
    let Some(super::frame::Frame::Ip(_, packet)) = super::frame::parse(&frame[header..]) else {
        return;
    };
    if packet.protocol != TCP {
        return;
    }
    let header_length = packet.whole.len() - packet.payload.len();
    let sum = Sum::of_pseudo_header(packet.source, packet.destination, TCP, packet.payload.len());
    let at = start + header_length + FIELD;
    frame[at..at + 2].copy_from_slice(&sum.partial().to_be_bytes());
    frame[0] = NEEDS_CHECKSUM;
    let checksum_start = (ETHERNET_HEADER + header_length) as u16;
    frame[6..8].copy_from_slice(&checksum_start.to_ne_bytes());
    frame[8..10].copy_from_slice(&(FIELD as u16).to_ne_bytes());
}

/// Whether it is worth trying again later: nothing there, a signal, or an interface that is down.
fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::EIO))
}
