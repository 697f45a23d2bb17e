//! What smoltcp takes for a network device: one packet in, any number out into our queue, or at once
//! into the guest's memory.

use std::os::fd::BorrowedFd;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::peeked::Peeked;
use super::seen::Seen;
use crate::net::frame::Data;
use crate::net::link::Outbox;

/// A device for one turn of one connection.
pub struct Turn<'a> {
    /// The packet to be taken.
    pub incoming: Option<&'a [u8]>,
    /// Where packets go.
    pub out: &'a mut Outbox,
    /// What remembers them.
    pub seen: &'a mut Seen,
    /// Where their data come from, if not from smoltcp.
    pub data: Option<(&'a mut Peeked, BorrowedFd<'a>)>,
}

pub struct Incoming<'a>(&'a [u8]);
pub struct Outgoing<'a> {
    out: &'a mut Outbox,
    seen: &'a mut Seen,
    data: Option<(&'a mut Peeked, BorrowedFd<'a>)>,
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let Self { out, seen, data } = self;
        let fill = |packet: &mut [u8]| {
            let done = write(packet);
            seen.we_send(packet);
            (done, Data::of(packet))
        };
        match data {
            Some((peeked, host)) => {
                out.place_packet(length, fill, |data, places| peeked.copy(host, data.number, places))
            }
            None => out.fill_packet(length, fill).0,
        }
    }
}

impl Device for Turn<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        // What is answered at once has no data.
        let answer = Outgoing { out: self.out, seen: self.seen, data: None };
        Some((Incoming(self.incoming.take()?), answer))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        let Self { out, seen, data, .. } = self;
        let data = data.as_mut().map(|(peeked, host)| (&mut **peeked, *host));
        let has_room = if data.is_some() { out.has_place() } else { !out.is_full() };
        has_room.then_some(Outgoing { out, seen, data })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.out.mtu();
        // What comes is not verified: it came through this machine's memory.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = if self.out.offload() { Checksum::None } else { Checksum::Tx };
        capabilities
    }
}
