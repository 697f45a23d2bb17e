//! Reads what the guest sends. Pure, and trusts nothing: whatever the bytes are, the answer is a
//! packet whose parts lie inside them, or nothing.
//!
//! Checksums are not verified: the bytes came through this machine's memory, and a guest that
//! writes wrong ones harms itself alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Numbers in an Ethernet header for what follows it.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Numbers in an IP header for what follows it.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A hardware address.
pub type Mac = [u8; 6];

/// What a frame holds, as far as it concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An ARP message.
    Arp(&'a [u8]),
    /// An IP packet and the hardware address that sent it.
    Ip(Mac, Packet<'a>),
}

/// An IP packet of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sends it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// What the payload is.
    pub protocol: u8,
    /// What follows the IP headers.
    pub payload: &'a [u8],
    /// The packet with its headers, without what the frame was filled up with.
    pub whole: &'a [u8],
    /// Which part of a larger packet this is, if it is one.
    pub fragment: Option<Fragment>,
}

/// What follows the IP header of a packet without extension headers.
pub fn after_ip(packet: &[u8]) -> Option<&[u8]> {
    let start = if packet.first()? >> 4 == 6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
    packet.get(start..)
}

/// What a segment of TCP carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Data {
    /// Number of its first byte.
    pub number: u32,
    /// How many bytes; they are the packet's last ones.
    pub length: usize,
}

impl Data {
    /// That of an IP packet without extension headers. Nothing, where it is no whole segment.
    pub fn of(packet: &[u8]) -> Self {
        Self::find(packet).unwrap_or_default()
    }

    fn find(packet: &[u8]) -> Option<Self> {
        let segment = after_ip(packet)?;
        let header = segment.first_chunk::<20>()?;
        let number = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let length = segment.len().checked_sub(usize::from(header[12] >> 4) * 4)?;
        Some(Self { number, length })
    }
}

/// A part's place in the packet that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The same for all parts of a packet.
    pub id: u32,
    /// Where its payload belongs, in bytes.
    pub offset: usize,
    /// Whether more follows behind it.
    pub more: bool,
}

/// Reads a frame.
pub fn parse(frame: &[u8]) -> Option<Frame<'_>> {
    let (header, body) = frame.split_at_checked(ETHERNET_HEADER)?;
    let source: Mac = header[6..12].try_into().ok()?;
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_ARP => Some(Frame::Arp(body)),
        ETHERTYPE_IPV4 => parse_ipv4(body).map(|packet| Frame::Ip(source, packet)),
        ETHERTYPE_IPV6 => parse_ipv6(body).map(|packet| Frame::Ip(source, packet)),
        _ => None,
    }
}

fn parse_ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let header = bytes.first_chunk::<20>()?;
    let header_length = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_length < header.len() || total < header_length {
        return None;
    }
    let whole = bytes.get(..total)?;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (flags & 0x2000 != 0, usize::from(flags & 0x1fff) * 8);
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Some(Packet {
        source: address(12).into(),
        destination: address(16).into(),
        protocol: header[9],
        payload: &whole[header_length..],
        whole,
        fragment: (more || offset > 0).then_some(Fragment { id, offset, more }),
    })
}

fn parse_ipv6(bytes: &[u8]) -> Option<Packet<'_>> {
    let header = bytes.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let whole = bytes.get(..header.len() + length)?;
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
        Ipv6Addr::from(octets)
    };
    let (mut protocol, mut payload) = (header[6], &whole[header.len()..]);
    let mut fragment = None;
    loop {
        match protocol {
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let length = (usize::from(*payload.get(1)?) + 1) * 8;
                protocol = payload[0];
                payload = payload.get(length..)?;
            }
            // What follows the header of a later part is no header of its own.
            FRAGMENT if fragment.is_none() => {
                let (part, rest) = payload.split_first_chunk::<8>()?;
                let flags = u16::from_be_bytes([part[2], part[3]]);
                let id = u32::from_be_bytes([part[4], part[5], part[6], part[7]]);
                fragment = Some(Fragment { id, offset: usize::from(flags & 0xfff8), more: flags & 1 != 0 });
                (protocol, payload) = (part[0], rest);
                break;
            }
            _ => break,
        }
    }
    // A "fragment" that is the whole packet.
    let fragment = fragment.filter(|fragment| fragment.more || fragment.offset > 0);
    let (source, destination) = (address(8).into(), address(24).into());
    Some(Packet { source, destination, protocol, payload, whole, fragment })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::emit::{self, Ends};

    fn udp(source: &str, destination: &str) -> Vec<u8> {
        let ends = Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
        let mut frame = vec![0; ETHERNET_HEADER];
        let ethertype = if ends.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        frame[12..].copy_from_slice(&ethertype.to_be_bytes());
        frame.extend(emit::packets(ends, UDP, b"payload", 1500, 0).next().unwrap());
        frame
    }

    #[test]
    fn packets_of_both_versions_are_read() {
        for (source, destination) in [("10.0.2.15", "192.0.2.1"), ("fd00::15", "2001:db8::1")] {
            let frame = udp(source, destination);
            let Some(Frame::Ip(_, packet)) = parse(&frame) else { panic!("{source}: not read") };
            assert_eq!(
                (packet.source.to_string(), packet.destination.to_string()),
                (source.into(), destination.into())
            );
            assert_eq!((packet.protocol, packet.payload, packet.fragment), (UDP, &b"payload"[..], None));
        }
    }

    #[test]
    fn the_data_of_a_segment_are_what_follows_its_options() {
        // Eight bytes of options.
        let header = [[0; 4].as_slice(), &[1, 2, 3, 4, 0, 0, 0, 0, 0x70], &[0; 15]].concat();
        let segment = [&header[..], b"data"].concat();
        for (source, destination) in [("10.0.2.15", "192.0.2.1"), ("fd00::15", "2001:db8::1")] {
            let ends = Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
            let whole = emit::packets(ends, TCP, &segment, 1500, 0).next().unwrap();
            assert_eq!(Data::of(&whole), Data { number: 0x0102_0304, length: 4 });
            let bare = emit::packets(ends, TCP, &header, 1500, 0).next().unwrap();
            assert_eq!(Data::of(&bare), Data { number: 0x0102_0304, length: 0 });
            for length in 0..bare.len() {
                assert_eq!(Data::of(&whole[..length]), Data::default(), "{length}");
            }
        }
    }

    #[test]
    fn what_an_ethernet_filled_up_is_cut_off() {
        let mut frame = udp("10.0.2.15", "192.0.2.1");
        let length = frame.len() - ETHERNET_HEADER;
        frame.extend([0xff; 30]);
        let Some(Frame::Ip(_, packet)) = parse(&frame) else { panic!("not read") };
        assert_eq!((packet.payload, packet.whole.len()), (&b"payload"[..], length));
    }

    #[test]
    fn a_frame_cut_anywhere_is_nothing() {
        for (source, destination) in [("10.0.2.15", "192.0.2.1"), ("fd00::15", "2001:db8::1")] {
            let frame = udp(source, destination);
            for length in 0..frame.len() {
                assert_eq!(parse(&frame[..length]), None, "{length}");
            }
        }
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let frame = udp("10.0.2.15", "192.0.2.1");
        for (at, value) in [(14, 0x44), (14, 0x4f), (14, 0x65), (16, 0xff), (17, 19)] {
            let mut wrong = frame.clone();
            wrong[at] = value;
            assert_eq!(parse(&wrong), None, "byte {at} as {value:#x}");
        }
    }

    #[test]
    fn extension_headers_are_passed_over() {
        let plain = udp("fd00::15", "2001:db8::1");
        let mut frame = plain[..ETHERNET_HEADER + 40].to_vec();
        frame[ETHERNET_HEADER + 6] = HOP_BY_HOP;
        frame[ETHERNET_HEADER + 5] += 16;
        frame.extend([FRAGMENT, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend([UDP, 0, 0, 8 | 1, 0, 0, 0, 7]);
        frame.extend_from_slice(&plain[ETHERNET_HEADER + 40..]);
        let Some(Frame::Ip(_, packet)) = parse(&frame) else { panic!("not read") };
        assert_eq!((packet.protocol, packet.payload), (UDP, &b"payload"[..]));
        assert_eq!(packet.fragment, Some(Fragment { id: 7, offset: 8, more: true }));
    }
}
