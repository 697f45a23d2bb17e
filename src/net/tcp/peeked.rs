//! Data for the guest that stay in the host's socket until the guest has them.
//!
//! smoltcp keeps what it may have to send again in a buffer of its own; from there it is copied into a
//! frame, and that into the guest's memory. Where we write to that memory ourselves, one copy is enough:
//! smoltcp learns only how many bytes there are, and sends as many that mean nothing. In their place
//! the guest gets those that the host's socket shows without giving them away (`MSG_PEEK` from
//! `SO_PEEK_OFF` on, which TCP knows from Linux 6.9 on). What the guest has acknowledged is thrown away.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use smoltcp::socket::tcp::Socket;
use vm_memory::VolatileSlice;

use crate::sys::tcp::{discard, has_more, peek, peek_from, unread};

/// See the module.
#[derive(Debug)]
pub struct Peeked {
    /// Number of the first byte that is still in the host's socket.
    first: u32,
    /// Bytes from there on that smoltcp knows of.
    told: usize,
    /// Number of the byte that the socket shows next, where that is certain.
    next: Option<u32>,
    failure: Option<ErrorKind>,
}

impl Peeked {
    /// From the next byte on, which has this number. The error is that of a host that cannot do so.
    pub fn begin(host: BorrowedFd<'_>, first: u32) -> io::Result<Self> {
        peek_from(host, 0)?;
        Ok(Self { first, told: 0, next: Some(first), failure: None })
    }

    /// Tells smoltcp of what has come since, as far as it takes more, and says how much that was.
    pub fn tell(&mut self, host: BorrowedFd<'_>, guest: &mut Socket<'_>) -> io::Result<usize> {
        let news = unread(host)?.saturating_sub(self.told);
        let mut left = news;
        while left > 0 && guest.can_send() {
            let taken = guest.send(|room| {
                let taken = room.len().min(left);
                (taken, taken)
            });
            left -= taken.map_err(io::Error::other)?;
        }
        self.told += news - left;
        Ok(news - left)
    }

    /// Whether nothing comes after what smoltcp knows of.
    pub fn is_at_end(&mut self, host: BorrowedFd<'_>) -> io::Result<bool> {
        self.next = None;
        peek_from(host, self.told)?;
        Ok(!has_more(host)?)
    }

    /// The guest has everything that smoltcp knows of but the last so many bytes.
    pub fn throw_away(&mut self, host: BorrowedFd<'_>, left: usize) -> io::Result<()> {
        while self.told > left {
            let count = discard(host, self.told - left)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.told -= count;
            self.first = self.first.wrapping_add(count as u32);
        }
        Ok(())
    }

    /// Copies the bytes from this number on into these places, or keeps in mind why it cannot.
    pub fn copy(&mut self, host: BorrowedFd<'_>, number: u32, places: &[VolatileSlice<'_>]) -> bool {
        let copied = self.try_copy(host, number, places);
        if let Err(error) = &copied {
            self.next = None;
            self.failure = Some(error.kind());
        }
        copied.is_ok()
    }

    /// Why bytes that smoltcp sent did not come.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.failure
    }

    fn try_copy(
        &mut self,
        host: BorrowedFd<'_>,
        number: u32,
        places: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        let length: usize = places.iter().map(VolatileSlice::len).sum();
        if length == 0 {
            return Ok(());
        }
        if self.next != Some(number) {
            peek_from(host, number.wrapping_sub(self.first) as usize)?;
        }
        let mut copied = peek(host, places)?;
        // It ends before an urgent byte.
        while copied < length {
            match peek(host, &after(places, copied))? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                more => copied += more,
            }
        }
        self.next = Some(number.wrapping_add(length as u32));
        Ok(())
    }
}

/// What is left of these places after so many bytes.
fn after<'a>(places: &[VolatileSlice<'a>], mut count: usize) -> Vec<VolatileSlice<'a>> {
    let left = places.iter().filter_map(|place| {
        let used = count.min(place.len());
        count -= used;
        place.offset(used).ok()
    });
    left.filter(|place| !place.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::{Duration, Instant};

    use nix::sys::socket::{MsgFlags, send};
    use smoltcp::socket::tcp::SocketBuffer;

    use super::*;

    /// A peer and the host's socket that it is connected to.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        (peer, host)
    }

    fn wait_for(host: &TcpStream, bytes: usize) {
        let start = Instant::now();
        while unread(host.as_fd()).unwrap() < bytes {
            assert!(start.elapsed() < Duration::from_secs(10), "the bytes do not come");
        }
    }

    /// As many bytes as there are in two places, from this number on.
    fn copied(peeked: &mut Peeked, host: &TcpStream, number: u32, lengths: [usize; 2]) -> Option<Vec<u8>> {
        let mut bytes = vec![0; lengths[0] + lengths[1]];
        let (first, second) = bytes.split_at_mut(lengths[0]);
        let places = [VolatileSlice::from(first), VolatileSlice::from(second)];
        peeked.copy(host.as_fd(), number, &places).then_some(bytes)
    }

    #[test]
    fn bytes_can_be_had_again_until_they_are_thrown_away() {
        let (mut peer, host) = pair();
        let first = u32::MAX - 3;
        let mut peeked = Peeked::begin(host.as_fd(), first).unwrap();
        peer.write_all(b"0123456789").unwrap();
        wait_for(&host, 10);
        peeked.told = 10;
        assert_eq!(copied(&mut peeked, &host, first, [1, 3]).unwrap(), b"0123");
        assert_eq!(copied(&mut peeked, &host, 0, [2, 2]).unwrap(), b"4567");
        assert_eq!(copied(&mut peeked, &host, first, [5, 0]).unwrap(), b"01234", "again");
        peeked.throw_away(host.as_fd(), 5).unwrap();
        assert_eq!(copied(&mut peeked, &host, 1, [4, 1]).unwrap(), b"56789");
        assert_eq!(unread(host.as_fd()).unwrap(), 5);
        assert_eq!(peeked.failure(), None);
    }

    #[test]
    fn bytes_that_are_not_there_are_a_failure() {
        let (mut peer, host) = pair();
        let mut peeked = Peeked::begin(host.as_fd(), 7).unwrap();
        peer.write_all(b"abc").unwrap();
        wait_for(&host, 3);
        peeked.told = 3;
        assert_eq!(copied(&mut peeked, &host, 7, [2, 2]), None);
        assert_eq!(peeked.failure(), Some(ErrorKind::WouldBlock));
        // What was acknowledged before is gone, and nobody asks for it but by mistake.
        peeked.throw_away(host.as_fd(), 0).unwrap();
        assert_eq!(copied(&mut peeked, &host, 7, [1, 0]), None);
    }

    #[test]
    fn the_end_comes_after_everything_else() {
        let (mut peer, host) = pair();
        let mut peeked = Peeked::begin(host.as_fd(), 0).unwrap();
        assert!(!peeked.is_at_end(host.as_fd()).unwrap(), "more may come");
        peer.write_all(b"last").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        wait_for(&host, 4);
        assert!(!peeked.is_at_end(host.as_fd()).unwrap());
        peeked.told = 4;
        let start = Instant::now();
        while !peeked.is_at_end(host.as_fd()).unwrap() {
            assert!(start.elapsed() < Duration::from_secs(10), "no end");
        }
        assert_eq!(copied(&mut peeked, &host, 0, [4, 0]).unwrap(), b"last");
    }

    #[test]
    fn an_urgent_byte_is_one_of_the_others() {
        let (mut peer, host) = pair();
        let mut peeked = Peeked::begin(host.as_fd(), 0).unwrap();
        peer.write_all(b"be").unwrap();
        send(peer.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
        peer.write_all(b"fore").unwrap();
        wait_for(&host, 7);
        peeked.told = 7;
        assert_eq!(copied(&mut peeked, &host, 0, [3, 4]).unwrap(), b"be!fore");
    }

    #[test]
    fn smoltcp_is_told_of_nothing_while_it_cannot_send() {
        let (mut peer, host) = pair();
        let mut peeked = Peeked::begin(host.as_fd(), 0).unwrap();
        let mut guest = Socket::new(SocketBuffer::new(vec![0; 64]), SocketBuffer::new(vec![0; 64]));
        peer.write_all(b"some").unwrap();
        wait_for(&host, 4);
        assert_eq!(peeked.tell(host.as_fd(), &mut guest).unwrap(), 0);
    }
}
