//! Who has which hardware address: ARP, and neighbour discovery for IPv6. Pure.
//!
//! Everybody in the guest's range but the guest itself is at the host's hardware address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addresses::{Addresses, HOST_MAC, Role};
use super::checksum::Sum;
use super::emit::Ends;
use super::frame::{ICMPV6, Packet};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Ethernet and IPv4, with lengths of 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The answer to an ARP message, if it asks for one of ours.
pub fn answer_arp(message: &[u8], addresses: &Addresses) -> Option<[u8; 28]> {
    let message = message.first_chunk::<28>()?;
    let operation = u16::from_be_bytes([message[6], message[7]]);
    let target = Ipv4Addr::new(message[24], message[25], message[26], message[27]);
    if message[..6] != ETHERNET_IPV4 || operation != REQUEST || !is_ours(target.into(), addresses) {
        return None;
    }
    let mut answer = [0; 28];
    answer[..6].copy_from_slice(&ETHERNET_IPV4);
    answer[6..8].copy_from_slice(&REPLY.to_be_bytes());
    answer[8..14].copy_from_slice(&HOST_MAC);
    answer[14..18].copy_from_slice(&target.octets());
    answer[18..28].copy_from_slice(&message[8..18]);
    Some(answer)
}

/// The advertisement that answers a solicitation, if it asks for one of ours.
pub fn answer_solicitation(packet: &Packet<'_>, addresses: &Addresses) -> Option<(Ends, [u8; 32])> {
    let message = packet.payload.first_chunk::<24>()?;
    let octets: [u8; 16] = message[8..].try_into().ok()?;
    let target = IpAddr::from(Ipv6Addr::from(octets));
    let asks = packet.protocol == ICMPV6 && message[0] == SOLICITATION;
    // From nobody yet: the guest looks whether its own address is taken.
    if !asks || packet.source.is_unspecified() || !is_ours(target, addresses) {
        return None;
    }
    let ends = Ends { source: target, destination: packet.source };
    let mut answer = [0; 32];
    answer[0] = ADVERTISEMENT;
    // A router, asked, and to be believed.
    answer[4] = 0xe0;
    answer[8..24].copy_from_slice(&octets);
    answer[24..26].copy_from_slice(&[2, 1]);
    answer[26..].copy_from_slice(&HOST_MAC);
    let sum = Sum::of_pseudo_header(ends.source, ends.destination, ICMPV6, answer.len());
    let checksum = sum.add(&answer).checksum();
    answer[2..4].copy_from_slice(&checksum.to_be_bytes());
    Some((ends, answer))
}

fn is_ours(address: IpAddr, addresses: &Addresses) -> bool {
    !matches!(addresses.role(address), Role::Guest | Role::Outside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::addresses::GUEST_MAC;

    fn request(target: Ipv4Addr) -> [u8; 28] {
        let mut message = [0; 28];
        message[..6].copy_from_slice(&ETHERNET_IPV4);
        message[7] = 1;
        message[8..14].copy_from_slice(&GUEST_MAC);
        message[14..18].copy_from_slice(&[10, 0, 2, 15]);
        message[24..].copy_from_slice(&target.octets());
        message
    }

    #[test]
    fn everybody_but_the_guest_is_at_our_address() {
        let addresses = Addresses::choose(&[]);
        let answer = answer_arp(&request(addresses.gateway_v4()), &addresses).unwrap();
        assert_eq!((&answer[8..14], &answer[18..24]), (&HOST_MAC[..], &GUEST_MAC[..]));
        for other in [addresses.guest_v4(), Ipv4Addr::new(192, 0, 2, 1)] {
            assert_eq!(answer_arp(&request(other), &addresses), None);
        }
        let mut answer = request(addresses.gateway_v4());
        answer[7] = 2;
        assert_eq!(answer_arp(&answer, &addresses), None);
    }

    #[test]
    fn a_solicitation_gets_a_valid_advertisement() {
        let addresses = Addresses::choose(&["2001:db8::1".parse().unwrap()]);
        let mut message = [0; 24];
        message[0] = SOLICITATION;
        message[8..].copy_from_slice(&addresses.gateway_v6().octets());
        let packet = Packet {
            source: addresses.guest_v6().into(),
            destination: addresses.gateway_v6().into(),
            protocol: ICMPV6,
            payload: &message,
            whole: &message,
            fragment: None,
        };
        let (ends, answer) = answer_solicitation(&packet, &addresses).unwrap();
        let sum = Sum::of_pseudo_header(ends.source, ends.destination, ICMPV6, answer.len());
        assert_eq!((sum.add(&answer).checksum(), ends.destination), (0, packet.source));
        let searching = Packet { source: Ipv6Addr::UNSPECIFIED.into(), ..packet };
        assert_eq!(answer_solicitation(&searching, &addresses), None);
    }
}
