//! The two queues of frames in the guest's memory.
//!
//! Both sides say up to which entry they want to sleep (virtio 1.2, section 2.7.10), so a stream wakes
//! nobody who is awake.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::Epoll;
use nix::sys::socket::{MsgFlags, send};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::{HEADER, gone};

/// The queue of frames for the guest.
pub const TO_GUEST: usize = 0;
/// The queue of frames from it.
pub const FROM_GUEST: usize = 1;

/// The most entries of a queue, as the guest may choose.
const MOST_ENTRIES: u16 = 1024;
/// Parts of the longest frame: a page each, and one for its header.
const PARTS: usize = 20;

/// See the module. There is nothing in them before the guest has announced them.
pub struct Rings {
    /// Is told whom to be woken by.
    pub(super) epoll: Arc<Epoll>,
    /// The longest packet.
    pub(super) mtu: usize,
    /// The guest's memory, by the addresses that its driver knows.
    pub(super) memory: Option<GuestMemoryMmap>,
    /// The same as the guest has announced it.
    pub(super) regions: Vec<VhostUserMemoryRegion>,
    /// By their numbers.
    pub(super) queues: [Queue; 2],
    /// What wakes the guest: sockets, to which its kernel wants eight bytes written.
    pub(super) calls: [Option<File>; 2],
    /// What the guest wakes us by.
    pub(super) kicks: [Option<File>; 2],
    /// Entries that were read and can be given back.
    taken: Vec<u16>,
}

impl Rings {
    /// Rings that are yet to be announced.
    pub fn new(epoll: Arc<Epoll>, mtu: usize) -> Self {
        // It fails for sizes only that are no power of two.
        let queues = [(); 2].map(|()| Queue::new(MOST_ENTRIES).expect("a power of two"));
        Self {
            epoll,
            mtu,
            memory: None,
            regions: Vec::new(),
            queues,
            calls: [None, None],
            kicks: [None, None],
            taken: Vec::new(),
        }
    }

    /// See [`super::Virtio::receive`].
    pub fn receive(&mut self, buffers: &mut [Vec<u8>], lengths: &mut [usize]) -> io::Result<usize> {
        let Self { memory: Some(memory), queues, taken, .. } = self else { return Err(nothing()) };
        let queue = &mut queues[FROM_GUEST];
        if !queue.ready() {
            return Err(nothing());
        }
        taken.clear();
        let mut places = buffers.iter_mut().zip(lengths);
        loop {
            for chain in queue.iter(&*memory).map_err(gone)?.take(places.len()) {
                taken.push(chain.head_index());
                let Some((buffer, length)) = places.next() else { break };
                let mut filled = 0;
                for part in chain.readable() {
                    let place = buffer.get_mut(filled..filled + part.len() as usize);
                    // Longer than any frame.
                    let Some(place) = place else { break };
                    memory.read_slice(place, part.addr()).map_err(gone)?;
                    filled += place.len();
                }
                *length = filled.max(HEADER);
            }
            // More may have come before we were ready to be woken.
            if places.len() == 0 || !queue.enable_notification(&*memory).map_err(gone)? {
                break;
            }
        }
        for entry in &*taken {
            queue.add_used(&*memory, *entry, 0).map_err(gone)?;
        }
        let count = taken.len();
        // A guest that is gone cannot be woken; what it has sent counts.
        let _ = self.wake(FROM_GUEST);
        if count == 0 { Err(nothing()) } else { Ok(count) }
    }

    /// See [`super::Virtio::send`].
    pub fn send<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let Self { memory: Some(memory), queues, .. } = self else { return Err(nothing()) };
        let queue = &mut queues[TO_GUEST];
        if !queue.ready() {
            return Err(nothing());
        }
        let mut sent = 0;
        for frame in frames {
            let mut chain = queue.iter(&*memory).map_err(gone)?.next();
            // It may have made room before we were ready to be woken.
            if chain.is_none() && queue.enable_notification(&*memory).map_err(gone)? {
                chain = queue.iter(&*memory).map_err(gone)?.next();
            }
            let Some(chain) = chain else { break };
            let entry = chain.head_index();
            let mut rest = frame;
            for part in chain.writable() {
                let (now, later) = rest.split_at(rest.len().min(part.len() as usize));
                memory.write_slice(now, part.addr()).map_err(gone)?;
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            // A buffer that is too short for the frame is given back without it.
            let length = if rest.is_empty() { frame.len() } else { 0 };
            queue.add_used(&*memory, entry, length as u32).map_err(gone)?;
            sent += 1;
        }
        self.wake(TO_GUEST)?;
        if sent == 0 { Err(nothing()) } else { Ok(sent) }
    }

    /// See [`super::Virtio::has_room`].
    pub fn has_room(&mut self) -> io::Result<bool> {
        let Self { memory: Some(memory), queues, .. } = self else { return Ok(false) };
        let queue = &mut queues[TO_GUEST];
        if !queue.ready() {
            return Ok(false);
        }
        let offered = queue.avail_idx(&*memory, Ordering::Acquire).map_err(gone)?;
        // It may make room before we are ready to be woken.
        Ok(offered.0 != queue.next_avail() || queue.enable_notification(&*memory).map_err(gone)?)
    }

    /// See [`super::Virtio::put`].
    pub fn put(
        &mut self,
        head: &[u8],
        length: usize,
        copy: impl FnOnce(&[VolatileSlice<'_>]) -> bool,
    ) -> io::Result<()> {
        let Self { memory: Some(memory), queues, .. } = self else { return Err(nothing()) };
        let queue = &mut queues[TO_GUEST];
        let chain = queue.iter(&*memory).map_err(gone)?.next().ok_or_else(nothing)?;
        let entry = chain.head_index();
        let (mut rest, mut left, mut places) = (head, length, Vec::with_capacity(PARTS));
        for part in chain.writable() {
            let room = part.len() as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            memory.write_slice(now, part.addr()).map_err(gone)?;
            rest = later;
            let body = left.min(room - now.len());
            if body > 0 {
                let place = part.addr().checked_add(now.len() as u64).ok_or_else(nothing)?;
                places.push(memory.get_slice(place, body).map_err(gone)?);
                left -= body;
            }
            if rest.is_empty() && left == 0 {
                break;
            }
        }
        let is_whole = rest.is_empty() && left == 0 && copy(&places);
        // As above, a buffer is given back without a frame that did not come to be.
        let length = if is_whole { head.len() + length } else { 0 };
        queue.add_used(&*memory, entry, length as u32).map_err(gone)
    }

    /// Wakes the guest if it sleeps and there is something new in a queue.
    pub fn wake(&mut self, queue: usize) -> io::Result<()> {
        let Self { memory: Some(memory), queues, calls, .. } = self else { return Ok(()) };
        if queues[queue].needs_notification(&*memory).map_err(gone)?
            && let Some(call) = &calls[queue]
        {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(call.as_raw_fd(), &1u64.to_ne_bytes(), flags) {
                // It was woken more often than it has looked.
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(gone(errno)),
            }
        }
        Ok(())
    }
}

fn nothing() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}
