//! The guest's network: which addresses it has, and who answers at them.
//!
//! It has a gateway (the host, as far as `--host-loopback` goes), a name server (our forwarder) and
//! the guest itself. Its IPv4 range is one that the host is not in, so that nothing that the host
//! reaches is out of the guest's reach. The IPv6 range is a unique local one of our own, and only
//! there where the host has IPv6: a guest without would otherwise wait for answers that cannot come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::Mac;

/// Hardware address of everybody but the guest.
pub const HOST_MAC: Mac = [0x02, 0x73, 0x65, 0x6b, 0, 0x02];
/// Hardware address that the guest is given.
pub const GUEST_MAC: Mac = [0x02, 0x73, 0x65, 0x6b, 0, 0x15];

/// Ranges that may become the guest's, best first: each a /24.
const RANGES: [[u8; 3]; 5] = [[10, 0, 2], [10, 213, 77], [172, 30, 77], [192, 168, 213], [198, 18, 77]];
/// The unique local range (RFC 4193) of every guest.
const RANGE_V6: [u16; 4] = [0xfd73, 0x656b, 0x6578, 0x6500];

/// Bits of the range, for a route.
pub const PREFIX_V4: u8 = 24;
/// See [`PREFIX_V4`].
pub const PREFIX_V6: u8 = 64;

/// Last number of each address.
const GATEWAY: u8 = 2;
const DNS: u8 = 3;
const GUEST: u8 = 15;

/// The addresses of one guest's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    range: [u8; 3],
    has_v6: bool,
}

/// Who an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The host's side of the link.
    Gateway,
    /// Our forwarder of name queries.
    Dns,
    /// The guest.
    Guest,
    /// Nobody, although it is in the guest's range.
    Nobody,
    /// The world.
    Outside,
}

impl Addresses {
    /// Chooses a range that none of the host's interfaces is in.
    pub fn choose(of_host: &[IpAddr]) -> Self {
        let taken = |range: &[u8; 3]| {
            of_host.iter().any(|address| match address {
                IpAddr::V4(address) => address.octets()[..3] == range[..],
                IpAddr::V6(_) => false,
            })
        };
        let range = RANGES.into_iter().find(|range| !taken(range)).unwrap_or(RANGES[0]);
        let has_v6 = of_host.iter().any(|address| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        });
        Self { range, has_v6 }
    }

    /// Whether the guest has IPv6.
    pub fn has_v6(&self) -> bool {
        self.has_v6
    }

    /// The guest's IPv4 address.
    pub fn guest_v4(&self) -> Ipv4Addr {
        self.v4(GUEST)
    }

    /// The gateway's IPv4 address.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        self.v4(GATEWAY)
    }

    /// The name server's IPv4 address.
    pub fn dns_v4(&self) -> Ipv4Addr {
        self.v4(DNS)
    }

    /// The guest's IPv6 address.
    pub fn guest_v6(&self) -> Ipv6Addr {
        v6(GUEST)
    }

    /// The gateway's IPv6 address.
    pub fn gateway_v6(&self) -> Ipv6Addr {
        v6(GATEWAY)
    }

    /// The guest's address and the gateway's, of the family of `like`.
    pub fn guest_and_gateway(&self, like: IpAddr) -> (IpAddr, IpAddr) {
        match like {
            IpAddr::V6(_) if self.has_v6 => (self.guest_v6().into(), self.gateway_v6().into()),
            _ => (self.guest_v4().into(), self.gateway_v4().into()),
        }
    }

    /// Who has this address.
    pub fn role(&self, address: IpAddr) -> Role {
        let last = match address {
            IpAddr::V4(address) if address.octets()[..3] == self.range => address.octets()[3],
            IpAddr::V6(address) if address.segments()[..4] == RANGE_V6 => {
                match [GATEWAY, DNS, GUEST].into_iter().find(|last| v6(*last) == address) {
                    Some(last) => last,
                    None => return Role::Nobody,
                }
            }
            _ => return Role::Outside,
        };
        match last {
            GATEWAY => Role::Gateway,
            DNS => Role::Dns,
            GUEST => Role::Guest,
            _ => Role::Nobody,
        }
    }

    fn v4(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.range;
        Ipv4Addr::new(a, b, c, last)
    }
}

fn v6(last: u8) -> Ipv6Addr {
    let [a, b, c, d] = RANGE_V6;
    // Written as in IPv4: ...::15 rather than ...::f.
    let last = u16::from(last / 10) << 4 | u16::from(last % 10);
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(of_host: &[&str]) -> Addresses {
        let addresses: Vec<IpAddr> = of_host.iter().map(|text| text.parse().unwrap()).collect();
        Addresses::choose(&addresses)
    }

    #[test]
    fn the_range_is_one_that_the_host_is_not_in() {
        assert_eq!(choose(&["127.0.0.1", "192.0.2.7"]).guest_v4().to_string(), "10.0.2.15");
        assert_eq!(choose(&["10.0.2.15", "10.213.77.1"]).guest_v4().to_string(), "172.30.77.15");
    }

    #[test]
    fn the_guest_has_ipv6_where_the_host_has_more_than_its_links() {
        assert!(!choose(&["::1", "fe80::1", "192.0.2.7"]).has_v6());
        assert!(choose(&["fd00::2"]).has_v6());
    }

    #[test]
    fn every_address_has_a_role() {
        let addresses = choose(&["fd00::2"]);
        for (address, role) in [
            ("10.0.2.2", Role::Gateway),
            ("10.0.2.3", Role::Dns),
            ("10.0.2.15", Role::Guest),
            ("10.0.2.99", Role::Nobody),
            ("10.0.3.2", Role::Outside),
            ("fd73:656b:6578:6500::2", Role::Gateway),
            ("fd73:656b:6578:6500::3", Role::Dns),
            ("fd73:656b:6578:6500::15", Role::Guest),
            ("fd73:656b:6578:6500::f", Role::Nobody),
            ("2001:db8::1", Role::Outside),
        ] {
            assert_eq!(addresses.role(address.parse().unwrap()), role, "{address}");
        }
    }
}
