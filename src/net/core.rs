//! What every part of the stack needs: the way to the guest, the way to be woken, and the rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::addresses::{Addresses, Role};
use super::link::Outbox;
use super::log::Log;
use super::names::Names;
use super::outside::Outside;
use super::policy::{Policy, Reason};
use super::tcp::Flow;

/// The part of the stack that a descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// The frame descriptor.
    Card,
    /// The order to stop.
    Stop,
    /// A TCP connection's host socket.
    Tcp,
    /// A published TCP port.
    TcpListener,
    /// A UDP flow's host socket.
    Udp,
    /// A published UDP port.
    UdpListener,
    /// A question under way to a resolver.
    Dns,
    /// An echo request's host socket.
    Ping,
    /// The kernel's end of a TCP connection of the guest's.
    KernelEnd,
}

impl Owner {
    const ALL: [Self; 9] = [
        Self::Card,
        Self::Stop,
        Self::Tcp,
        Self::TcpListener,
        Self::Udp,
        Self::UdpListener,
        Self::Dns,
        Self::Ping,
        Self::KernelEnd,
    ];
}

/// Where a connection or a datagram of the guest's goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To the first of these host addresses that answers.
    To(Vec<SocketAddr>),
    /// To our own name server.
    Dns,
    /// Nowhere, because the policy forbids it.
    Denied(Reason),
}

/// See the module.
pub struct Core {
    /// Wakes the stack.
    pub epoll: Epoll,
    /// The way to the guest.
    pub out: Outbox,
    /// Who is who.
    pub addresses: Addresses,
    /// Where the guest may connect to.
    pub policy: Policy,
    /// Ports of the host's loopback that it may reach.
    pub host_loopback: BTreeSet<u16>,
    /// What it looked up.
    pub names: Names,
    /// Whom it talked to.
    pub log: Log,
    /// The time of this turn.
    pub now: Instant,
    /// Where connections can be handed over to the kernel, if they can.
    pub outside: Option<Box<Outside>>,
    next_id: u64,
    minds_room: bool,
}

impl Core {
    /// Everything at its start.
    pub fn new(
        out: Outbox,
        outside: Option<Box<Outside>>,
        addresses: Addresses,
        policy: Policy,
        host_loopback: BTreeSet<u16>,
        log: Log,
        now: Instant,
    ) -> nix::Result<Self> {
        let epoll = Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self {
            epoll,
            out,
            outside,
            addresses,
            policy,
            host_loopback,
            names: Names::default(),
            log,
            now,
            next_id: 0,
            minds_room: false,
        })
    }

    /// A number that was never given before.
    pub fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Wakes the stack for `owner` when something happens to a descriptor.
    pub fn watch(&self, fd: impl AsFd, owner: Owner, id: u64, flags: EpollFlags) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(flags, (owner as u64) << 56 | id))
    }

    /// Watches a descriptor for other things than before.
    pub fn watch_again(&self, fd: impl AsFd, owner: Owner, id: u64, flags: EpollFlags) -> nix::Result<()> {
        self.epoll.modify(fd, &mut EpollEvent::new(flags, (owner as u64) << 56 | id))
    }

    /// Whether the stack is woken when the guest takes frames again. Always on, a card that is a
    /// socket would wake us for each frame that the guest has taken.
    pub fn mind_room(&mut self, mind: bool) -> nix::Result<()> {
        if self.minds_room == mind || self.out.tells_of_room() {
            return Ok(());
        }
        self.minds_room = mind;
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        flags.set(EpollFlags::EPOLLOUT, mind);
        match self.watch_again(self.out.fd(), Owner::Card, 0, flags) {
            // The guest has closed it.
            Err(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }

    /// Whom an event concerns.
    pub fn whose(event: &EpollEvent) -> (Owner, u64) {
        let owner = Owner::ALL[(event.data() >> 56) as usize % Owner::ALL.len()];
        (owner, event.data() & ((1 << 56) - 1))
    }

    /// Where what the guest sends to `destination` goes.
    pub fn route(&self, destination: SocketAddr) -> Route {
        let port = destination.port();
        match self.addresses.role(destination.ip()) {
            Role::Gateway if self.host_loopback.contains(&port) => {
                let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
                let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
                let order = if destination.is_ipv4() { [v4, v6] } else { [v6, v4] };
                Route::To(order.map(|address| SocketAddr::new(address, port)).into())
            }
            Role::Gateway => Route::Denied("the host's loopback, and no --host-loopback"),
            Role::Dns if port == 53 => Route::Dns,
            Role::Dns | Role::Nobody | Role::Guest => Route::Denied("nobody is there"),
            Role::Outside => {
                let address = destination.ip();
                match self.policy.judge(address, Some(port), self.names.of(address)) {
                    Ok(()) => Route::To(vec![destination]),
                    Err(reason) => Route::Denied(reason),
                }
            }
        }
    }

    /// Whether the kernel can be the other end of a connection of the guest's.
    pub fn has_outside_for(&self, flow: Flow) -> bool {
        self.outside.as_ref().is_some_and(|outside| outside.has_room_for(flow))
    }

    /// Whether something may claim to come from the guest.
    pub fn is_guest(&self, source: IpAddr) -> bool {
        self.addresses.role(source) == Role::Guest
    }
}
