//! Frames in batches: one system call for many messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

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
