//! The machine's name, its loopback interface and its network card.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use crate::protocol::{Boot, CardKind, CardSource, Namespaces, NetworkCard, PEER, PEER_INDEX, Seal};
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socket};
use nix::unistd::sethostname;

use crate::netlink::{LOOPBACK, Link, Requests};
use crate::sys;
use crate::sys::network::Offload;

/// What the card is called, as on most machines.
const CARD: &str = "eth0";
/// How the network that it is in is set up. The first three would come from the host's own network,
/// and make the kernel answer what is not for it; then the bytes of a connection's buffers: the least,
/// the first and the most.
const QUIET: [(&str, &str); 5] = [
    ("ip_forward", "0"),
    ("conf/all/route_localnet", "0"),
    ("conf/default/route_localnet", "0"),
    ("tcp_rmem", "4096 131072 4194304"),
    ("tcp_wmem", "4096 65536 4194304"),
];

/// The same of IPv6: nothing is forwarded, nothing comes to be by itself, and nobody answers.
const QUIET_V6: [(&str, &str); 4] = [
    ("conf/all/forwarding", "0"),
    ("conf/default/accept_ra", "0"),
    ("conf/default/addr_gen_mode", "1"),
    ("icmp/echo_ignore_all", "1"),
];

/// Enters a network of the machine's own, unless the seal comes with one.
pub fn enter(namespaces: &Namespaces) -> Result<()> {
    if namespaces.host_network || namespaces.seal == Seal::UserNamespace {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET).context("create a network")
}

/// Gives the machine its name, and where the network is its own, its loopback and its card. What
/// fails is a warning.
pub fn set_up(boot: &Boot, own_network: bool, warnings: &mut Vec<String>) -> Result<()> {
    sethostname(OsStr::from_bytes(&boot.hostname)).context("set the host name")?;
    if !own_network {
        return Ok(());
    }
    sys::interface_up("lo").unwrap_or_else(|e| warnings.push(format!("no loopback: {e:#}")));
    if let Some(card) = &boot.network {
        raise_card(card).unwrap_or_else(|e| warnings.push(format!("no network: {e:#}")));
    }
    Ok(())
}

fn raise_card(card: &NetworkCard) -> Result<()> {
    let made = match card.source {
        CardSource::Kernel(_) => None,
        CardSource::Made(socket) => Some((socket, make(card)?)),
    };
    let device = match &card.source {
        CardSource::Kernel(device) => device.as_str(),
        CardSource::Made(_) => CARD,
    };
    let index = if_nametoindex(device).with_context(|| format!("there is no {device}"))?;
    if made.is_some() {
        // Nothing is lost on the way to us. The host's own choice may send at a measured pace.
        let _ = std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
    } else {
        widen_windows();
    }
    let mut requests = Requests::default();
    let address = Some(card.mac);
    requests.set_link(&Link { index, name: CARD, address, mtu: card.mtu, silent: false });
    for end in card.ends.iter().filter(|end| end.address.is_ipv4() || knows_ipv6()) {
        requests.add_address(index, end.address, end.prefix);
        requests.add_default_route(index, end.gateway);
        // A process may end before its first datagram has waited for an answer.
        requests.add_neighbour(index, end.gateway, card.others_mac);
    }
    requests.send()?;
    made.map_or(Ok(()), |(socket, (kind, fds))| pass_on(socket, kind, &fds))
}

/// Lets connections of the guest's have much under way to them from the start. The kernel finds out how
/// much that should be by the time between segments, which here is that of a wake-up, and it may stay
/// with little.
fn widen_windows() {
    const WINDOW: u64 = 4 << 20;
    const AT: &str = "/proc/sys/net/ipv4/tcp_rmem";
    let bounds = std::fs::read_to_string(AT).unwrap_or_default();
    let mut bounds = bounds.split_whitespace();
    if let (Some(least), Some(_), Some(Ok(most))) =
        (bounds.next(), bounds.next(), bounds.next().map(str::parse::<u64>))
    {
        let _ = std::fs::write(AT, format!("{least} {} {most}", WINDOW.min(most)));
    }
}

/// Whether the kernel does: a guest's may have been built without it.
fn knows_ipv6() -> bool {
    socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).is_ok()
}

/// Makes a card out of nothing: a pair of links with a packet socket on the second one, which takes
/// many frames in one call, or, where that is closed to us, a TAP device.
fn make(card: &NetworkCard) -> Result<(CardKind, Vec<OwnedFd>)> {
    let denied = match make_pair(card) {
        Ok(sockets) => return Ok((CardKind::Socket, sockets)),
        Err(error) => error,
    };
    let device = sys::network::open_tap(CARD)
        .with_context(|| format!("no pair of links ({denied:#}), and no TAP device"))?;
    Ok((CardKind::Device, vec![device]))
}

/// Makes the pair, with its second end in a network of its own if there can be one: there the kernel
/// can be the other end of connections, without the addresses of this network in its way. Says what
/// was opened there.
fn make_pair(card: &NetworkCard) -> Result<Vec<OwnedFd>> {
    let entered = std::thread::spawn(Outside::enter).join();
    let entered = entered.unwrap_or_else(|_| bail!("a thread of the set-up panicked"));
    let (outside, is_apart) = match entered {
        Ok(outside) => (outside, true),
        Err(_) => (Outside::open()?, false),
    };
    outside.make_pair(card, is_apart)?;
    let mut opened = vec![outside.packets];
    if is_apart {
        opened.push(outside.requests);
        opened.extend(outside.connections);
    }
    Ok(opened)
}

/// What was opened in the network that the second end of the pair is in.
struct Outside {
    packets: OwnedFd,
    requests: OwnedFd,
    /// Two of IPv4, and two of IPv6 if that can be had.
    connections: Vec<OwnedFd>,
}

impl Outside {
    /// Has the calling thread enter a network of its own, for good.
    fn enter() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("create a network")?;
        // Nobody is in it: it has nothing to say of its own.
        for (name, value) in QUIET {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).context("silence a network")?;
        }
        let mut outside = Self::open()?;
        if outside.open_v6().is_err() {
            // Something is missing, or all of it.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        }
        Ok(outside)
    }

    /// Opens everything in the network that the calling thread is in.
    fn open() -> Result<Self> {
        let connection = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        Ok(Self {
            packets: sys::network::open_packet_socket().context("open a packet socket")?,
            requests: Requests::socket().context("open a netlink socket")?,
            connections: vec![connection()?, connection()?],
        })
    }

    /// Opens what IPv6 needs besides, once it is silent there.
    fn open_v6(&mut self) -> Result<()> {
        for (name, value) in QUIET_V6 {
            std::fs::write(format!("/proc/sys/net/ipv6/{name}"), value)?;
        }
        let mut requests = Requests::default();
        // Otherwise it would say of all that comes that there is no way.
        requests.add_black_hole(Ipv6Addr::UNSPECIFIED.into());
        requests.send_over(&self.requests)?;
        let connection = || socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        self.connections.extend([connection()?, connection()?]);
        Ok(())
    }

    /// Makes the pair, with its first end in the network of this process.
    fn make_pair(&self, card: &NetworkCard, is_apart: bool) -> Result<()> {
        let mut requests = Requests::default();
        requests.make_pair(PEER, PEER_INDEX, CARD, std::process::id());
        // The kernel takes no notice of frames for somebody else.
        let (mtu, address) = (card.mtu, is_apart.then_some(card.others_mac));
        requests.set_link(&Link { index: LOOPBACK, name: "lo", address: None, mtu, silent: false });
        requests.set_link(&Link { index: PEER_INDEX, name: PEER, address, mtu, silent: true });
        requests.send_over(&self.requests)?;
        if !is_apart {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{PEER}/disable_ipv6"), "1");
        } else {
            // Without, connections that were handed over are slower.
            let _ = self.keep_order();
        }
        sys::network::listen_at(&self.packets, PEER_INDEX).context("bind the packet socket")
    }

    /// Has what goes to the machine arrive in the order in which it was sent, whatever CPU it was sent
    /// on: through one queue, which the kernel uses where the one end may gather segments and the
    /// other does not send longer ones than a packet anyway.
    fn keep_order(&self) -> Result<()> {
        let here = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        sys::network::switch(&here, CARD, Offload::Gathering, true)?;
        Ok(sys::network::switch(&self.connections[0], PEER, Offload::Segmentation, false)?)
    }
}

fn pass_on(socket: RawFd, kind: CardKind, fds: &[OwnedFd]) -> Result<()> {
    let socket = sys::adopt(socket).context("take the socket for the card over")?;
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let byte = [kind as u8];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&byte)], &control, MsgFlags::empty(), None)
        .context("pass the card on")?;
    Ok(())
}
