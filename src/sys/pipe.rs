//! What waits in a pipe.

use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_read_bad!(
    /// Asks a pipe, from either end, how many bytes nobody has read yet.
    bytes_unread,
    nix::libc::FIONREAD,
    nix::libc::c_int
);

/// Bytes that nobody has read yet from what `fd` writes to, if that is a pipe.
pub fn unread(fd: BorrowedFd<'_>) -> Option<usize> {
    let kind = nix::sys::stat::fstat(fd).ok()?.st_mode & nix::libc::S_IFMT;
    if kind != nix::libc::S_IFIFO {
        return None;
    }
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, to where `bytes` is.
    unsafe { bytes_unread(fd.as_raw_fd(), &mut bytes) }.ok()?;
    usize::try_from(bytes).ok()
}
