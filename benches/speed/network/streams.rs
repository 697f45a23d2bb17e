//! Connections of a machine to the host, beside a native one over loopback and beside what others
//! use for networks without root: slirp4netns and pasta. Each of these needs `/dev/net/tun` open to the
//! user, and pasta even to root, since it gives root up.
//!
//! All run the same client, which measures by itself: one stream in each direction, and how long a
//! connection takes that carries a byte each way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::measure::{self, Bench, Contender, Figures};
use crate::table::{Bar, Line, Measure};

/// The client: address, port, megabytes of a stream, connections.
const CLIENT: &str = include_str!("client.py");

/// Megabytes of a stream.
const AMOUNT: usize = 256;
/// Short connections in a row; the figure is their median.
const CONNECTIONS: usize = 200;

const NAMESPACES_UP: &str = "namespaces: stream to the host";
const NAMESPACES_DOWN: &str = "namespaces: stream from the host";
const NAMESPACES_CONNECT: &str = "namespaces: connect, a byte, close";
const UML_UP: &str = "guest: stream to the host";
const UML_DOWN: &str = "guest: stream from the host";
const UML_CONNECT: &str = "guest: connect, a byte, close";

const NATIVE: &str = "native loopback";
const SLIRP: &str = "slirp4netns";
const PASTA: &str = "pasta";

const BESIDE_NAMESPACES: &[(&str, Option<Bar>)] = &[
    (NATIVE, Some(Bar::AtLeastTimesPeer(0.6))),
    (SLIRP, Some(Bar::AtLeastTimesPeer(2.0))),
    (PASTA, Some(Bar::AtLeastTimesPeer(1.0))),
];
const BESIDE_GUEST: &[(&str, Option<Bar>)] =
    &[(NATIVE, Some(Bar::AtLeastTimesPeer(0.4))), (SLIRP, None), (PASTA, None)];
const CONNECTING_NAMESPACES: &[(&str, Option<Bar>)] =
    &[(NATIVE, Some(Bar::TimesPeer(2.5))), (SLIRP, None), (PASTA, None)];
const CONNECTING_GUEST: &[(&str, Option<Bar>)] =
    &[(NATIVE, Some(Bar::TimesPeer(6.0))), (SLIRP, None), (PASTA, None)];

const OF_NAMESPACES: [Measure; 3] = [
    Measure { what: NAMESPACES_UP, unit: "Gbit/s", bar: None, peers: BESIDE_NAMESPACES },
    Measure { what: NAMESPACES_DOWN, unit: "Gbit/s", bar: None, peers: BESIDE_NAMESPACES },
    Measure { what: NAMESPACES_CONNECT, unit: "µs", bar: None, peers: CONNECTING_NAMESPACES },
];
const OF_GUEST: [Measure; 3] = [
    Measure { what: UML_UP, unit: "Gbit/s", bar: None, peers: BESIDE_GUEST },
    Measure { what: UML_DOWN, unit: "Gbit/s", bar: None, peers: BESIDE_GUEST },
    Measure { what: UML_CONNECT, unit: "µs", bar: None, peers: CONNECTING_GUEST },
];

/// Measures all of it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let port = serve().context("serve on the loopback")?.to_string();
    let ours = |isolation: &str| {
        let mut exec = bench.sekexe.exec_in(isolation);
        exec.args(["--host-loopback", &port, "--", "python3"]);
        figures(exec.args(client("host.sekexe.internal", &port)))
    };
    let contenders = vec![
        Contender::new(NATIVE, || figures(Command::new("python3").args(client("127.0.0.1", &port)))),
        Contender::new(SLIRP, || slirp(&port)),
        Contender::new(PASTA, || {
            let mut pasta = Command::new("pasta");
            pasta.args(["--config-net", "-t", "none", "-T", "none", "--", "python3"]);
            figures(pasta.args(client(&gateway()?, &port)))
        }),
        Contender::new("namespaces", || ours("namespaces")),
        Contender::new("guest", || ours("uml")),
    ];
    let medians = bench.take_turns("network", contenders);
    let namespaces = OF_NAMESPACES.iter().flat_map(|measure| measure.lines(&medians, "namespaces"));
    let guest = OF_GUEST.iter().flat_map(|measure| measure.lines(&medians, "guest"));
    Ok(namespaces.chain(guest).collect())
}

/// Arguments for an interpreter.
fn client(address: &str, port: &str) -> [String; 6] {
    let number = |number: usize| number.to_string();
    ["-c".into(), CLIENT.into(), address.into(), port.into(), number(AMOUNT), number(CONNECTIONS)]
}

/// Runs the client and reads what it measured. Every contender's figures go by the names of both
/// machines' measures, so that each machine can be put beside it.
fn figures(command: &mut Command) -> Result<Figures> {
    let output = measure::run(command.stdin(Stdio::null()))?;
    figures_of(&String::from_utf8_lossy(&output.stdout))
}

fn figures_of(text: &str) -> Result<Figures> {
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [up, down, connect] = numbers[..] else { bail!("the client said {text:?}") };
    Ok(Figures::from([
        (NAMESPACES_UP, up),
        (UML_UP, up),
        (NAMESPACES_DOWN, down),
        (UML_DOWN, down),
        (NAMESPACES_CONNECT, connect),
        (UML_CONNECT, connect),
    ]))
}

/// A network namespace that slirp4netns connects, with the client in it. The client begins when
/// there is a way to the host.
fn slirp(port: &str) -> Result<Figures> {
    let begin =
        "echo $$; until ip -4 route get 10.0.2.2 > /dev/null 2>&1; do sleep 0.02; done; exec python3 \"$@\"";
    let mut inside = Command::new("timeout");
    inside.args(["60", "unshare", "--user", "--map-root-user", "--net", "sh", "-c", begin, "sh"]);
    inside.args(client("10.0.2.2", port)).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut inside = inside.spawn().context("start unshare")?;
    let mut stdout = BufReader::new(inside.stdout.take().context("a pipe")?);
    let mut pid = String::new();
    stdout.read_line(&mut pid)?;
    let userns = format!("--userns-path=/proc/{}/ns/user", pid.trim());
    let mut slirp = Command::new("slirp4netns")
        .args(["--configure", "--mtu=65520", &userns, pid.trim(), "tap0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start slirp4netns")?;
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    let _ = slirp.kill();
    slirp.wait()?;
    inside.wait()?;
    figures_of(&text)
}

/// The host's gateway: the address at which pasta shows the host's loopback.
fn gateway() -> Result<String> {
    let output = measure::run(Command::new("ip").args(["-4", "route", "show", "default"]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let gateway = text.split_whitespace().nth(2).context("there is no default route")?;
    Ok(gateway.to_owned())
}

/// Serves clients on the loopback for as long as this process lives; returns the port.
fn serve() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its own measurement.
            let _ = answer(stream);
        }
    });
    Ok(port)
}

/// The first byte says what is wanted: to send, to receive, or a byte back.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    let mut block = vec![0; 1 << 20];
    match wanted[0] {
        b'u' => {
            while stream.read(&mut block)? > 0 {}
            stream.write_all(b"k")
        }
        b'd' => (0..AMOUNT).try_for_each(|_| stream.write_all(&block)),
        _ => stream.write_all(b"k"),
    }
}
