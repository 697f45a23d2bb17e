//! Puts the parts of a packet together that was longer than the guest's MTU. Pure, and bounded: few
//! packets at once, each for a short time; parts that overlap are an attack and end their packet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::frame::Packet;

/// Unfinished packets at once; further ones are lost.
const MOST: usize = 16;
/// How long a packet may be unfinished.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest payload.
const LONGEST: usize = 65_535;

type Key = (IpAddr, IpAddr, u8, u32);

/// See the module.
#[derive(Debug, Default)]
pub struct Reassembly {
    packets: HashMap<Key, Unfinished>,
}

#[derive(Debug)]
struct Unfinished {
    since: Instant,
    /// Headers of the first part.
    header: Vec<u8>,
    /// Offsets and payloads, in order.
    parts: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
}

/// A packet put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: Vec<u8>,
    header: usize,
}

impl Whole {
    /// The packet.
    pub fn packet(&self) -> Packet<'_> {
        Packet {
            source: self.source,
            destination: self.destination,
            protocol: self.protocol,
            payload: &self.bytes[self.header..],
            whole: &self.bytes,
            fragment: None,
        }
    }
}

impl Reassembly {
    /// Takes a part; returns the packet if it was the last one missing.
    pub fn add(&mut self, part: &Packet<'_>, now: Instant) -> Option<Whole> {
        let fragment = part.fragment?;
        let key = (part.source, part.destination, part.protocol, fragment.id);
        self.packets.retain(|_, packet| now - packet.since < PATIENCE);
        if self.packets.len() >= MOST && !self.packets.contains_key(&key) {
            return None;
        }
        let end = fragment.offset + part.payload.len();
        let sound = end <= LONGEST
            && !part.payload.is_empty()
            && (!fragment.more || part.payload.len().is_multiple_of(8));
        let packet = self.packets.entry(key).or_insert_with(|| Unfinished {
            since: now,
            header: Vec::new(),
            parts: Vec::new(),
            total: None,
        });
        if !sound || !packet.insert(part, fragment.offset, end, fragment.more) {
            self.packets.remove(&key);
            return None;
        }
        if !packet.is_complete() {
            return None;
        }
        let packet = self.packets.remove(&key)?;
        let header = packet.header.len();
        let bytes = packet.parts.iter().fold(packet.header, |mut bytes, (_, part)| {
            bytes.extend_from_slice(part);
            bytes
        });
        let (source, destination, protocol, _) = key;
        Some(Whole { source, destination, protocol, bytes, header })
    }
}

impl Unfinished {
    /// Whether the part fits between the others.
    fn insert(&mut self, part: &Packet<'_>, offset: usize, end: usize, more: bool) -> bool {
        let at = self.parts.partition_point(|(other, _)| *other < offset);
        let before = at.checked_sub(1).map_or(0, |at| self.parts[at].0 + self.parts[at].1.len());
        let after = self.parts.get(at).map_or(LONGEST, |(other, _)| *other);
        let is_last = self.total.is_none_or(|total| if more { end <= total } else { end == total });
        if before > offset || end > after || !is_last {
            return false;
        }
        if !more {
            self.total = Some(end);
            if at < self.parts.len() {
                return false;
            }
        }
        if offset == 0 {
            self.header = part.whole[..part.whole.len() - part.payload.len()].to_vec();
        }
        self.parts.insert(at, (offset, part.payload.to_vec()));
        true
    }

    fn is_complete(&self) -> bool {
        let held: usize = self.parts.iter().map(|(_, part)| part.len()).sum();
        self.total == Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::emit::{self, Ends};
    use crate::net::frame::{self, Frame, UDP};

    fn parts(payload: &[u8]) -> Vec<Vec<u8>> {
        let ends = Ends { source: "10.0.2.15".parse().unwrap(), destination: "192.0.2.1".parse().unwrap() };
        let frame = |packet: Vec<u8>| [&[0; 12][..], &[8, 0], &packet].concat();
        emit::packets(ends, UDP, payload, 1500, 1).map(frame).collect()
    }

    fn add(reassembly: &mut Reassembly, frame: &[u8], now: Instant) -> Option<Whole> {
        let Some(Frame::Ip(_, packet)) = frame::parse(frame) else { panic!("not read") };
        reassembly.add(&packet, now)
    }

    #[test]
    fn parts_in_any_order_give_the_packet() {
        let payload: Vec<u8> = (0..9000u32).map(|n| (n % 251) as u8).collect();
        let mut frames = parts(&payload);
        for _ in 0..frames.len() {
            frames.rotate_left(1);
            let (mut reassembly, now) = (Reassembly::default(), Instant::now());
            let wholes: Vec<Whole> =
                frames.iter().filter_map(|frame| add(&mut reassembly, frame, now)).collect();
            assert_eq!(wholes.len(), 1);
            assert_eq!(wholes[0].packet().payload, payload);
            assert!(reassembly.packets.is_empty());
        }
    }

    #[test]
    fn parts_that_overlap_or_come_twice_end_their_packet() {
        let frames = parts(&[7; 5000]);
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        add(&mut reassembly, &frames[0], now);
        assert_eq!(add(&mut reassembly, &frames[0], now), None);
        assert!(reassembly.packets.is_empty());
    }

    #[test]
    fn unfinished_packets_are_few_and_do_not_stay() {
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        let mut frame = parts(&[7; 5000])[0].clone();
        for id in 0..100 {
            frame[14 + 5] = id;
            add(&mut reassembly, &frame, now);
        }
        assert_eq!(reassembly.packets.len(), MOST);
        frame[14 + 5] = 200;
        add(&mut reassembly, &frame, now + PATIENCE);
        assert_eq!(reassembly.packets.len(), 1);
    }
}
