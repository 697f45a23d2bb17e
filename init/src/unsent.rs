//! What commands left to the kernel to send.
//!
//! A process may end as soon as it has written to a connection: its kernel sends the rest. A machine
//! takes its kernel's connections with it, so it must not end before.

use std::fs::read_to_string;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::channel::Channel;
use crate::protocol::ToGuest;

/// Where the kernel counts connections, and where it lists them.
const COUNTS: [&str; 2] = ["/proc/net/sockstat", "/proc/net/sockstat6"];
const LISTS: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// States of a connection that was closed and whose last bytes the other end has not acknowledged:
/// `FIN_WAIT1`, `LAST_ACK` and `CLOSING` (`net/tcp_states.h`).
const CLOSED_EARLY: [&str; 3] = ["04", "09", "0B"];

/// How long the other ends may take nothing, here and of what has come to the host.
pub const STALL: Duration = Duration::from_secs(5);
/// How long they may take in all, in either place.
pub const MOST: Duration = Duration::from_secs(30);

/// Between two looks; the first is the shortest.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until the other ends of closed connections have taken everything, or take nothing any more, or
/// the host says `Shutdown` once more. Says how many bytes are left.
pub(crate) fn wait(channel: &mut Channel) -> Result<u64> {
    let began = Instant::now();
    let (mut left, mut pause, mut moved) = (bytes(), SHORTEST_PAUSE, began);
    while left > 0 && moved.elapsed() < STALL && began.elapsed() < MOST {
        // How the commands ended is news already.
        channel.flush()?;
        channel.fill_within(pause)?;
        while let Some(message) = channel.next()? {
            if message == ToGuest::Shutdown {
                return Ok(bytes());
            }
        }
        pause = LONGEST_PAUSE.min(pause * 2);
        let now_left = bytes();
        if now_left != left {
            (left, moved) = (now_left, Instant::now());
        }
    }
    Ok(left)
}

/// Bytes that closed connections still hold; the end of the stream counts as one.
fn bytes() -> u64 {
    // To list them takes long on a host with many.
    if !COUNTS.iter().any(|path| read_to_string(path).is_ok_and(|text| has_any(&text))) {
        return 0;
    }
    LISTS.iter().filter_map(|path| read_to_string(path).ok()).map(|text| unacknowledged(&text)).sum()
}

/// Whether a count of sockets counts connections.
fn has_any(counts: &str) -> bool {
    let counts = counts.lines().filter_map(|line| line.strip_prefix("TCP"));
    counts.filter_map(|line| line.split_whitespace().nth(2)).any(|count| count != "0")
}

/// The sum of a list.
fn unacknowledged(list: &str) -> u64 {
    let lines = list.lines().skip(1).map(|line| line.split_whitespace().skip(3));
    lines
        .filter_map(|mut fields| {
            let is_closed = CLOSED_EARLY.contains(&fields.next()?);
            let to_send = fields.next()?.split(':').next()?;
            u64::from_str_radix(to_send, 16).ok().filter(|_| is_closed)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_in_both_families() {
        assert!(has_any("sockets: used 3\nTCP: inuse 1 orphan 1 tw 0 alloc 1 mem 1\nUDP: inuse 0 mem 0\n"));
        assert!(has_any("TCP6: inuse 2\nUDP6: inuse 0\n"));
        assert!(!has_any("sockets: used 3\nTCP: inuse 0 orphan 4 tw 9 alloc 1 mem 1\nUDP: inuse 5 mem 0\n"));
    }

    #[test]
    fn what_is_on_its_way_is_what_closed_connections_hold() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid\n";
        let line = |state: &str, to_send: &str| {
            format!("   0: 0200000A:8001 0100000A:0050 {state} {to_send}:00000000 01:00000014 00000000 0\n")
        };
        let list = |lines: &[String]| format!("{head}{}", lines.concat());
        assert_eq!(unacknowledged(&list(&[])), 0);
        // Established, listening, and waiting for the other end to close.
        let open = [line("01", "00000100"), line("0A", "00000080"), line("05", "00000000")];
        assert_eq!(unacknowledged(&list(&open)), 0);
        let closed = [line("04", "00000100"), line("09", "00000001"), line("0B", "0000000F")];
        assert_eq!(unacknowledged(&list(&[open, closed].concat())), 0x110);
    }

    #[test]
    fn the_kernels_own_lists_can_be_read() {
        use std::io::Write;
        use std::net::{TcpListener, TcpStream};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _unread = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65_536]).is_ok() {}
        drop(stream);
        // Others' are listed, too.
        assert!(bytes() > 1);
    }
}
