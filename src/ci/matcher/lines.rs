//! Cuts a stream into lines, and takes from a line what only colours it.
//!
//! A line ends with a line feed, a carriage return or both, as for GitHub's runner. Only a line that
//! comes in pieces is copied, and of one without end only its beginning.

/// Longest line looked at, in bytes.
const LONGEST: usize = 64 << 10;

/// A stream's unfinished line.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// The last byte was a carriage return, whose line feed may follow.
    returned: bool,
    /// Whether nothing stands behind the last line's end.
    inside: bool,
}

impl Lines {
    /// Gives each line that ends in `bytes` to `take`.
    pub fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) {
        if !bytes.is_empty() && std::mem::take(&mut self.returned) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) {
            let line = &bytes[..end];
            if self.partial.is_empty() {
                take(&line[..line.len().min(LONGEST)]);
            } else {
                self.keep(line);
                take(&self.partial);
                self.partial.clear();
            }
            let mut next = end + 1;
            if bytes[end] == b'\r' {
                match bytes.get(next) {
                    Some(b'\n') => next += 1,
                    Some(_) => {}
                    None => self.returned = true,
                }
            }
            bytes = &bytes[next..];
            self.inside = false;
        }
        self.inside |= !bytes.is_empty();
        self.keep(bytes);
    }

    /// Gives the last line, which nothing ends.
    pub fn finish(&mut self, take: impl FnOnce(&[u8])) {
        if !self.partial.is_empty() {
            take(&self.partial);
            self.partial.clear();
        }
    }

    /// Whether what is written next would continue a line.
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LONGEST.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// The line without colours, links and other orders to a terminal; in `buffer`, if it has any.
pub fn without_orders<'a>(line: &'a [u8], buffer: &'a mut Vec<u8>) -> &'a [u8] {
    let Some(first) = memchr::memchr(ESCAPE, line) else { return line };
    buffer.clear();
    buffer.extend_from_slice(&line[..first]);
    let mut rest = &line[first..];
    while let Some((&byte, behind)) = rest.split_first() {
        if byte != ESCAPE {
            let end = memchr::memchr(ESCAPE, rest).unwrap_or(rest.len());
            buffer.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        rest = match behind.first() {
            // Parameters, then a letter.
            Some(b'[') => match behind[1..].iter().position(|byte| (0x40..=0x7e).contains(byte)) {
                Some(end) => &behind[end + 2..],
                None => &[],
            },
            // A link or a title, up to a bell or an escape and a backslash.
            Some(b']') => match memchr::memchr2(BELL, ESCAPE, behind) {
                Some(end) if behind[end] == BELL => &behind[end + 1..],
                Some(end) => behind.get(end + 2..).unwrap_or_default(),
                None => &[],
            },
            // One character, perhaps with some before it that say of what kind it is.
            Some(_) => match behind.iter().position(|byte| !(0x20..=0x2f).contains(byte)) {
                Some(end) => &behind[end + 1..],
                None => &[],
            },
            None => &[],
        };
    }
    buffer
}

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 7;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        pieces.iter().for_each(|piece| lines.feed(piece, |line| all.push(line.to_owned())));
        lines.finish(|line| all.push(line.to_owned()));
        all
    }

    #[test]
    fn each_end_of_a_line_ends_one() {
        assert_eq!(cut(&[b"a\nb\r\nc\rd"]), [b"a", b"b", b"c", b"d"]);
        assert_eq!(cut(&[b"a\r", b"\nb\n\n"]), [&b"a"[..], b"b", b""]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(bytes in "[ab\r\n]{0,40}", cuts in prop::collection::vec(0..40usize, 0..6)) {
            let bytes = bytes.as_bytes();
            let mut ends: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).chain([0, bytes.len()]).collect();
            ends.sort_unstable();
            let pieces: Vec<&[u8]> = ends.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(&pieces), cut(&[bytes]));
        }

        #[test]
        fn orders_to_a_terminal_go_and_nothing_else(words in prop::collection::vec("[a-z:é]{0,5}", 4)) {
            let colored = format!("{}\x1b[01;31m\x1b[K{}\x1b]8;;http://x\x1b\\{}\x1b]8;;\x07{}\x1b(B", words[0], words[1], words[2], words[3]);
            let mut buffer = Vec::new();
            let plain = words.concat();
            prop_assert_eq!(without_orders(colored.as_bytes(), &mut buffer), plain.as_bytes());
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = Vec::new();
            prop_assert!(!without_orders(&bytes, &mut buffer).contains(&ESCAPE));
        }
    }

    #[test]
    fn a_line_without_end_fills_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            lines.feed(&[b'x'; 10_000], |_| panic!("there is no end"));
        }
        assert!(lines.is_inside());
        lines.finish(|line| assert_eq!(line.len(), LONGEST));
    }
}
