//! What smoltcp takes for a network device: one packet in, any number out into our queue.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::seen::Seen;
use crate::net::link::Outbox;

/// A device for one turn of one connection.
pub struct Turn<'a> {
    /// The packet to be taken.
    pub incoming: Option<&'a [u8]>,
    /// Where packets go.
    pub out: &'a mut Outbox,
    /// What remembers them.
    pub seen: &'a mut Seen,
}

pub struct Incoming<'a>(&'a [u8]);
pub struct Outgoing<'a>(&'a mut Outbox, &'a mut Seen);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let Self(out, seen) = self;
        out.fill_packet(length, |packet| {
            let done = write(packet);
            seen.we_send(packet);
            done
        })
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
        Some((Incoming(self.incoming.take()?), Outgoing(self.out, self.seen)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (!self.out.is_full()).then_some(Outgoing(self.out, self.seen))
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
