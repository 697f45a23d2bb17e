//! Host ports that lead into the guest: `--publish [ADDR:]HOST:GUEST[/udp]`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::str::FromStr;

use anyhow::{Result, anyhow};

use crate::sys::tcp::{bound_buffers, send_unpaced};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// Whether it is about datagrams.
    pub udp: bool,
}

/// A host socket for it.
#[derive(Debug)]
pub enum Published {
    /// Listening.
    Tcp(TcpListener, u16),
    /// Bound.
    Udp(UdpSocket, u16),
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, udp) = match text.rsplit_once('/') {
            None => (text, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some((_, other)) => return Err(format!("{other:?} is neither tcp nor udp")),
        };
        let (host, guest) =
            ports.rsplit_once(':').ok_or("the guest's port is missing; write HOST:GUEST, as in 8080:80")?;
        let (address, host) = match host.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST.into(), host),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
                let parsed = bare.parse::<IpAddr>();
                (parsed.map_err(|_| format!("{address:?} is no address of this machine"))?, host)
            }
        };
        Ok(Self { host: SocketAddr::new(address, port(host)?), guest: port(guest)?, udp })
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is no port from 1 to 65535")),
    }
}

impl Publish {
    /// Takes the host's port.
    pub fn bind(&self) -> Result<Published> {
        let bound = if self.udp {
            UdpSocket::bind(self.host).and_then(|socket| {
                socket.set_nonblocking(true)?;
                Ok(Published::Udp(socket, self.guest))
            })
        } else {
            TcpListener::bind(self.host).and_then(|listener| {
                listener.set_nonblocking(true)?;
                bound_buffers(listener.as_fd());
                if self.host.ip().is_loopback() {
                    let _ = send_unpaced(listener.as_fd());
                }
                Ok(Published::Tcp(listener, self.guest))
            })
        };
        bound.map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::AddrInUse => "another program has it; choose another port",
                ErrorKind::PermissionDenied => "ports below 1024 are root's; choose a higher one",
                ErrorKind::AddrNotAvailable => "this machine has no such address; see `ip address`",
                _ => "choose another address or port",
            };
            anyhow!("--publish {}: {error}; {remedy}", self.host)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_are_read() {
        for (text, host, guest, udp) in [
            ("8080:80", "127.0.0.1:8080", 80, false),
            ("0.0.0.0:53:5353/udp", "0.0.0.0:53", 5353, true),
            ("[::1]:1:2/tcp", "[::1]:1", 2, false),
            ("::1:1:2", "[::1]:1", 2, false),
        ] {
            let host = host.parse().unwrap();
            assert_eq!(text.parse(), Ok(Publish { host, guest, udp }), "{text}");
        }
        for wrong in ["", "80", "80:", ":80", "0:80", "80:99999", "x:1:2", "80:80/sctp", "host:80:80"] {
            assert!(wrong.parse::<Publish>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_port_in_use_is_refused_with_a_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let publish = Publish { host: taken.local_addr().unwrap(), guest: 80, udp: false };
        let error = publish.bind().unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("choose another port"), "{error}");
    }
}
