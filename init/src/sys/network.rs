//! The two devices that carry Ethernet frames out of namespaces.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Of `linux/if_packet.h`.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Bytes that the packet socket asks to hold; the kernel gives less where its limit is lower.
const PACKET_BUFFER: libc::c_int = 8 << 20;

/// Creates a TAP device, whose frames have a `struct virtio_net_hdr` before them and may lack
/// checksums.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is an `ifreq`, which is what this ioctl reads and writes.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    // SAFETY: the argument of this ioctl is a number.
    Errno::result(unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(libc::TUN_F_CSUM))
    })?;
    Ok(device.into())
}

/// Opens a socket for frames with the same header, which has none of its own yet.
pub fn open_packet_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // With a protocol it would listen at once, and to listen elsewhere waits for a grace period.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    for (level, option, value, needed) in [
        (libc::SOL_PACKET, PACKET_VNET_HDR, 1, true),
        (libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, true),
        (libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1, false),
        (libc::SOL_SOCKET, libc::SO_RCVBUF, PACKET_BUFFER, false),
        (libc::SOL_SOCKET, libc::SO_SNDBUF, PACKET_BUFFER, false),
    ] {
        // SAFETY: the value is an `int`, as long as said.
        let done = Errno::result(unsafe {
            let value: *const libc::c_int = &value;
            libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), size_of::<libc::c_int>() as u32)
        });
        if needed {
            done?;
        }
    }
    Ok(socket)
}

/// Gives a packet socket every frame that comes in at an interface.
pub fn listen_at(socket: &OwnedFd, index: u32) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    // SAFETY: the address is a `sockaddr_ll`, as long as said.
    Errno::result(unsafe {
        let address: *const libc::sockaddr_ll = &address;
        libc::bind(socket.as_raw_fd(), address.cast(), size_of::<libc::sockaddr_ll>() as u32)
    })?;
    Ok(())
}

/// What can be switched at a link.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Offload {
    /// Segments that are longer than a packet leave as they are.
    Segmentation = 0x1f,
    /// Segments that came are put together, and to that end go through a queue.
    Gathering = 0x2c,
}

/// Switches something on or off at a link of the network that the socket is in.
pub fn switch(socket: &OwnedFd, name: &str, offload: Offload, on: bool) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        value: u32,
    }
    let mut value = Value { command: offload as u32, value: on.into() };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request is an `ifreq` whose data, which is live, is what this ioctl reads.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) })?;
    Ok(())
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}
