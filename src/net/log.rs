//! Whom the guest talked to, for the result file.
//!
//! One entry for each destination and fate rather than for each connection, so that no guest can
//! make the log longer than its bound. What was denied is always kept: the user has to be told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::policy::Reason;

/// Most entries.
const MOST: usize = 10_000;

/// What was spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A connection from the guest.
    Tcp,
    /// Datagrams from the guest.
    Udp,
    /// Echo requests from the guest.
    Ping,
    /// A question to our name server; it has a name and no destination.
    Name,
    /// A connection from outside to a published port.
    PublishedTcp,
    /// Datagrams from outside to a published port.
    PublishedUdp,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was carried.
    Carried,
    /// It could not be had, with the host's reason.
    Failed(String),
    /// The policy forbade it.
    Denied(Reason),
}

/// All that had the same destination and the same fate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contact {
    /// What was spoken.
    pub protocol: Protocol,
    /// With whom, as the guest sees it.
    pub destination: Option<SocketAddr>,
    /// Names that the guest looked up and found this address for, or asked for.
    pub names: Vec<String>,
    /// What came of it.
    pub fate: Fate,
    /// How many times.
    pub times: u64,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
    /// Bytes that the guest received.
    pub received_bytes: u64,
}

/// The log.
#[derive(Debug, Default)]
pub struct Log {
    everything: bool,
    contacts: BTreeMap<(Protocol, Option<SocketAddr>, Option<String>, Fate), Contact>,
    left_out: u64,
}

/// What the log came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The entries.
    pub contacts: Vec<Contact>,
    /// Contacts beyond the log's bound.
    pub left_out: u64,
    /// Bytes of the guest's that were not taken in the end.
    pub unsent_bytes: u64,
}

impl Log {
    /// A log of everything, or only of what was denied.
    pub fn new(everything: bool) -> Self {
        Self { everything, ..Self::default() }
    }

    /// Adds a contact that came to its end.
    pub fn add(
        &mut self,
        protocol: Protocol,
        destination: SocketAddr,
        names: &[String],
        fate: Fate,
        (sent, received): (u64, u64),
    ) {
        self.insert(protocol, Some(destination), names, fate, (sent, received));
    }

    /// Adds a question for a name.
    pub fn add_name(&mut self, name: &str, fate: Fate) {
        self.insert(Protocol::Name, None, &[name.to_owned()], fate, (0, 0));
    }

    fn insert(
        &mut self,
        protocol: Protocol,
        destination: Option<SocketAddr>,
        names: &[String],
        fate: Fate,
        (sent, received): (u64, u64),
    ) {
        if !self.everything && !matches!(fate, Fate::Denied(_)) {
            return;
        }
        let asked = if destination.is_none() { names.first().cloned() } else { None };
        let key = (protocol, destination, asked, fate.clone());
        if self.contacts.len() >= MOST && !self.contacts.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        let contact = self.contacts.entry(key).or_insert_with(|| Contact {
            protocol,
            destination,
            names: Vec::new(),
            fate,
            times: 0,
            sent_bytes: 0,
            received_bytes: 0,
        });
        names.iter().for_each(|name| {
            if !contact.names.contains(name) {
                contact.names.push(name.clone());
            }
        });
        contact.times += 1;
        contact.sent_bytes += sent;
        contact.received_bytes += received;
    }

    /// What it came to, with so many bytes that were not taken.
    pub fn into_record(self, unsent_bytes: u64) -> Record {
        Record { contacts: self.contacts.into_values().collect(), left_out: self.left_out, unsent_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contacts_with_the_same_fate_are_one_entry() {
        let mut log = Log::new(true);
        let to: SocketAddr = "192.0.2.1:443".parse().unwrap();
        log.add(Protocol::Tcp, to, &["a.example".into()], Fate::Carried, (1, 10));
        log.add(Protocol::Tcp, to, &["b.example".into()], Fate::Carried, (2, 20));
        log.add(Protocol::Tcp, to, &[], Fate::Denied("--deny-net"), (0, 0));
        let record = log.into_record(0);
        let carried = &record.contacts[0];
        assert_eq!((carried.times, carried.sent_bytes, carried.received_bytes), (2, 3, 30));
        assert_eq!(carried.names, ["a.example", "b.example"]);
        assert_eq!(record.contacts.len(), 2);
    }

    #[test]
    fn unasked_only_denials_are_kept_and_never_more_than_the_bound() {
        let mut log = Log::new(false);
        for port in 0..=u16::MAX {
            let to = SocketAddr::from(([192, 0, 2, 1], port));
            log.add(Protocol::Tcp, to, &[], Fate::Carried, (1, 1));
            log.add(Protocol::Tcp, to, &[], Fate::Denied("link-local"), (0, 0));
        }
        let record = log.into_record(0);
        assert_eq!((record.contacts.len(), record.left_out), (MOST, 65_536 - MOST as u64));
        assert!(record.contacts.iter().all(|contact| matches!(contact.fate, Fate::Denied(_))));
    }
}
