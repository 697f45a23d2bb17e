//! From the network's options to a network: what a machine and its init have to know of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use sekexe_init::protocol::{CardSource, NetworkCard, NetworkEnd};

use super::Environment;
use super::job::Additions;
use crate::cli::network::{NetworkArgs, NetworkKind};
use crate::machine::card::MTU;
use crate::net::policy::Policy;
use crate::net::{self, Addresses, Fate, Protocol, Record, Settings, proxy};
use crate::plan::Machine;

/// Where the host's resolvers stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The gateway's name in the guest.
const GATEWAY_NAME: &str = "host.sekexe.internal";
/// Destinations that a message about refusals names.
const NAMED: usize = 5;

/// Works out what was asked for, binds the published ports, and turns `variables` to a proxy on the
/// host's loopback. Nothing where the machine shall have no network.
pub fn prepare(
    args: &NetworkArgs,
    env: &Environment,
    machine: &Machine,
    variables: &mut [(OsString, OsString)],
) -> Result<Option<Settings>> {
    match args.network {
        NetworkKind::User => {}
        NetworkKind::None if *machine == Machine::None => {
            bail!("--network none: nothing keeps the command from your network; leave --isolation none out")
        }
        NetworkKind::None => return without(args, "--network none"),
        NetworkKind::Host if *machine == Machine::Guest => bail!(
            "--network host: a guest kernel has a network of its own and cannot use this machine's; leave it \
             out, and open ports of the loopback with --host-loopback"
        ),
        NetworkKind::Host => return without(args, "--network host"),
    }
    if *machine == Machine::None {
        return without(args, "--isolation none");
    }
    let addresses = Addresses::choose(&net::host_addresses());
    let mut host_loopback: BTreeSet<u16> = args.host_loopback.iter().copied().collect();
    // Through a proxy everything is reached, so a list of what may be reached has to name it too.
    let opens = args.allow_net.is_empty();
    for (name, value) in variables {
        let is_ours = env.get(&*name).is_some_and(|own| own == value);
        let (Some(name), Some(text)) = (name.to_str(), value.to_str()) else { continue };
        if let Some((mapped, port)) =
            proxy::map(text, addresses.gateway_v4()).filter(|_| is_ours && proxy::is_variable(name))
        {
            *value = mapped.into();
            if opens {
                host_loopback.insert(port);
            }
        }
    }
    Ok(Some(Settings {
        addresses,
        policy: Policy { allow: args.allow_net.clone(), deny: args.deny_net.clone() },
        host_loopback,
        published: args.publish.iter().map(net::publish::Publish::bind).collect::<Result<_>>()?,
        resolv_conf: PathBuf::from(RESOLV_CONF),
        log_everything: args.log_network,
    }))
}

/// No network of ours, where nothing was asked of it.
fn without(args: &NetworkArgs, why: &str) -> Result<Option<Settings>> {
    let asked = [
        (args.publish.is_empty(), "--publish"),
        (args.host_loopback.is_empty(), "--host-loopback"),
        (args.allow_net.is_empty(), "--allow-net"),
        (args.deny_net.is_empty(), "--deny-net"),
        (!args.log_network, "--log-network"),
    ];
    match asked.into_iter().find(|(unused, _)| !unused) {
        Some((_, option)) => bail!("{why}: there is no network for {option}; leave one of them out"),
        None => Ok(None),
    }
}

/// What names a machine has to know that uses the host's network: the host's, wherever they stand.
pub fn additions_of_host() -> Additions {
    Additions { hosts: Vec::new(), resolv_conf: fs::read_to_string(RESOLV_CONF).ok() }
}

/// What the init does with the machine's card.
pub fn card(addresses: &Addresses, source: CardSource) -> NetworkCard {
    let end = |address: IpAddr, prefix, gateway: IpAddr| NetworkEnd { address, prefix, gateway };
    let mut ends = vec![end(addresses.guest_v4().into(), net::PREFIX_V4, addresses.gateway_v4().into())];
    if addresses.has_v6() {
        ends.push(end(addresses.guest_v6().into(), net::PREFIX_V6, addresses.gateway_v6().into()));
    }
    NetworkCard { source, mac: net::GUEST_MAC, others_mac: net::HOST_MAC, mtu: MTU as u32, ends }
}

/// What names the machine has to know for it.
pub fn additions(addresses: &Addresses) -> Additions {
    let mut hosts = vec![(GATEWAY_NAME, IpAddr::from(addresses.gateway_v4()))];
    if addresses.has_v6() {
        hosts.push((GATEWAY_NAME, addresses.gateway_v6().into()));
    }
    let host = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    Additions { hosts, resolv_conf: Some(net::resolv_conf_for_guest(&host, addresses.dns_v4())) }
}

/// What the policy refused, in words: a failed command would be a riddle otherwise.
pub fn refusals(record: &Record) -> Option<String> {
    let refused: Vec<String> = record
        .contacts
        .iter()
        .filter_map(|contact| match (contact.fate.clone(), contact.destination) {
            // Devices announce themselves unasked.
            (Fate::Denied("multicast"), _) => None,
            (Fate::Denied(reason), Some(to)) if contact.protocol == Protocol::Ping => {
                Some(format!("{} ({reason})", to.ip()))
            }
            (Fate::Denied(reason), Some(to)) => Some(format!("{to} ({reason})")),
            (Fate::Denied(reason), None) => Some(format!("the name {} ({reason})", contact.names.join(" "))),
            _ => None,
        })
        .collect();
    if refused.is_empty() {
        return None;
    }
    let more = refused.len().saturating_sub(NAMED);
    let named = refused[..refused.len() - more].join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!("connections were refused: {named}{more}"))
}
