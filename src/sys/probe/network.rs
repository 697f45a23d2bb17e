//! Interfaces of a network namespace.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::libc;
use nix::sys::stat::Mode;

/// Switches `lo` on.
pub fn raise_loopback() -> nix::Result<()> {
    let mut request = request(b"lo");
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: a plain system call; a result of zero or more is a new descriptor that we own.
    let socket = unsafe {
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        OwnedFd::from_raw_fd(Errno::result(libc::socket(libc::AF_INET, flags, 0))?)
    };
    // SAFETY: this ioctl reads an `ifreq`.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) }).map(drop)
}

/// Creates a TAP interface, which goes with its descriptor.
pub fn create_tap() -> nix::Result<()> {
    let tun = open(c"/dev/net/tun", super::DEVICE, Mode::empty())?;
    let mut request = request(b"");
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: this ioctl reads an `ifreq` and writes the interface's name into it.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) }).map(drop)
}

fn request(name: &[u8]) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request
}
