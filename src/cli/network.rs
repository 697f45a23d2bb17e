//! The network's options, which every command with a machine has.

use clap::{Args, ValueEnum};

use crate::net::policy::Rule;
use crate::net::publish::Publish;

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// What the command can reach
    #[arg(long, value_name = "KIND", default_value = "user")]
    pub network: NetworkKind,
    /// Lead a port of this machine into the guest, repeatable (8080:80, 0.0.0.0:5353:53/udp)
    #[arg(long, value_name = "[ADDR:]HOST:GUEST[/udp]")]
    pub publish: Vec<Publish>,
    /// Ports of this machine's loopback that the guest reaches at host.sekexe.internal
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub host_loopback: Vec<u16>,
    /// Allow connections there and nowhere else, repeatable (10.0.0.0/8, *.example.org:443,8080-8090)
    #[arg(long, value_name = "CIDR|NAME[:PORT]")]
    pub allow_net: Vec<Rule>,
    /// Refuse connections there, repeatable
    ///
    /// The host's loopback, link-local addresses, the metadata services of clouds and multicast are
    /// refused in any case; --allow-net with an address of a link or a cloud lifts it for that one.
    #[arg(long, value_name = "CIDR|NAME[:PORT]")]
    pub deny_net: Vec<Rule>,
    /// Write every connection to the result: destination, names asked for, bytes
    #[arg(long)]
    pub log_network: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkKind {
    /// What this machine reaches, through its own sockets
    User,
    /// Nothing but itself
    None,
    /// This machine's own network, its loopback included
    Host,
}
