//! What the guest is told about packets that cannot be delivered, and answers to its echo requests.

use std::net::IpAddr;

use nix::errno::Errno;

use super::checksum::Sum;
use super::core::Core;
use super::emit::Ends;
use super::frame::{ICMP, ICMPV6, Packet};

/// Bytes of a packet that its error quotes: enough for every header, as RFC 1812 and RFC 4443 want.
const QUOTED_V4: usize = 548;
const QUOTED_V6: usize = 1232;

/// Why a packet cannot be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no way to that network.
    Network,
    /// The host is not there.
    Host,
    /// Nobody listens.
    Port,
    /// The policy forbids it.
    Prohibited,
    /// Longer than what the way carries, in bytes.
    TooBig(u16),
}

impl Trouble {
    /// The trouble that a host socket's error stands for.
    pub fn of(errno: Errno) -> Option<Self> {
        match errno {
            Errno::ENETUNREACH | Errno::ENETDOWN => Some(Self::Network),
            Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::EADDRNOTAVAIL => Some(Self::Host),
            Errno::ECONNREFUSED => Some(Self::Port),
            Errno::EACCES | Errno::EPERM => Some(Self::Prohibited),
            _ => None,
        }
    }

    fn type_code_v4(self) -> [u8; 2] {
        match self {
            Self::Network => [3, 0],
            Self::Host => [3, 1],
            Self::Port => [3, 3],
            Self::TooBig(_) => [3, 4],
            Self::Prohibited => [3, 13],
        }
    }

    fn type_code_v6(self) -> [u8; 2] {
        match self {
            Self::Network => [1, 0],
            Self::Prohibited => [1, 1],
            Self::Host => [1, 3],
            Self::Port => [1, 4],
            Self::TooBig(_) => [2, 0],
        }
    }
}

/// Tells the guest why its packet was not delivered.
pub fn report(core: &mut Core, packet: &Packet<'_>, trouble: Trouble) {
    let is_error = match packet.protocol {
        ICMP => !matches!(packet.payload.first(), Some(0 | 8)),
        ICMPV6 => packet.payload.first().is_some_and(|kind| kind & 0x80 == 0),
        _ => false,
    };
    if is_error || packet.destination.is_multicast() || !core.is_guest(packet.source) {
        return;
    }
    let (_, gateway) = core.addresses.guest_and_gateway(packet.source);
    // Only the host itself can say that nobody listens there.
    let source = if trouble == Trouble::Port { packet.destination } else { gateway };
    let ends = Ends { source, destination: packet.source };
    let (type_code, quoted) = match packet.source {
        IpAddr::V4(_) => (trouble.type_code_v4(), QUOTED_V4),
        IpAddr::V6(_) => (trouble.type_code_v6(), QUOTED_V6),
    };
    let mut message = [0; 8].to_vec();
    message[..2].copy_from_slice(&type_code);
    if let Trouble::TooBig(mtu) = trouble {
        message[6..8].copy_from_slice(&mtu.to_be_bytes());
    }
    message.extend_from_slice(&packet.whole[..packet.whole.len().min(quoted)]);
    send(core, ends, message);
}

/// Sends a message whose checksum is still missing.
pub fn send(core: &mut Core, ends: Ends, mut message: Vec<u8>) {
    let (protocol, sum) = match ends.source {
        IpAddr::V4(_) => (ICMP, Sum::default()),
        IpAddr::V6(_) => {
            (ICMPV6, Sum::of_pseudo_header(ends.source, ends.destination, ICMPV6, message.len()))
        }
    };
    message[2..4].fill(0);
    let checksum = sum.add(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    core.out.payload(ends, protocol, &message);
}
