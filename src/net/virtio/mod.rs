//! A network card in the guest's own memory: its driver and we read and write the same pages, so no
//! call carries a frame, and each is copied once on its way (virtio 1.2, section 5.1).
//!
//! Over a socket the guest's kernel says where its memory and its two queues are ([`announce`]). From
//! then on either side writes down in them where frames are ([`rings`]), and wakes the other one where
//! that sleeps.
//!
//! The guest may be hostile: it is the guest's root who fills that memory. Frames are copied out of it
//! before anybody reads them, its size is sealed, nothing that comes over the socket can make us wait
//! for long, and a guest that does not keep to the rules has no card any more.

mod announce;
mod rings;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vhost::vhost_user::BackendReqHandler;
use vm_memory::VolatileSlice;

use rings::{Rings, TO_GUEST};

/// Bytes of `struct virtio_net_hdr_v1`, which stands before each frame.
pub const HEADER: usize = 12;

/// How long a guest may take for the rest of a message, and to make room for an answer.
const PATIENCE: Duration = Duration::from_millis(200);
/// Messages that are taken in one turn; a guest announces its card with some thirty.
const MESSAGES: usize = 64;
/// What an event is about that is about no queue.
const SOCKET: u64 = u64::MAX;

/// See the module.
pub struct Virtio {
    epoll: Arc<Epoll>,
    /// Until the end of the card.
    guest: Option<BackendReqHandler<Mutex<Rings>>>,
    rings: Arc<Mutex<Rings>>,
}

impl Virtio {
    /// A card for the guest at the other end of this socket, for packets up to `mtu` bytes.
    pub fn new(socket: OwnedFd, mtu: usize) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
        let rings = Arc::new(Mutex::new(Rings::new(Arc::clone(&epoll), mtu)));
        let guest = BackendReqHandler::from_stream(socket, Arc::clone(&rings));
        Ok(Self { epoll, guest: Some(guest), rings })
    }

    /// Readable when there is something that [`Self::attend`] shall see to.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Sees to what happened, and says whether the guest may have made room for more frames. The error
    /// is the end of the card.
    pub fn attend(&mut self) -> io::Result<bool> {
        let attended = self.take_events();
        // A guest that waits for an answer shall not do so for ever.
        self.guest.take_if(|_| attended.is_err());
        attended
    }

    fn take_events(&mut self) -> io::Result<bool> {
        let mut has_room = false;
        for _ in 0..MESSAGES {
            let mut events = [EpollEvent::empty(); 3];
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Err(Errno::EINTR) => 0,
                result => result?,
            };
            let mut said_something = false;
            for event in &events[..count] {
                said_something |= event.data() == SOCKET;
                has_room |= event.data() == TO_GUEST as u64;
            }
            if !said_something {
                break;
            }
            self.take_message()?;
            // It may have been the last one that the card was waiting for.
            has_room = true;
        }
        Ok(has_room)
    }

    /// Takes frames of the guest's, each with the header before it, into buffers that are long enough,
    /// and says how many came. [`io::ErrorKind::WouldBlock`] where there are none.
    pub fn receive(&mut self, buffers: &mut [Vec<u8>], lengths: &mut [usize]) -> io::Result<usize> {
        self.rings().receive(buffers, lengths)
    }

    /// Gives the guest frames, each with the header before it, and says how many it took.
    /// [`io::ErrorKind::WouldBlock`] where there is no room.
    pub fn send<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        self.rings().send(frames)
    }

    /// Whether the guest has room for a frame. If not, it says when it has.
    pub fn has_room(&mut self) -> bool {
        self.rings().has_room().unwrap_or(false)
    }

    /// Gives the guest a frame that begins with `head` and goes on with so many bytes, which `copy`
    /// brings to their places, or says that it cannot. The guest need not notice before [`Self::wake`].
    pub fn put(
        &mut self,
        head: &[u8],
        length: usize,
        copy: impl FnOnce(&[VolatileSlice<'_>]) -> bool,
    ) -> io::Result<()> {
        self.rings().put(head, length, copy)
    }

    /// Wakes the guest if it waits for frames and there are new ones.
    pub fn wake(&mut self) -> io::Result<()> {
        self.rings().wake(TO_GUEST)
    }

    fn take_message(&mut self) -> io::Result<()> {
        match self.guest.as_mut().map(BackendReqHandler::handle_request) {
            Some(Ok(())) => Ok(()),
            // That a message is not complete in time is an error, too.
            Some(Err(error)) => Err(gone(error)),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        // Whoever panicked with it was this thread.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the card.
fn gone(why: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why)
}
