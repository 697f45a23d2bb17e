//! The guest's network: Ethernet frames on a descriptor on one side, this process's own sockets on
//! the other. No privileges, no helper program, no packet filter.
//!
//! ```text
//! stack -> { tcp, udp, dns, ping, neighbour, reassembly } -> core -> { link, policy, names, log, outside }
//!                                                                 -> { frame, emit, checksum }
//!                                                          link -> virtio
//! ```
//!
//! Where the card is one of a pair of links, TCP connections that move much are handed over to the kernel
//! at the other link: see [`outside`]. Where the card is in the guest's memory, what they bring is copied
//! there straight from the host's socket.
//!
//! One thread runs it. Everything that it keeps is bounded, whatever the guest sends, and nothing
//! that the guest sends can make it fail. If it ends all the same, whoever holds the [`Network`]
//! learns of it by a descriptor.

mod addresses;
mod checksum;
mod core;
mod dns;
mod emit;
mod frame;
mod icmp;
mod link;
mod log;
mod names;
mod neighbour;
mod outside;
mod ping;
pub mod policy;
pub mod proxy;
pub mod publish;
mod reassembly;
mod stack;
mod tcp;
mod udp;
mod virtio;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

pub use addresses::{Addresses, GUEST_MAC, HOST_MAC, PREFIX_V4, PREFIX_V6};
use anyhow::{Context, Result, anyhow};
pub use dns::for_guest as resolv_conf_for_guest;
pub use link::{Card, CardKind, Inbox};
pub use log::{Contact, Fate, Protocol, Record};
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::pipe2;
pub use outside::Outside;
pub use stack::Stack;

use policy::Policy;
use publish::Published;

/// What is added to the counter that stops a network, where that shall not wait for anybody.
const AT_ONCE: u64 = 1 << 32;

/// All that a guest's network depends on.
#[derive(Debug)]
pub struct Settings {
    /// Which addresses it has.
    pub addresses: Addresses,
    /// Where the guest may connect to.
    pub policy: Policy,
    /// Ports of the host's loopback that it reaches at the gateway's address.
    pub host_loopback: BTreeSet<u16>,
    /// Host ports that lead into it.
    pub published: Vec<Published>,
    /// The file that names the host's resolvers.
    pub resolv_conf: PathBuf,
    /// Whether every contact is remembered, or only those that were denied.
    pub log_everything: bool,
}

/// A running network.
#[derive(Debug)]
pub struct Network {
    thread: Option<JoinHandle<std::io::Result<Record>>>,
    stop: Arc<EventFd>,
    ended: OwnedFd,
}

impl Network {
    /// Starts one behind a card.
    pub fn start(card: Card, settings: Settings) -> Result<Self> {
        let stack = Stack::new(card, settings).context("prepare the guest's network")?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("prepare the guest's network")?;
        let stop = Arc::new(stop);
        let its_stop = Arc::clone(&stop);
        let (ended, lives) = pipe2(OFlag::O_CLOEXEC).context("prepare the guest's network")?;
        let run = move || {
            // Closed when the thread ends, however it does.
            let _lives = lives;
            stack.run(&its_stop)
        };
        let thread = thread::Builder::new().name("network".into()).spawn(run);
        let thread = thread.context("start the thread of the guest's network")?;
        Ok(Self { thread: Some(thread), stop, ended })
    }

    /// Readable when the network has ended, which it does not by itself.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Has it end as soon as all that the guest sent has gone on to where it was for, or nobody takes it.
    pub fn finish(&self) {
        // It cannot fail: the counter is far from full.
        let _ = self.stop.write(1);
    }

    /// Ends it at once, if it has not ended, and says whom the guest talked to. The error says why it
    /// ended by itself.
    pub fn stop(&mut self) -> Result<Record> {
        let Some(thread) = self.thread.take() else { return Ok(Record::default()) };
        self.stop.write(AT_ONCE).context("stop the guest's network")?;
        match thread.join() {
            Ok(record) => record.context("the guest's network card"),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(anyhow!("the network's thread panicked: {}", text.unwrap_or_default()))
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The addresses of this machine's interfaces.
pub fn host_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;

    #[test]
    fn whoever_holds_a_network_learns_that_it_ended_and_why() {
        // It can be waited for, and reading it is an error: as with a card that was taken away.
        let fd = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0;
        let card = Card { fd, kind: CardKind::Device, offload: false, mtu: 1500, outside: None };
        let settings = Settings {
            addresses: Addresses::choose(&[]),
            policy: Policy::default(),
            host_loopback: BTreeSet::new(),
            published: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            log_everything: false,
        };
        let mut network = Network::start(card, settings).unwrap();
        let mut fds = [PollFd::new(network.ended(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(Duration::from_secs(10)).unwrap();
        assert_eq!(poll(&mut fds, patience), Ok(1));
        let error = format!("{:#}", network.stop().unwrap_err());
        assert!(error.contains("network card"), "{error}");
    }
}
