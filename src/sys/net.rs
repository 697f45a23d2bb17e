//! Frames in batches: one system call for many messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

/// Most messages that one call moves.
pub const BATCH: usize = 32;

/// Receives as many messages as there are, one into each buffer, without waiting. Fills in their
/// lengths and says how many came.
pub fn receive_each(
    socket: BorrowedFd<'_>,
    buffers: &mut [IoSliceMut<'_>],
    lengths: &mut [usize],
) -> io::Result<usize> {
    let count = buffers.len().min(lengths.len()).min(BATCH);
    // SAFETY: `mmsghdr` is plain data for which all zeroes is valid.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (message, buffer) in messages.iter_mut().zip(&mut buffers[..count]) {
        // `IoSliceMut` has the layout of `iovec`.
        message.msg_hdr.msg_iov = std::ptr::from_mut(buffer).cast();
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` messages each have one vector, which describes a buffer that is
    // borrowed until we return.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (length, message) in lengths.iter_mut().zip(&messages[..received]) {
        *length = message.msg_len as usize;
    }
    Ok(received)
}

/// Sends messages without waiting; says how many went.
pub fn send_each(socket: BorrowedFd<'_>, frames: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = frames.len().min(BATCH);
    // SAFETY: `mmsghdr` is plain data for which all zeroes is valid.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (message, frame) in messages.iter_mut().zip(frames) {
        // `IoSlice` has the layout of `iovec`, and the kernel only reads what it describes.
        message.msg_hdr.msg_iov = std::ptr::from_ref(frame).cast_mut().cast();
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` messages each have one vector, which describes bytes that are
    // borrowed until we return.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives one byte and the descriptors that come with it, at most six, without waiting.
pub fn receive_descriptors(socket: BorrowedFd<'_>) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 6]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let descriptors = message.cmsgs()?.flat_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors,
        _ => Vec::new(),
    });
    // SAFETY: the kernel has just made these descriptors for us.
    let descriptors = descriptors.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).collect();
    Ok((byte[0], descriptors))
}

/// Has the kernel close a descriptor at its leisure, where closing it here would wait: for a grace period
/// of all CPUs, as with a packet socket, or until a network device is gone.
///
/// It travels in a message, together with the only descriptor of the socket that the message waits at.
/// Nobody can ever read that, so the kernel's collector of such messages (`net/unix/garbage.c`) throws it
/// away, from Linux 6.9 on in a thread of its own.
pub fn leave_to_collector(fd: OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    if let Ok((post, letterbox)) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags) {
        let fds = [letterbox.as_raw_fd(), fd.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        // If it cannot travel, it is closed right here.
        let _ =
            sendmsg::<()>(post.as_raw_fd(), &[IoSlice::new(&[0])], &control, MsgFlags::MSG_DONTWAIT, None);
        // In this order: the collector, which the last of them wakes, shall find no other owner.
        drop(fd);
        drop(letterbox);
        drop(post);
    }
}

/// Has the C library keep allocations of this size and above in mappings of their own: they come
/// zeroed without being touched, so that they take memory only as they are used, and give it back.
/// By itself it stops doing so after the first one was freed.
pub fn map_allocations_from(bytes: libc::c_int) {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number that later allocations look at.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}
