//! What a connection's segments say about it: enough for somebody else to be one of its ends.

use std::time::{Duration, Instant};

use super::{ACK, RST, SYN};
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

    fn our_window(&self) -> u32 {
        let shift = self.ours.scale.filter(|_| self.guest.scale.is_some()).unwrap_or(0);
        u32::from(self.ours.window) << shift
    }
}

impl End {
    /// Reads a packet that this end sends. Says whether it brings something new.
    fn hear(&mut self, packet: &[u8]) -> bool {
        self.try_hear(packet).unwrap_or(false)
    }

    fn try_hear(&mut self, packet: &[u8]) -> Option<bool> {
        let start = if packet.first()? >> 4 == 6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
        let segment = packet.get(start..)?;
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
