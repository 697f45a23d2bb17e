//! As much of DNS messages (RFC 1035) as is needed to know what is asked and what was found. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// Longest name in text.
const LONGEST_NAME: usize = 255;
/// Pointers followed in one name: more is a loop.
const MOST_POINTERS: usize = 32;
/// Records looked at in one answer.
const MOST_RECORDS: usize = 256;

/// Why our server answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// No resolver of the host's could be reached.
    ServerFailure = 2,
    /// The policy forbids the question.
    Refused = 5,
}

/// The name that a message asks for, in lower case and without the last dot.
pub fn question(message: &[u8]) -> Option<String> {
    (count(message, 4)? == 1).then_some(())?;
    read_name(message, HEADER).map(|(name, _)| name)
}

/// Whether a message is the answer to a question: same number, same question.
pub fn answers(answer: &[u8], asked: &[u8]) -> bool {
    let end = |message: &[u8]| Some(read_name(message, HEADER)?.1 + 4);
    let is_answer = answer.len() >= HEADER && answer[2] & 0x80 != 0;
    let same_question = match (question(answer), question(asked), end(answer), end(asked)) {
        (Some(first), Some(second), Some(first_end), Some(second_end)) => {
            first == second
                && answer.get(first_end - 4..first_end).is_some()
                && answer.get(first_end - 4..first_end) == asked.get(second_end - 4..second_end)
        }
        // A server that cannot read the question sends its header alone.
        (None, _, _, _) => answer.len() == HEADER,
        _ => false,
    };
    is_answer && answer[..2] == asked[..2] && same_question
}

/// The addresses in an answer.
pub fn addresses(message: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let (Some(questions), Some(records)) = (count(message, 4), count(message, 6)) else { return found };
    let mut at = HEADER;
    for _ in 0..questions.min(1) {
        match read_name(message, at) {
            Some((_, end)) => at = end + 4,
            None => return found,
        }
    }
    for _ in 0..usize::from(records).min(MOST_RECORDS) {
        let Some((kind, data, next)) = read_record(message, at) else { return found };
        at = next;
        match (kind, data.len()) {
            (TYPE_A, 4) => found.push(Ipv4Addr::new(data[0], data[1], data[2], data[3]).into()),
            (TYPE_AAAA, 16) => {
                let octets: [u8; 16] = data.try_into().unwrap_or_default();
                found.push(Ipv6Addr::from(octets).into());
            }
            _ => {}
        }
    }
    found
}

/// The answer of a server that gives none.
pub fn refuse(asked: &[u8], why: Refusal) -> Option<Vec<u8>> {
    let end = read_name(asked, HEADER)?.1 + 4;
    let mut answer = asked.get(..end)?.to_vec();
    // An answer with the question's opcode and wish for recursion, recursion available.
    answer[2] = 0x80 | asked[2] & 0x79;
    answer[3] = 0x80 | why as u8;
    answer[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    Some(answer)
}

fn count(message: &[u8], at: usize) -> Option<u16> {
    message.get(..HEADER)?;
    Some(u16::from_be_bytes([message[at], message[at + 1]]))
}

/// Type, data and end of a record; a class other than the Internet's has type 0.
fn read_record(message: &[u8], at: usize) -> Option<(u16, &[u8], usize)> {
    let (_, at) = read_name(message, at)?;
    let fixed = message.get(at..at + 10)?;
    let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
    let class = u16::from_be_bytes([fixed[2], fixed[3]]);
    let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let data = message.get(at + 10..at + 10 + length)?;
    Some((if class == CLASS_IN { kind } else { 0 }, data, at + 10 + length))
}

/// A name in text, and where what follows it begins.
fn read_name(message: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let (mut at, mut end, mut pointers) = (start, None, 0);
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                if !name.is_empty() {
                    name.push('.');
                }
                let label = message.get(at + 1..at + 1 + length)?;
                name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                at += 1 + length;
            }
            192.. => {
                let low = *message.get(at + 1)?;
                end = end.or(Some(at + 2));
                at = (length & 63) << 8 | usize::from(low);
                pointers += 1;
            }
            _ => return None,
        }
        if name.chars().count() > LONGEST_NAME || pointers > MOST_POINTERS {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        message
    }

    fn answer(name: &str) -> Vec<u8> {
        let mut message = query(name);
        (message[2], message[3], message[7]) = (0x81, 0x80, 3);
        // An alias, then two addresses of it.
        message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'x', 0xc0, 12]);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        message.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
        message.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        message
    }

    #[test]
    fn a_question_and_its_answer_are_read() {
        let (asked, got) = (query("WWW.Example.org"), answer("www.example.ORG"));
        assert_eq!(question(&asked).as_deref(), Some("www.example.org"));
        assert!(answers(&got, &asked) && !answers(&asked, &asked));
        let found: Vec<String> = addresses(&got).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        let asked = query("www.example.org");
        let mut other_type = answer("www.example.org");
        other_type[asked.len() - 3] = 28;
        let mut other_number = answer("www.example.org");
        other_number[0] = 0;
        for wrong in [answer("example.org"), other_type, other_number] {
            assert!(!answers(&wrong, &asked));
        }
    }

    #[test]
    fn a_refusal_repeats_the_question() {
        let asked = query("a.example");
        let refused = refuse(&asked, Refusal::Refused).unwrap();
        assert!(answers(&refused, &asked));
        assert_eq!(refused[3] & 0xf, 5);
    }

    #[test]
    fn a_message_cut_anywhere_or_with_loops_is_no_trouble() {
        let whole = answer("www.example.org");
        for length in 0..whole.len() {
            addresses(&whole[..length]);
            question(&whole[..length]);
            answers(&whole[..length], &whole);
            refuse(&whole[..length], Refusal::ServerFailure);
        }
        let mut looped = query("a");
        looped.splice(12.., [0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(question(&looped), None);
    }
}
