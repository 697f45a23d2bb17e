//! The machine's name, its loopback interface and its network card.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use nix::unistd::sethostname;
use sekexe_init::protocol::{Boot, CardSource, NetworkCard};

use crate::netlink::{Link, Requests};
use crate::sys;

/// What the card is called, as on most machines.
const CARD: &str = "eth0";

/// Gives the machine its name, its loopback and its card. What fails is a warning.
pub fn set_up(boot: &Boot, warnings: &mut Vec<String>) -> Result<()> {
    sethostname(OsStr::from_bytes(&boot.hostname)).context("set the host name")?;
    sys::interface_up("lo").unwrap_or_else(|e| warnings.push(format!("no loopback: {e:#}")));
    if let Some(card) = &boot.network {
        raise_card(card).unwrap_or_else(|e| warnings.push(format!("no network: {e:#}")));
    }
    Ok(())
}

fn raise_card(card: &NetworkCard) -> Result<()> {
    let device = match &card.source {
        CardSource::Kernel(device) => device.as_str(),
    };
    let index = if_nametoindex(device).with_context(|| format!("there is no {device}"))?;
    let mut requests = Requests::default();
    requests.set_link(&Link { index, name: CARD, address: card.mac, mtu: card.mtu });
    for end in &card.ends {
        requests.add_address(index, end.address, end.prefix);
        requests.add_default_route(index, end.gateway);
    }
    requests.send()
}
