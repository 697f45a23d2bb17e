//! Where the guest may connect to. Pure.
//!
//! In order: what `--deny-net` names is denied; what never has a good use from inside a guest (the
//! host's loopback, the link, the cloud's metadata services, multicast) is denied, unless an
//! `--allow-net` range lies within it; if there is any `--allow-net`, what it does not name is
//! denied; the rest is allowed. The host's loopback and multicast cannot be allowed here: the first
//! has an option of its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::LazyLock;

/// All rules of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// `--allow-net`.
    pub allow: Vec<Rule>,
    /// `--deny-net`.
    pub deny: Vec<Rule>,
}

/// One `--allow-net` or `--deny-net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    target: Target,
    ports: Vec<RangeInclusive<u16>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Range(Range),
    /// A host name in lower case, and whether those below it are meant instead.
    Name(String, bool),
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: IpAddr,
    bits: u8,
}

/// Why something is denied.
pub type Reason = &'static str;

/// Ranges that are denied by default.
const DENIED: [(&str, Reason); 20] = [
    ("169.254.0.0/16", LINK_LOCAL),
    ("fe80::/10", LINK_LOCAL),
    ("100.100.100.200/32", METADATA),
    ("168.63.129.16/32", METADATA),
    ("192.0.0.192/32", METADATA),
    ("fd00:ec2::/32", METADATA),
    ("fd20:ce::254/128", METADATA),
    ("fd00:c1::a9fe:a9fe/128", METADATA),
    ("fd00:42::42/128", METADATA),
    ("127.0.0.0/8", LOOPBACK),
    ("0.0.0.0/8", LOOPBACK),
    ("::1/128", LOOPBACK),
    ("::/128", LOOPBACK),
    ("::ffff:0.0.0.0/96", "an IPv4 address in IPv6 form"),
    ("224.0.0.0/4", MULTICAST),
    ("240.0.0.0/4", "not a host's address"),
    ("ff00::/8", MULTICAST),
    ("::/96", "an IPv4 address in IPv6 form"),
    ("fec0::/10", LINK_LOCAL),
    ("2001::/32", "an address behind a tunnel"),
];
const LINK_LOCAL: Reason = "link-local";
const METADATA: Reason = "a cloud's metadata service";
const LOOPBACK: Reason = "the host's loopback";
const MULTICAST: Reason = "multicast";
/// Named by `--deny-net`.
const NAMED: Reason = "--deny-net";
/// Not named by `--allow-net`.
const NOT_NAMED: Reason = "not among --allow-net";

impl Policy {
    /// Judges a destination. `names` are those that the guest looked up and got this address for;
    /// without a port it is something that has none, such as an echo request.
    pub fn judge(&self, address: IpAddr, port: Option<u16>, names: &[String]) -> Result<(), Reason> {
        if self.deny.iter().any(|rule| rule.meets(address, port, names)) {
            return Err(NAMED);
        }
        for address in [Some(address), embedded(address)].into_iter().flatten() {
            if let Some((range, reason)) = denied_by_default(address)
                && !(can_be_lifted(reason) && self.allow.iter().any(|r| r.lifts(range, address, port)))
            {
                return Err(reason);
            }
        }
        if self.allow.is_empty() || self.allow.iter().any(|rule| rule.meets(address, port, names)) {
            return Ok(());
        }
        Err(NOT_NAMED)
    }

    /// Whether there are rules about names.
    pub fn has_names(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(|rule| matches!(rule.target, Target::Name(..)))
    }

    /// Judges a question to the name server: it carries data away as well as a connection does.
    pub fn judge_name(&self, name: &str) -> Result<(), Reason> {
        if self.deny.iter().any(|rule| rule.ports.is_empty() && rule.names(name)) {
            return Err(NAMED);
        }
        // Any name may have an address in a range.
        let only_names = self.allow.iter().all(|rule| matches!(rule.target, Target::Name(..)));
        if self.allow.is_empty() || !only_names || self.allow.iter().any(|rule| rule.names(name)) {
            return Ok(());
        }
        Err(NOT_NAMED)
    }
}

fn can_be_lifted(reason: Reason) -> bool {
    reason == LINK_LOCAL || reason == METADATA
}

fn denied_by_default(address: IpAddr) -> Option<(Range, Reason)> {
    static RANGES: LazyLock<Vec<(Range, Reason)>> = LazyLock::new(|| {
        DENIED.iter().filter_map(|(text, reason)| Some((text.parse().ok()?, *reason))).collect()
    });
    RANGES.iter().find(|(range, _)| range.contains(address)).copied()
}

/// The IPv4 address that a translator would send this to (RFC 6052, RFC 3056).
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let o = address.octets();
    match address.segments() {
        [0x64, 0xff9b, ..] => Some(Ipv4Addr::new(o[12], o[13], o[14], o[15]).into()),
        [0x2002, ..] => Some(Ipv4Addr::new(o[2], o[3], o[4], o[5]).into()),
        _ => None,
    }
}

impl Rule {
    fn meets(&self, address: IpAddr, port: Option<u16>, names: &[String]) -> bool {
        let target = match &self.target {
            Target::Range(range) => range.contains(address),
            Target::Name(..) => names.iter().any(|name| self.names(name)),
        };
        target && self.has_port(port)
    }

    /// Whether this allows what a range that is denied by default would forbid.
    fn lifts(&self, denied: Range, address: IpAddr, port: Option<u16>) -> bool {
        match self.target {
            Target::Range(own) => denied.covers(own) && own.contains(address) && self.has_port(port),
            Target::Name(..) => false,
        }
    }

    fn has_port(&self, port: Option<u16>) -> bool {
        self.ports.is_empty() || port.is_some_and(|port| self.ports.iter().any(|range| range.contains(&port)))
    }

    fn names(&self, name: &str) -> bool {
        match &self.target {
            Target::Range(_) => false,
            Target::Name(own, false) => own == name,
            Target::Name(own, true) => {
                name.strip_suffix(own.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

impl Range {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.covers(Self { base: address, bits: full(address) })
    }

    fn covers(&self, other: Self) -> bool {
        let cut = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits().checked_shr(32 - u32::from(self.bits)).unwrap_or(0)),
            IpAddr::V6(v6) => v6.to_bits().checked_shr(128 - u32::from(self.bits)).unwrap_or(0),
        };
        self.base.is_ipv4() == other.base.is_ipv4()
            && self.bits <= other.bits
            && cut(self.base) == cut(other.base)
    }
}

fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let base: IpAddr = address.parse().map_err(|_| format!("{address:?} is no address"))?;
        let bits = match bits {
            None => full(base),
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= full(base))
                .ok_or_else(|| format!("/{bits} is no number of bits from 0 to {}", full(base)))?,
        };
        Ok(Self { base, bits })
    }
}

/// `CIDR|NAME[:PORT[-PORT][,PORT…]]`; an IPv6 range with ports stands in brackets.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, ports) = split_ports(text)?;
        let ports = match ports {
            None => Vec::new(),
            Some(list) => list.split(',').map(parse_ports).collect::<Result<_, _>>()?,
        };
        Ok(Self { target: parse_target(target)?, ports })
    }
}

fn split_ports(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, behind) = rest.split_once(']').ok_or("the bracket is not closed")?;
        return match behind {
            "" => Ok((inside, None)),
            _ => behind
                .strip_prefix(':')
                .map(|ports| (inside, Some(ports)))
                .ok_or_else(|| format!("{behind:?} after the bracket is no port; write [ADDRESS]:PORT")),
        };
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 range.
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((target, ports)) => Ok((target, Some(ports))),
        None => Ok((text, None)),
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is no port from 1 to 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    if range.is_empty() { Err(format!("{text}: the first port is above the last")) } else { Ok(range) }
}

fn parse_target(text: &str) -> Result<Target, String> {
    let looks_like_range = text.contains([':', '/']) || text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if looks_like_range {
        return text.parse().map(Target::Range);
    }
    let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(good) {
        return Err(format!("{text:?} is neither a range of addresses nor a host name"));
    }
    Ok(Target::Name(name, below))
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Policy { allow: rules(allow), deny: rules(deny) }
    }

    fn judge(policy: &Policy, to: &str, names: &[&str]) -> Result<(), Reason> {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        match to.parse::<std::net::SocketAddr>() {
            Ok(to) => policy.judge(to.ip(), Some(to.port()), &names),
            Err(_) => policy.judge(to.parse().unwrap(), None, &names),
        }
    }

    #[test]
    fn by_default_the_world_is_open_and_the_host_and_its_cloud_are_closed() {
        let open = Policy::default();
        for address in ["192.0.2.1", "10.1.2.3", "2001:db8::1", "fd00::1", "172.17.0.1", "64:ff9b::c000:201"]
        {
            assert_eq!(judge(&open, address, &[]), Ok(()), "{address}");
        }
        for (address, reason) in [
            ("127.0.0.1", LOOPBACK),
            ("127.8.9.1", LOOPBACK),
            ("0.0.0.0", LOOPBACK),
            ("::1", LOOPBACK),
            ("::", LOOPBACK),
            ("169.254.169.254", LINK_LOCAL),
            ("169.254.170.2", LINK_LOCAL),
            ("fe80::1", LINK_LOCAL),
            ("fd00:ec2::254", METADATA),
            ("fd20:ce::254", METADATA),
            ("100.100.100.200", METADATA),
            ("168.63.129.16", METADATA),
            ("224.0.0.251", MULTICAST),
            ("ff02::fb", MULTICAST),
            ("255.255.255.255", "not a host's address"),
            ("::ffff:127.0.0.1", "an IPv4 address in IPv6 form"),
            ("::127.0.0.1", "an IPv4 address in IPv6 form"),
            ("64:ff9b::a9fe:a9fe", LINK_LOCAL),
            ("2002:7f00:1::", LOOPBACK),
        ] {
            assert_eq!(judge(&open, address, &[]), Err(reason), "{address}");
        }
    }

    #[test]
    fn every_default_is_a_range() {
        for (text, _) in DENIED {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_denied_by_name_or_range_is_denied_although_it_is_allowed() {
        let policy = policy(&["10.0.0.0/8"], &["10.1.0.0/16:22,8000-8080", "bad.example"]);
        assert_eq!(judge(&policy, "10.1.2.3:22", &[]), Err(NAMED));
        assert_eq!(judge(&policy, "10.1.2.3:8080", &[]), Err(NAMED));
        assert_eq!(judge(&policy, "10.1.2.3:8081", &[]), Ok(()));
        assert_eq!(judge(&policy, "10.2.2.3:80", &["bad.example"]), Err(NAMED));
        assert_eq!(judge(&policy, "192.0.2.1:80", &[]), Err(NOT_NAMED));
    }

    #[test]
    fn names_allow_the_addresses_that_they_were_found_to_have() {
        let policy = policy(&["*.example.org:443", "example.net"], &[]);
        assert_eq!(judge(&policy, "192.0.2.1:443", &["a.b.example.org"]), Ok(()));
        assert_eq!(judge(&policy, "192.0.2.1:80", &["a.b.example.org"]), Err(NOT_NAMED));
        assert_eq!(judge(&policy, "192.0.2.1:443", &["example.org"]), Err(NOT_NAMED));
        assert_eq!(judge(&policy, "192.0.2.1:443", &["evilexample.org"]), Err(NOT_NAMED));
        assert_eq!(judge(&policy, "192.0.2.1:443", &[]), Err(NOT_NAMED));
        assert_eq!(judge(&policy, "169.254.169.254:443", &["x.example.org"]), Err(LINK_LOCAL));
        assert_eq!(
            (policy.judge_name("x.example.org"), policy.judge_name("other")),
            (Ok(()), Err(NOT_NAMED))
        );
    }

    #[test]
    fn a_default_is_lifted_only_by_a_range_within_it() {
        let exact = policy(&["169.254.169.254:80", "0.0.0.0/0"], &[]);
        assert_eq!(judge(&exact, "169.254.169.254:80", &[]), Ok(()));
        assert_eq!(judge(&exact, "169.254.169.254:81", &[]), Err(LINK_LOCAL));
        assert_eq!(judge(&exact, "169.254.170.2:80", &[]), Err(LINK_LOCAL));
        let never = policy(&["127.0.0.1", "224.0.0.1"], &[]);
        assert_eq!(judge(&never, "127.0.0.1:80", &[]), Err(LOOPBACK));
        assert_eq!(judge(&never, "224.0.0.1:80", &[]), Err(MULTICAST));
    }

    #[test]
    fn without_ranges_only_the_allowed_names_may_be_asked_for() {
        assert_eq!(policy(&["example.org", "10.0.0.0/8"], &[]).judge_name("other"), Ok(()));
        assert_eq!(policy(&[], &["other"]).judge_name("other"), Err(NAMED));
        // Only a port of it is denied.
        assert_eq!(policy(&[], &["other:80"]).judge_name("other"), Ok(()));
    }

    #[test]
    fn rules_that_are_none_are_refused() {
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "a b",
            "x:0",
            "x:70000",
            "x:9-8",
            "[::1",
            "[::1]80",
            "::1/129",
            "*.",
            "x:",
        ] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong:?}");
        }
        for right in ["[2001:db8::/32]:443", "2001:db8::1", "10.0.0.1:1-65535", "Example.ORG.:443"] {
            assert!(right.parse::<Rule>().is_ok(), "{right:?}");
        }
    }
}
