//! The machine's name, its loopback interface and its network card.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use crate::protocol::{Boot, CardKind, CardSource, Namespaces, NetworkCard, Seal};
use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::sethostname;

use crate::netlink::{Link, Requests};
use crate::sys;

/// What the card is called, as on most machines.
const CARD: &str = "eth0";
/// The other end of the pair, where the card is one.
const PEER: &str = "eth0-outside";

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
        CardSource::Made(socket) => Some((socket, make(card.mtu)?)),
    };
    let device = match &card.source {
        CardSource::Kernel(device) => device.as_str(),
        CardSource::Made(_) => CARD,
    };
    let index = if_nametoindex(device).with_context(|| format!("there is no {device}"))?;
    let mut requests = Requests::default();
    let address = Some(card.mac);
    requests.set_link(&Link { index, name: CARD, address, mtu: card.mtu, silent: false });
    for end in &card.ends {
        requests.add_address(index, end.address, end.prefix);
        requests.add_default_route(index, end.gateway);
    }
    requests.send()?;
    made.map_or(Ok(()), |(socket, (kind, other_end))| pass_on(socket, kind, &other_end))
}

/// Makes a card out of nothing: a pair of links with a packet socket on the second one, which takes
/// many frames in one call, or, where that is closed to us, a TAP device.
fn make(mtu: u32) -> Result<(CardKind, OwnedFd)> {
    let denied = match make_pair(mtu) {
        Ok(socket) => return Ok((CardKind::Socket, socket)),
        Err(error) => error,
    };
    let device = sys::network::open_tap(CARD)
        .with_context(|| format!("no pair of links ({denied:#}), and no TAP device"))?;
    Ok((CardKind::Device, device))
}

fn make_pair(mtu: u32) -> Result<OwnedFd> {
    // First, for without it there shall be no pair.
    let socket = sys::network::open_packet_socket().context("open a packet socket")?;
    let mut requests = Requests::default();
    requests.make_pair(CARD, PEER);
    requests.send()?;
    let index = if_nametoindex(PEER)?;
    // Nobody is behind it: it has nothing to say of its own.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{PEER}/disable_ipv6"), "1");
    let mut requests = Requests::default();
    requests.set_link(&Link { index, name: PEER, address: None, mtu, silent: true });
    requests.send()?;
    sys::network::listen_at(&socket, index).context("bind the packet socket")?;
    Ok(socket)
}

fn pass_on(socket: RawFd, kind: CardKind, other_end: &OwnedFd) -> Result<()> {
    let socket = sys::adopt(socket).context("take the socket for the card over")?;
    let fds = [other_end.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let byte = [kind as u8];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&byte)], &control, MsgFlags::empty(), None)
        .context("pass the card on")?;
    Ok(())
}
