//! Proxies that the caller's environment names. Pure.
//!
//! A proxy on the host's loopback is at another address for the guest: its own loopback is another
//! one. So its variables are rewritten to the gateway's address, and the port is opened there.

use std::net::{IpAddr, Ipv4Addr};

/// Variables that name a proxy, in lower case; upper case is common too.
const VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"];

/// Whether a variable names a proxy.
pub fn is_variable(name: &str) -> bool {
    VARIABLES.contains(&name) || VARIABLES.contains(&name.to_ascii_lowercase().as_str())
}

/// The value for the guest and the port of the host's loopback that it leads to; nothing where the
/// proxy is elsewhere.
pub fn map(value: &str, gateway: Ipv4Addr) -> Option<(String, u16)> {
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    let before = &value[..value.len() - rest.len()];
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let (user, host) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    let (name, port) = match host.strip_prefix('[') {
        Some(inside) => {
            let (name, port) = inside.split_once(']')?;
            (name, port.strip_prefix(':'))
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_loopback = name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let port = match (port, scheme.to_ascii_lowercase().as_str()) {
        (Some(port), _) => port.parse().ok()?,
        (None, "https") => 443,
        (None, scheme) if scheme.starts_with("socks") => 1080,
        (None, _) => 80,
    };
    is_loopback.then(|| (format!("{before}{user}{gateway}:{port}{behind}"), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_on_the_loopback_is_mapped_and_no_other() {
        let map = |value| map(value, Ipv4Addr::new(10, 0, 2, 2));
        for (value, mapped, port) in [
            ("http://127.0.0.1:3128", "http://10.0.2.2:3128", 3128),
            ("http://localhost:3128/", "http://10.0.2.2:3128/", 3128),
            ("localhost:8080", "10.0.2.2:8080", 8080),
            ("http://us%40er:p@ss@[::1]:1/x?y", "http://us%40er:p@ss@10.0.2.2:1/x?y", 1),
            ("socks5h://127.1.2.3", "socks5h://10.0.2.2:1080", 1080),
            ("https://LOCALHOST", "https://10.0.2.2:443", 443),
        ] {
            assert_eq!(map(value), Some((mapped.to_owned(), port)), "{value}");
        }
        for value in
            ["", "http://proxy.example:3128", "http://192.0.2.1:3128", "http://localhost:x", "http://[::1"]
        {
            assert_eq!(map(value), None, "{value:?}");
        }
    }
}
