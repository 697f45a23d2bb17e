//! The host's resolvers, as `/etc/resolv.conf` names them now.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Servers that are asked: what the C library's resolver takes.
const MOST: usize = 3;
const PORT: u16 = 53;

/// The resolvers, read again when the file changed.
#[derive(Debug)]
pub struct Servers {
    file: PathBuf,
    seen: Option<Version>,
    list: Vec<SocketAddr>,
}

/// What of a file changes when its contents do.
type Version = (u64, u64, u64, i64, i64);

impl Servers {
    /// Those that a file names.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), seen: None, list: parse(&fs::read_to_string(file).unwrap_or_default()) }
    }

    /// Those that it names now.
    pub fn current(&mut self) -> &[SocketAddr] {
        let version = fs::metadata(&self.file)
            .ok()
            .map(|found| (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()));
        if version != self.seen {
            self.seen = version;
            self.list = parse(&fs::read_to_string(&self.file).unwrap_or_default());
        }
        &self.list
    }
}

/// The servers in a `resolv.conf`; this machine itself where it names none, as the C library does.
fn parse(text: &str) -> Vec<SocketAddr> {
    let words = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next()? == "nameserver").then(|| words.next())?
    };
    let mut servers: Vec<SocketAddr> =
        text.lines().filter_map(words).filter_map(|word| parse_address(&word)).collect();
    servers.truncate(MOST);
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

/// An address, with the interface behind `%` that a link-local one needs.
fn parse_address(text: &str) -> Option<SocketAddr> {
    if let Some((address, interface)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let scope = match interface.parse() {
            Ok(number) => number,
            Err(_) => nix::net::if_::if_nametoindex(interface).ok()?,
        };
        return Some(SocketAddrV6::new(address, PORT, 0, scope).into());
    }
    Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT))
}

/// What the guest's `resolv.conf` shall say: our server, and the host's search list and options.
pub fn for_guest(host: &str, server: Ipv4Addr) -> String {
    let mut text = format!("nameserver {server}\n");
    for line in host.lines() {
        let is_wanted = |word: &str| ["search", "domain", "options"].contains(&word);
        if line.split_whitespace().next().is_some_and(is_wanted) {
            text.push_str(line.trim());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<String> {
        parse(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_of_every_form_are_read_and_no_more_than_three() {
        let text = "# a comment\nnameserver 192.0.2.1\nnameserver\t2001:db8::1  # behind\nsearch x\nnameserver fe80::1%lo\n";
        assert_eq!(listed(text), ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
        let many: String = (1..=20).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(listed(&many).len(), 3);
    }

    #[test]
    fn without_any_it_is_this_machine() {
        for text in ["", "nameserver\n", "nameserver nonsense\n", "search example.org\n"] {
            assert_eq!(listed(text), ["127.0.0.1:53"], "{text:?}");
        }
    }

    #[test]
    fn a_change_of_the_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut servers = Servers::new(&file);
        assert_eq!(servers.current()[0].to_string(), "127.0.0.1:53");
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(servers.current()[0].to_string(), "192.0.2.1:53");
        fs::write(dir.path().join("new"), "nameserver 192.0.2.2\n").unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        assert_eq!(servers.current()[0].to_string(), "192.0.2.2:53");
    }

    #[test]
    fn the_guest_gets_our_server_and_the_hosts_search_list() {
        let host = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\nsortlist x\n";
        let guest = for_guest(host, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(guest, "nameserver 10.0.2.3\noptions edns0 trust-ad\nsearch example.org\n");
    }
}
