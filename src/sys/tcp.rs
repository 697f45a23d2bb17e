//! TCP sockets of the kernel whose state somebody else knows, and bytes that never come to us.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::libc;
use nix::sys::socket::{MsgFlags, SockFlag, SockaddrStorage, accept4, recv};
use vm_memory::VolatileSlice;

/// Of `linux/tcp.h`.
const REPAIR_RECEIVE_QUEUE: libc::c_int = 1;
const REPAIR_SEND_QUEUE: libc::c_int = 2;
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW_SCALE: u32 = 3;
const OPTION_SELECTIVE_ACKS: u32 = 4;

/// Of `asm-generic/socket.h` and `linux/socket.h`.
const SO_BUF_LOCK: libc::c_int = 72;
const SOCK_RCVBUF_LOCK: libc::c_int = 2;

/// What two ends of a connection agreed on and how far they have come, from the point of view of
/// one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of the next byte to be sent.
    pub to_send: u32,
    /// Number of the next byte to be received.
    pub to_receive: u32,
    /// Bytes that the other end takes, and those that it was told that we take.
    pub windows: [u32; 2],
    /// Bits by which windows of the other end's and of ours are shifted, if they are.
    pub scales: Option<[u8; 2]>,
    /// The longest segment that the other end takes.
    pub mss: u16,
    /// Whether acknowledgements may be selective.
    pub selective: bool,
}

#[repr(C)]
struct RepairOption {
    code: u32,
    value: u32,
}

#[repr(C)]
struct RepairWindow {
    last_update: u32,
    to_send: u32,
    most_to_send: u32,
    to_receive: u32,
    told_at: u32,
}

/// Makes a fresh socket the end of a connection that exists, without a segment. It sends none before
/// [`resume`].
pub fn restore(
    socket: BorrowedFd<'_>,
    own: SocketAddr,
    other: SocketAddr,
    progress: &Progress,
) -> nix::Result<()> {
    if own.is_ipv4() {
        set(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, &1)?;
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, &1)?;
        // What the socket begins with, and the most that it may be told: it comes to know the longest
        // segment below, but goes by that only where the way's longest packet changes.
        let segment = progress.mss.min(i16::MAX as u16);
        set(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, &libc::c_int::from(segment))?;
    }
    send_unpaced(socket)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1)?;
    bound_buffers(socket);
    set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1)?;
    for (queue, next) in [(REPAIR_SEND_QUEUE, progress.to_send), (REPAIR_RECEIVE_QUEUE, progress.to_receive)]
    {
        set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &queue)?;
        set(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, &next)?;
    }
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(other))?;
    let option =
        |code, value| set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &RepairOption { code, value });
    option(OPTION_MSS, progress.mss.into())?;
    if let Some([others, own]) = progress.scales {
        option(OPTION_WINDOW_SCALE, u32::from(others) | u32::from(own) << 16)?;
    }
    if progress.selective {
        option(OPTION_SELECTIVE_ACKS, 0)?;
    }
    let [others, ours] = progress.windows;
    let window = RepairWindow {
        last_update: progress.to_receive.wrapping_sub(1),
        to_send: others,
        most_to_send: others,
        to_receive: ours,
        told_at: progress.to_receive,
    };
    set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &window)?;
    if own.is_ipv4() {
        // Without options as before; but the kernel then looks at the longest segment anew.
        // SAFETY: no bytes are read from the pointer.
        Errno::result(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, std::ptr::null(), 0)
        })?;
    }
    Ok(())
}

/// Lets a restored socket live, and has it tell the other end its window.
pub fn resume(socket: BorrowedFd<'_>) -> nix::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &0)
}

/// Has a socket's connection, or each connection of a listener, send without a measured pace: for ways
/// within this machine, on which nothing is lost. Where the system's way of congestion control is a
/// paced one (`bbr`), its timers otherwise take most of the time. It has to be said before the socket is
/// connected, which may be how the pacing begins.
pub fn send_unpaced(socket: BorrowedFd<'_>) -> nix::Result<()> {
    // The one that every process on every host may have.
    set(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno".as_slice())
}

/// Bounds what a socket's connection, or each connection of a listener, holds in either direction:
/// 8 MB that were not read and 2 MB that were not sent, or what the host allows where that is less.
/// Otherwise the system lets buffers grow with the traffic, on some hosts to tens of megabytes each.
///
/// A host that does not know one of the options (`SO_BUF_LOCK` is of Linux 5.14) bounds as it likes.
pub fn bound_buffers(socket: BorrowedFd<'_>) {
    const UNREAD: libc::c_int = 4 << 20;
    const UNSENT: libc::c_int = 2 << 20;
    let wake_at = |bytes| set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes);
    // Makes room for so much and for what it costs, as `SO_RCVBUF` may not on most hosts; from then
    // on no more room is made.
    if wake_at(UNREAD).is_ok() {
        let _ = set(socket, libc::SOL_SOCKET, SO_BUF_LOCK, &SOCK_RCVBUF_LOCK);
        let _ = wake_at(1);
    }
    let _ = set(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &UNSENT);
}

/// Takes a connection from a listener.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let accepted = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// Makes a socket one that was never connected.
pub fn disconnect(socket: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: `sockaddr` is plain data for which all zeroes is valid, and says `AF_UNSPEC`.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is as long as said.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), &nobody, size_of_val(&nobody) as u32) })?;
    Ok(())
}

/// Whether the kernel has done with a connection.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    const CLOSED: u8 = 7;
    // SAFETY: `tcp_info` is plain data for which all zeroes is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    let info_at: *mut libc::tcp_info = &mut info;
    // SAFETY: the kernel writes at most `length` bytes to where `info` is.
    let done = Errno::result(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info_at.cast(), &mut length)
    });
    done.is_err() || info.tcpi_state == CLOSED
}

/// Leaves out of what a socket receives all that the filter says 0 for.
pub fn set_filter(socket: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> nix::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Bytes that wait to be received.
pub fn unread(socket: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, to where `bytes` is.
    unsafe { super::pipe::bytes_unread(socket.as_raw_fd(), &mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Has [`peek`] begin so many bytes after the next one to be received, and then go on where it ended.
/// TCP knows that from Linux 6.9 on. An urgent byte is in its place among the others from then on.
pub fn peek_from(socket: BorrowedFd<'_>, offset: usize) -> nix::Result<()> {
    let offset = libc::c_int::try_from(offset).map_err(|_| Errno::EINVAL)?;
    set(socket, libc::SOL_SOCKET, libc::SO_OOBINLINE, &1)?;
    set(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &offset)
}

/// Copies bytes that go on waiting, into one place after the other, and says how many.
pub fn peek(socket: BorrowedFd<'_>, places: &[VolatileSlice<'_>]) -> nix::Result<usize> {
    let part = |place: &VolatileSlice<'_>| libc::iovec {
        iov_base: place.ptr_guard_mut().as_ptr().cast(),
        iov_len: place.len(),
    };
    let mut parts: Vec<libc::iovec> = places.iter().map(part).collect();
    // SAFETY: `msghdr` is plain data for which all zeroes is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the parts are places in memory that is mapped until we return, and that others write
    // to at any time.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    Errno::result(count).map(|count| count as usize)
}

/// Whether a byte would be found there, now or later, rather than the end of the stream.
pub fn has_more(socket: BorrowedFd<'_>) -> nix::Result<bool> {
    match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EAGAIN) => Ok(true),
        found => Ok(found? > 0),
    }
}

/// Receives up to so many bytes without looking at them, and says how many.
pub fn discard(socket: BorrowedFd<'_>, most: usize) -> nix::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with this flag, TCP writes nothing anywhere.
    let count = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), most, flags) };
    Errno::result(count).map(|count| count as usize)
}

/// Moves up to so many bytes from one descriptor to another, of which one is a pipe, without waiting.
pub fn move_bytes(from: impl AsFd, to: impl AsFd, most: usize) -> nix::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    splice(from, None, to, None, most, flags)
}

fn set<T: ?Sized>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> nix::Result<()> {
    // SAFETY: the kernel reads as many bytes as said, and what it finds in them are numbers, or
    // the place of a filter that is borrowed until we return.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as u32,
        )
    };
    Errno::result(done).map(drop)
}
