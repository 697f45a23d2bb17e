//! Writes packets for the guest. Pure.

use std::net::IpAddr;

use super::checksum::Sum;

/// Who sends a packet to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Who sends it.
    pub source: IpAddr,
    /// Whom it is for; of the same family.
    pub destination: IpAddr,
}

const HOP_LIMIT: u8 = 64;
/// Of neighbour discovery, which must not have been forwarded.
const HOP_LIMIT_OF_NEIGHBOURS: u8 = 255;
const FRAGMENT: u8 = 44;

/// The packets that carry `payload`, more than one where it is longer than the MTU allows. `id`
/// tells the parts of one from those of another.
pub fn packets(
    ends: Ends,
    protocol: u8,
    payload: &[u8],
    mtu: usize,
    id: u32,
) -> impl Iterator<Item = Vec<u8>> {
    let header = if ends.source.is_ipv4() { 20 } else { 40 };
    let whole = payload.len() + header <= mtu;
    let fragment_header = if ends.source.is_ipv4() { 0 } else { 8 };
    let step = if whole { payload.len().max(1) } else { (mtu - header - fragment_header) / 8 * 8 };
    let count = payload.len().div_ceil(step).max(1);
    (0..count).map(move |part| {
        let offset = part * step;
        let body = &payload[offset..payload.len().min(offset + step)];
        let place = (!whole).then_some((offset, part + 1 < count));
        packet(ends, protocol, body, place, id)
    })
}

fn packet(ends: Ends, protocol: u8, body: &[u8], part: Option<(usize, bool)>, id: u32) -> Vec<u8> {
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = Vec::with_capacity(20 + body.len());
            let (offset, more) = part.unwrap_or_default();
            let place = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            packet.extend([0x45, 0]);
            packet.extend(((20 + body.len()) as u16).to_be_bytes());
            packet.extend((id as u16).to_be_bytes());
            packet.extend(place.to_be_bytes());
            packet.extend([HOP_LIMIT, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = Sum::default().add(&packet).checksum();
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            packet.extend_from_slice(body);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = Vec::with_capacity(48 + body.len());
            let extra = if part.is_some() { 8 } else { 0 };
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((body.len() + extra) as u16).to_be_bytes());
            let is_neighbour = protocol == super::frame::ICMPV6 && matches!(body.first(), Some(133..=137));
            let hop_limit = if is_neighbour { HOP_LIMIT_OF_NEIGHBOURS } else { HOP_LIMIT };
            packet.extend([if part.is_some() { FRAGMENT } else { protocol }, hop_limit]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            if let Some((offset, more)) = part {
                packet.extend([protocol, 0]);
                packet.extend((offset as u16 | u16::from(more)).to_be_bytes());
                packet.extend(id.to_be_bytes());
            }
            packet.extend_from_slice(body);
            packet
        }
        _ => Vec::new(),
    }
}

/// A UDP datagram with its header, ready for [`packets`].
pub fn datagram(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len();
    let mut datagram = Vec::with_capacity(length);
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    // A jumbogram's length is 0; no host socket receives one.
    datagram.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend_from_slice(payload);
    let sum = Sum::of_pseudo_header(ends.source, ends.destination, super::frame::UDP, length);
    // Zero would mean that there is none.
    let checksum = match sum.add(&datagram).checksum() {
        0 => 0xffff,
        other => other,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    datagram
}

/// The segment that refuses another one to which no connection belongs, as TCP demands it; nothing
/// where that one is a refusal itself or no segment at all.
pub fn reset(ends: Ends, refused: &[u8]) -> Option<Vec<u8>> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let header = refused.first_chunk::<20>()?;
    let flags = header[13];
    let header_length = usize::from(header[12] >> 4) * 4;
    if flags & RST != 0 || header_length < header.len() || header_length > refused.len() {
        return None;
    }
    let mut reset = [0; 20];
    reset[..2].copy_from_slice(&header[2..4]);
    reset[2..4].copy_from_slice(&header[..2]);
    reset[12] = 0x50;
    if flags & ACK != 0 {
        reset[4..8].copy_from_slice(&header[8..12]);
        reset[13] = RST;
    } else {
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let flagged = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let length = (refused.len() - header_length) as u32 + flagged;
        reset[8..12].copy_from_slice(&sequence.wrapping_add(length).to_be_bytes());
        reset[13] = RST | ACK;
    }
    let sum = Sum::of_pseudo_header(ends.source, ends.destination, super::frame::TCP, reset.len());
    let checksum = sum.add(&reset).checksum();
    reset[16..18].copy_from_slice(&checksum.to_be_bytes());
    Some(reset.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frame::{self, Frame, UDP};

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn a_long_payload_is_cut_into_parts_that_give_it_again() {
        let payload: Vec<u8> = (0..65_000u32).map(|n| n as u8).collect();
        for ends in [ends("192.0.2.1", "10.0.2.15"), ends("2001:db8::1", "fd00::15")] {
            let mut again = vec![0; payload.len()];
            let mut last = false;
            for packet in packets(ends, UDP, &payload, 1500, 7) {
                assert!(packet.len() <= 1500);
                let ethertype = if ends.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
                let frame = [&[0; 12][..], &ethertype, &packet].concat();
                let Some(Frame::Ip(_, read)) = frame::parse(&frame) else { panic!("not read") };
                let place = read.fragment.unwrap();
                again[place.offset..][..read.payload.len()].copy_from_slice(read.payload);
                assert!(!last, "something follows the last part");
                last = !place.more;
            }
            assert!(last && again == payload);
        }
    }

    #[test]
    fn checksums_add_up() {
        for ends in [ends("192.0.2.1", "10.0.2.15"), ends("2001:db8::1", "fd00::15")] {
            let datagram = datagram(ends, (53, 4000), b"odd");
            let sum = Sum::of_pseudo_header(ends.source, ends.destination, UDP, datagram.len());
            assert_eq!(sum.add(&datagram).checksum(), 0);
        }
        let header = packets(ends("192.0.2.1", "10.0.2.15"), UDP, b"", 1500, 9).next().unwrap();
        assert_eq!(Sum::default().add(&header).checksum(), 0);
    }

    #[test]
    fn a_refusal_acknowledges_what_it_refuses() {
        let ends = ends("192.0.2.1", "10.0.2.15");
        let mut syn = [0; 20];
        syn[..8].copy_from_slice(&[0x10, 0, 0, 80, 0, 0, 0, 9]);
        (syn[12], syn[13]) = (0x50, 2);
        let answer = reset(ends, &syn).unwrap();
        assert_eq!(
            (&answer[..4], &answer[8..12], answer[13]),
            (&[0, 80, 0x10, 0][..], &[0, 0, 0, 10][..], 0x14)
        );
        syn[13] = 4;
        assert_eq!(reset(ends, &syn), None);
        assert_eq!(reset(ends, &syn[..19]), None);
    }
}
