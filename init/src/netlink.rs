//! Requests to the kernel's network configuration (rtnetlink), as many as are needed in one message.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

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

    /// Makes a pair of links, each of which receives what the other sends.
    pub fn make_pair(&mut self, name: &str, peer: &str) {
        /// What the kernel calls the peer among the particulars of a pair (`VETH_INFO_PEER`).
        const PEER: u16 = 1;
        let mut of_peer = vec![0; LINK_HEADER];
        attribute(&mut of_peer, libc::IFLA_IFNAME, &[peer.as_bytes(), &[0]].concat());
        let mut particulars = Vec::new();
        attribute(&mut particulars, PEER, &of_peer);
        let mut information = Vec::new();
        attribute(&mut information, libc::IFLA_INFO_KIND, b"veth\0");
        attribute(&mut information, libc::IFLA_INFO_DATA, &particulars);
        let mut body = vec![0; LINK_HEADER];
        attribute(&mut body, libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
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

    /// Sends them all. The error names the first that was refused.
    pub fn send(self) -> Result<()> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
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
