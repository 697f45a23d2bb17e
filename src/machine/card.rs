//! The machine's network card, as it comes to us.
//!
//! A guest's is there before the guest is. The init of a namespaces machine makes its own, inside,
//! and passes the other end on.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use sekexe_init::protocol;

use crate::net::{Card, CardKind, Outside};
use crate::sys::net::receive_descriptors;

/// Longest packet of a card: what a TAP device and the receive buffers of a guest's driver take.
pub const MTU: usize = 65_520;

/// Where the card comes from.
#[derive(Debug)]
pub enum Source {
    /// It is here, and the guest's kernel has it under this name.
    Here(Card, &'static str),
    /// The init passes it on here. The number is that of the init's end.
    Passed(OwnedFd, RawFd),
}

impl Source {
    /// A socket over which the init can pass a card on, and the init's end.
    pub fn passed() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .context("create a socket for the network card")?;
        Ok((Self::Passed(ours, theirs.as_raw_fd()), theirs))
    }

    /// What the init is told.
    pub fn for_init(&self) -> protocol::CardSource {
        match self {
            Self::Here(_, device) => protocol::CardSource::Kernel((*device).into()),
            Self::Passed(_, theirs) => protocol::CardSource::Made(*theirs),
        }
    }

    /// The card. One that the init makes is there when the machine is set up, or the init has said
    /// why it is not.
    pub fn take(self) -> Result<Option<Card>> {
        let socket = match self {
            Self::Here(card, _) => return Ok(Some(card)),
            Self::Passed(socket, _) => socket,
        };
        let (kind, descriptors) = match receive_descriptors(socket.as_fd()) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("take the machine's network card"),
        };
        let kind = match kind {
            kind if kind == protocol::CardKind::Socket as u8 => CardKind::Socket,
            kind if kind == protocol::CardKind::Device as u8 => CardKind::Device,
            other => bail!("the init passed on a network card of an unknown kind: {other}"),
        };
        let mut descriptors = descriptors.into_iter();
        let fd = descriptors.next().context("the init passed on a network card that is not there")?;
        let outside = Outside::new(descriptors);
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("take the machine's network card")?;
        Ok(Some(Card { fd, kind, offload: true, mtu: MTU, outside }))
    }
}
