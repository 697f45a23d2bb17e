//! The Internet checksum (RFC 1071). Pure.

use std::net::IpAddr;

/// A sum over 16-bit words that more can be added to. Only the last part may have an odd length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// What a TCP, UDP or ICMPv6 checksum covers besides the segment itself.
    pub fn of_pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Self {
        let addresses = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Self::default().add(&source.octets()).add(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Self::default().add(&source.octets()).add(&destination.octets())
            }
            _ => Self::default(),
        };
        Self(addresses.0 + u64::from(protocol) + length as u64)
    }

    /// Adds bytes.
    pub fn add(self, bytes: &[u8]) -> Self {
        let (chunks, rest) = bytes.as_chunks::<4>();
        // A 32-bit word counts as its two halves: 2^16 is 1 in this arithmetic.
        let words: u64 = chunks.iter().map(|chunk| u64::from(u32::from_be_bytes(*chunk))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(Self(self.0).folded() + Self(words).folded() + u64::from(u32::from_be_bytes(last)))
    }

    /// The sum itself, as a card that completes checksums wants to find it.
    pub fn partial(self) -> u16 {
        self.folded() as u16
    }

    /// The checksum: what makes the sum over everything come out as it must.
    pub fn checksum(self) -> u16 {
        !self.partial()
    }

    fn folded(self) -> u64 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
    }

    #[test]
    fn every_length_gives_what_16_bit_words_give() {
        let bytes: Vec<u8> = (0..70_001).map(|n: u32| (n * 31 % 251) as u8).collect();
        for length in [0, 1, 2, 3, 4, 5, 1499, 65_535, 70_001] {
            let mut expected = 0u32;
            for pair in bytes[..length].chunks(2) {
                expected += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
                expected = (expected & 0xffff) + (expected >> 16);
            }
            assert_eq!(Sum::default().add(&bytes[..length]).partial(), expected as u16, "{length}");
        }
    }
}
