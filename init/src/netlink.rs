//! Requests to the kernel's network configuration (rtnetlink), as many as are needed in one message.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

/// Requests, in order.
#[derive(Default)]
pub struct Requests {
    bytes: Vec<u8>,
    names: Vec<&'static str>,
}

/// What a link shall become.
pub struct Link<'a> {
    /// The interface's number.
    pub index: u32,
    /// Its name.
    pub name: &'a str,
    /// Its hardware address, if that shall be another one.
    pub address: Option<[u8; 6]>,
    /// Its longest packet.
    pub mtu: u32,
    /// Whether it knows its neighbours without asking.
    pub silent: bool,
}

impl Requests {
    /// Sets a link up.
    pub fn set_link(&mut self, link: &Link<'_>) {
        let flags = libc::IFF_UP as u32 | if link.silent { libc::IFF_NOARP as u32 } else { 0 };
        let mut body = vec![0; 4];
        body.extend(link.index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        if let Some(address) = &link.address {
            attribute(&mut body, libc::IFLA_ADDRESS, address);
        }
        attribute(&mut body, libc::IFLA_MTU, &link.mtu.to_ne_bytes());
        attribute(&mut body, libc::IFLA_IFNAME, &[link.name.as_bytes(), &[0]].concat());
        self.add("set the network card up", libc::RTM_NEWLINK, 0, &body);
    }

    /// Makes a pair of links with one queue each, of which each receives what the other sends: the
    /// first one with that number, the second one in the network of that process.
    pub fn make_pair(&mut self, name: &str, index: u32, peer: &str, process: u32) {
        /// What the kernel calls the peer among the particulars of a pair (`VETH_INFO_PEER`).
        const PEER: u16 = 1;
        let end = |name: &str| {
            let mut end = vec![0; LINK_HEADER];
            attribute(&mut end, libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
            attribute(&mut end, libc::IFLA_NUM_TX_QUEUES, &1_u32.to_ne_bytes());
            attribute(&mut end, libc::IFLA_NUM_RX_QUEUES, &1_u32.to_ne_bytes());
            end
        };
        let (mut body, mut of_peer) = (end(name), end(peer));
        attribute(&mut of_peer, libc::IFLA_NET_NS_PID, &process.to_ne_bytes());
        let mut particulars = Vec::new();
        attribute(&mut particulars, PEER, &of_peer);
        let mut information = Vec::new();
        attribute(&mut information, libc::IFLA_INFO_KIND, b"veth\0");
        attribute(&mut information, libc::IFLA_INFO_DATA, &particulars);
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        attribute(&mut body, libc::IFLA_LINKINFO, &information);
        self.add("make a pair of links", libc::RTM_NEWLINK, CREATE, &body);
    }

    /// Gives a link an address, which nobody else can have.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        let mut body = vec![family(address), prefix, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_UNIVERSE];
        body.extend(index.to_ne_bytes());
        attribute(&mut body, libc::IFA_LOCAL, &octets(address));
        attribute(&mut body, libc::IFA_ADDRESS, &octets(address));
        self.add("add an address", libc::RTM_NEWADDR, CREATE, &body);
    }

    /// Sends everything that has no other way through a gateway.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) {
        let mut body = vec![family(gateway), 0, 0, 0];
        body.extend([libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST]);
        body.extend([0; 4]);
        attribute(&mut body, libc::RTA_GATEWAY, &octets(gateway));
        attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
        self.add("add the default route", libc::RTM_NEWROUTE, CREATE, &body);
    }

    /// Sends what is for this address to a link's other end, without a gateway.
    pub fn add_link_route(&mut self, index: u32, to: IpAddr) {
        let bits = octets(to).len() as u8 * 8;
        let mut body = vec![family(to), bits, 0, 0];
        body.extend([libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_LINK, libc::RTN_UNICAST]);
        body.extend([0; 4]);
        attribute(&mut body, libc::RTA_DST, &octets(to));
        attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
        self.add("add a route", libc::RTM_NEWROUTE, CREATE, &body);
    }

    /// Makes every address of a family the kernel's own, in a table that a [`Rule`] leads to.
    pub fn add_local_route(&mut self, like: IpAddr, table: u8) {
        let mut body = vec![family(like), 0, 0, 0];
        body.extend([table, libc::RTPROT_BOOT, libc::RT_SCOPE_HOST, libc::RTN_LOCAL]);
        body.extend([0; 4]);
        attribute(&mut body, libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
        self.add("add a route", libc::RTM_NEWROUTE, CREATE, &body);
    }

    /// Drops without a word what no other route is for, of the family of this address.
    pub fn add_black_hole(&mut self, like: IpAddr) {
        let mut body = vec![family(like), 0, 0, 0];
        body.extend([libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_BLACKHOLE]);
        body.extend([0; 4]);
        self.add("add a route", libc::RTM_NEWROUTE, CREATE, &body);
    }

    /// Tells the kernel a neighbour's hardware address for good.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, hardware: [u8; 6]) {
        const PERMANENT: u16 = 0x80;
        let mut body = vec![family(address), 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(PERMANENT.to_ne_bytes());
        body.extend([0; 2]);
        attribute(&mut body, libc::NDA_DST, &octets(address));
        attribute(&mut body, libc::NDA_LLADDR, &hardware);
        self.add("add a neighbour", libc::RTM_NEWNEIGH, CREATE, &body);
    }

    /// Adds a rule.
    pub fn add_rule(&mut self, rule: &Rule<'_>) {
        self.add(
            "add a routing rule",
            libc::RTM_NEWRULE,
            libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            &rule.body(),
        );
    }

    /// Removes a rule.
    pub fn remove_rule(&mut self, rule: &Rule<'_>) {
        self.add("remove a routing rule", libc::RTM_DELRULE, 0, &rule.body());
    }

    /// A socket for requests to the network that the calling thread is in.
    pub fn socket() -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
    }

    /// Sends them all to the network that the calling thread is in; see [`Requests::send_over`].
    pub fn send(self) -> Result<()> {
        self.send_over(Self::socket()?)
    }

    /// Sends them all to the network that the socket was opened in. The error names the first that
    /// was refused.
    pub fn send_over(self, socket: impl AsFd) -> Result<()> {
        let socket = socket.as_fd();
        send(socket.as_raw_fd(), &self.bytes, MsgFlags::empty())?;
        let mut answered = 0;
        let mut buffer = [0; 4096];
        while answered < self.names.len() {
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((header, body)) = rest.split_first_chunk::<HEADER>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    let number = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) as usize;
                    let name = self.names.get(number).copied().unwrap_or("configure the network");
                    return Err(anyhow::Error::from(Errno::from_raw(-code)).context(name));
                }
                answered += 1;
                if length < HEADER {
                    bail!("the kernel answered nonsense");
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &'static str, kind: u16, flags: libc::c_int, body: &[u8]) {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let number = self.names.len() as u32;
        self.bytes.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend_from_slice(body);
        self.names.push(name);
    }
}

/// What has to be looked up in a table of its own: the segments of one connection that come in at an
/// interface.
pub struct Rule<'a> {
    /// The interface's name.
    pub at: &'a str,
    /// Who sends them.
    pub from: SocketAddr,
    /// Whom they are for.
    pub to: SocketAddr,
    /// The table.
    pub table: u8,
}

impl Rule<'_> {
    fn body(&self) -> Vec<u8> {
        /// Of `linux/fib_rules.h`.
        const TO_TABLE: u8 = 1;
        const DESTINATION: u16 = 1;
        const SOURCE: u16 = 2;
        const INCOMING: u16 = 3;
        const PROTOCOL: u16 = 22;
        const SOURCE_PORTS: u16 = 23;
        const DESTINATION_PORTS: u16 = 24;
        let (from, to) = (octets(self.from.ip()), octets(self.to.ip()));
        let ports = |port: u16| [port.to_ne_bytes(), port.to_ne_bytes()].concat();
        let mut body = vec![family(self.to.ip()), to.len() as u8 * 8, from.len() as u8 * 8, 0];
        body.extend([self.table, 0, 0, TO_TABLE, 0, 0, 0, 0]);
        attribute(&mut body, DESTINATION, &to);
        attribute(&mut body, SOURCE, &from);
        attribute(&mut body, INCOMING, &[self.at.as_bytes(), &[0]].concat());
        attribute(&mut body, PROTOCOL, &[libc::IPPROTO_TCP as u8]);
        attribute(&mut body, SOURCE_PORTS, &ports(self.from.port()));
        attribute(&mut body, DESTINATION_PORTS, &ports(self.to.port()));
        body
    }
}

/// The number of every network's loopback interface.
pub const LOOPBACK: u32 = 1;

const CREATE: libc::c_int = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}
