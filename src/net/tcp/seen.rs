//! What a connection's segments say about it: enough for somebody else to be one of its ends.

use std::iter;
use std::time::{Duration, Instant};

use super::connection::Flow;
use super::{ACK, RST, SYN};
use crate::net::checksum::Sum;
use crate::net::emit;
use crate::net::frame::{TCP, after_ip};
use crate::sys::tcp::Progress;

/// What one end has said.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    /// The longest segment that it takes, the bits by which it shifts its window, and whether it
    /// takes selective acknowledgements.
    mss: u16,
    scale: Option<u8>,
    selective: bool,
    /// Number of the byte after the last one that it sent.
    sent: u32,
    /// Number of the byte that it waits for, once it has said so.
    acknowledged: Option<u32>,
    /// Its window, not shifted.
    window: u16,
}

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    guest: End,
    ours: End,
    /// When the guest last sent bytes.
    guest_sent_at: Option<Instant>,
}

impl Seen {
    /// The guest sends this packet.
    pub fn guest_sends(&mut self, packet: &[u8], now: Instant) {
        if self.guest.hear(packet) {
            self.guest_sent_at = Some(now);
        }
    }

    /// We send it.
    pub fn we_send(&mut self, packet: &[u8]) {
        self.ours.hear(packet);
    }

    /// Whether nothing is under way: the guest has all that we sent, and has been silent for so long,
    /// or may not send a whole segment.
    pub fn is_quiet(&self, silence: Duration, now: Instant) -> bool {
        let is_silent = self.guest_sent_at.is_none_or(|at| now.saturating_duration_since(at) >= silence);
        self.guest.acknowledged == Some(self.ours.sent)
            && ((is_silent && self.ours.acknowledged == Some(self.guest.sent)) || self.is_guest_held())
    }

    fn is_guest_held(&self) -> bool {
        let Some(acknowledged) = self.ours.acknowledged else { return false };
        let left = acknowledged.wrapping_add(self.our_window()).wrapping_sub(self.guest.sent);
        // Its segments are at most half as long as the largest window that it was shown.
        (left as i32) < i32::from(self.ours.mss.min(i16::MAX as u16))
    }

    /// A segment that the guest answers at once with how far it is, since it is an old one: its own
    /// word may otherwise take until its timer for delayed acknowledgements.
    pub fn question(&self, flow: Flow) -> Vec<u8> {
        self.our_word(flow, self.guest.acknowledged.unwrap_or_default().wrapping_sub(1))
    }

    /// A segment that says how far our end is.
    pub fn answer(&self, flow: Flow) -> Vec<u8> {
        self.our_word(flow, self.ours.sent)
    }

    fn our_word(&self, flow: Flow, number: u32) -> Vec<u8> {
        let ends = flow.inward();
        let numbers = [number, self.ours.acknowledged.unwrap_or_default()];
        let mut segment = acknowledgement([flow.remote.port(), flow.guest.port()], numbers, self.ours.window);
        let sum = Sum::of_pseudo_header(ends.source, ends.destination, TCP, segment.len()).add(&segment);
        segment[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
        segment
    }

    /// Acknowledgements that say again what the guest's last one said, as a guest sends them that
    /// misses a segment: two with another window between them, and then so many that it counts.
    pub fn complaint(&self, flow: Flow) -> impl Iterator<Item = Vec<u8>> {
        const COUNTS: usize = 3;
        let ends = flow.outward();
        let numbers = [self.guest.sent, self.guest.acknowledged.unwrap_or_default()];
        let ports = [flow.guest.port(), flow.remote.port()];
        let window = self.guest.window;
        iter::once(window ^ 1).chain(iter::repeat_n(window, 1 + COUNTS)).flat_map(move |window| {
            let segment = acknowledgement(ports, numbers, window);
            emit::packets(ends, TCP, &segment, usize::MAX, 0).collect::<Vec<_>>()
        })
    }

    /// Where our end is.
    pub fn progress(&self) -> Progress {
        let to_receive = self.ours.acknowledged.unwrap_or(self.guest.sent);
        let scales = self.guest.scale.zip(self.ours.scale);
        let shift = scales.map_or(0, |(guest, _)| guest);
        Progress {
            to_send: self.ours.sent,
            to_receive,
            windows: [u32::from(self.guest.window) << shift, self.our_window()],
            scales: scales.map(|(guest, ours)| [guest, ours]),
            mss: self.guest.mss,
            selective: self.guest.selective && self.ours.selective,
        }
    }

    /// Our end has room for so many bytes, which the next [`answer`](Self::answer) says.
    pub fn open(&mut self, room: usize) {
        self.ours.window = u16::try_from(room >> self.our_shift()).unwrap_or(u16::MAX);
    }

    fn our_window(&self) -> u32 {
        u32::from(self.ours.window) << self.our_shift()
    }

    fn our_shift(&self) -> u8 {
        self.ours.scale.filter(|_| self.guest.scale.is_some()).unwrap_or(0)
    }
}

/// A segment without data and without a checksum: its ports, its own number and the one that it
/// acknowledges, and a window.
fn acknowledgement(ports: [u16; 2], numbers: [u32; 2], window: u16) -> Vec<u8> {
    let mut segment = ports.map(u16::to_be_bytes).concat();
    segment.extend(numbers.map(u32::to_be_bytes).concat());
    segment.extend([0x50, ACK]);
    segment.extend(window.to_be_bytes());
    segment.extend([0; 4]);
    segment
}

impl End {
    /// Reads a packet that this end sends. Says whether it brings something new.
    fn hear(&mut self, packet: &[u8]) -> bool {
        self.try_hear(packet).unwrap_or(false)
    }

    fn try_hear(&mut self, packet: &[u8]) -> Option<bool> {
        let segment = after_ip(packet)?;
        let header = segment.first_chunk::<20>()?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let flags = header[13];
        if flags & RST != 0 {
            return None;
        }
        let length = usize::from(header[12] >> 4) * 4;
        let data = segment.len().checked_sub(length)? as u32;
        let end = word(4).wrapping_add(data).wrapping_add(u32::from(flags & SYN != 0));
        if flags & SYN != 0 {
            self.agree(segment.get(20..length)?);
            self.sent = end;
        }
        let is_late = self.acknowledged.is_some_and(|known| (word(8).wrapping_sub(known) as i32) < 0);
        if flags & ACK != 0 && !is_late {
            self.acknowledged = Some(word(8));
            self.window = u16::from_be_bytes([header[14], header[15]]);
        }
        let is_new = end.wrapping_sub(self.sent) as i32 > 0;
        if is_new {
            self.sent = end;
        }
        Some(is_new)
    }

    /// Reads the options of a first segment.
    fn agree(&mut self, mut options: &[u8]) {
        (self.mss, self.scale, self.selective) = (536, None, false);
        while let [kind, rest @ ..] = options {
            options = match (kind, rest) {
                (0, _) => return,
                (1, rest) => rest,
                (kind, [length, ..]) => {
                    let Some(value) = rest.get(1..usize::from(*length).saturating_sub(1)) else { return };
                    match (kind, value) {
                        (2, [high, low]) => self.mss = u16::from_be_bytes([*high, *low]),
                        (3, [shift]) => self.scale = Some((*shift).min(14)),
                        (4, []) => self.selective = true,
                        _ => {}
                    }
                    &rest[value.len() + 1..]
                }
                _ => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn packet(flags: u8, numbers: (u32, u32), window: u16, options: &[u8], data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend([0, 1, 0, 2]);
        packet.extend(numbers.0.to_be_bytes());
        packet.extend(numbers.1.to_be_bytes());
        packet.extend([((5 + options.len() / 4) << 4) as u8, flags]);
        packet.extend(window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend_from_slice(options);
        packet.extend_from_slice(data);
        packet
    }

    /// A handshake with numbers that wrap around soon.
    fn opened(now: Instant) -> Seen {
        let mut seen = Seen::default();
        let options = [2, 4, 0xff, 0xc8, 4, 2, 1, 3, 3, 10, 0, 0];
        seen.guest_sends(&packet(SYN, (u32::MAX, 0), 64_240, &options, b""), now);
        let options = [2, 4, 0x05, 0xb4, 1, 3, 3, 5, 4, 2, 0, 0];
        seen.we_send(&packet(SYN | ACK, (0x8fff_ffff, 0), 65_535, &options, b""));
        seen.guest_sends(&packet(ACK, (0, 0x9000_0000), 63, &[], b""), now);
        seen
    }

    #[test]
    fn what_both_ends_agreed_on_and_how_far_they_are_is_known() {
        let now = Instant::now();
        let mut seen = opened(now);
        seen.guest_sends(&packet(ACK, (0, 0x9000_0000), 63, &[], b"question"), now);
        assert!(!seen.is_quiet(Duration::ZERO, now), "we have not said that we have it");
        seen.we_send(&packet(ACK, (0x9000_0000, 8), 2000, &[], b"answer"));
        assert!(!seen.is_quiet(Duration::ZERO, now), "the guest has not");
        seen.guest_sends(&packet(ACK, (8, 0x9000_0006), 62, &[], b""), now);
        seen.guest_sends(&packet(ACK, (8, 0x9000_0000), 9, &[], b""), now);
        assert!(!seen.is_quiet(SECOND, now) && seen.is_quiet(SECOND, now + SECOND));
        let expected = Progress {
            to_send: 0x9000_0006,
            to_receive: 8,
            windows: [62 << 10, 2000 << 5],
            scales: Some([10, 5]),
            mss: 65_480,
            selective: true,
        };
        assert_eq!(seen.progress(), expected);
    }

    #[test]
    fn a_guest_that_may_not_send_is_quiet_at_once() {
        let now = Instant::now();
        let mut seen = opened(now);
        seen.guest_sends(&packet(ACK, (0, 0x9000_0000), 63, &[], b"much"), now);
        seen.we_send(&packet(ACK, (0x9000_0000, 4), 0, &[], b""));
        assert!(seen.is_quiet(SECOND, now));
    }

    #[test]
    fn a_guest_that_may_not_send_is_told_that_it_may() {
        let now = Instant::now();
        let mut seen = opened(now);
        seen.guest_sends(&packet(ACK, (0, 0x9000_0000), 63, &[], b"much"), now);
        seen.we_send(&packet(ACK, (0x9000_0000, 4), 0, &[], b""));
        seen.open(1 << 20);
        assert_eq!(seen.progress().windows[1], 1 << 20);
        let flow =
            Flow { guest: "10.0.2.15:4000".parse().unwrap(), remote: "192.0.2.1:443".parse().unwrap() };
        let mut told = End { sent: 0x9000_0000, ..End::default() };
        let answer = seen.answer(flow);
        emit::packets(flow.inward(), TCP, &answer, usize::MAX, 0)
            .for_each(|packet| assert!(!told.hear(&packet), "it brings nothing"));
        assert_eq!((told.acknowledged, told.window), (Some(4), 1 << 15));
        assert_eq!(answer[4..8], 0x9000_0000_u32.to_be_bytes(), "no guest listens to an old one");
    }

    #[test]
    fn packets_cut_anywhere_say_nothing() {
        let whole = packet(SYN, (1, 0), 1, &[2, 4, 5, 0xb4], b"");
        for length in 0..whole.len() {
            assert_eq!(End::default().try_hear(&whole[..length]), None, "{length}");
        }
    }
}
