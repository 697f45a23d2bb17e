//! The guest's name server: questions go to the host's resolvers, answers come back.
//!
//! Each question leaves from a port of its own. A resolver that does not answer within a second, or
//! refuses, is followed by the next one; where none is left the guest is told at once, so that it
//! need not wait for its own timeout. TCP goes the way of every other connection, but for rules
//! about names: what a stream asks for is not looked at, so there is no TCP where names are judged.

mod message;
mod servers;

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use message::Refusal;
use nix::sys::epoll::EpollFlags;
use servers::Servers;
pub use servers::for_guest;

use super::core::{Core, Owner};
use super::emit::{self, Ends};
use super::frame::UDP;
use super::log::Fate;
use super::udp::host_socket;

/// Questions under way; more are dropped, as a busy server would.
const MOST: usize = 1024;
/// How long one resolver has.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the last resolver has: the guest's own patience.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Dns {
    servers: Servers,
    questions: HashMap<u64, Question>,
}

struct Question {
    guest: SocketAddr,
    /// Our server's address, as the guest wrote it.
    server: SocketAddr,
    message: Vec<u8>,
    name: String,
    socket: UdpSocket,
    /// Resolvers that have not been asked yet, the next one last.
    left: Vec<SocketAddr>,
    deadline: Instant,
}

impl Dns {
    /// Asks the resolvers that `resolv_conf` names.
    pub fn new(resolv_conf: &Path) -> Self {
        Self { servers: Servers::new(resolv_conf), questions: HashMap::new() }
    }

    /// The resolvers, for a connection over TCP.
    pub fn servers(&mut self) -> Vec<SocketAddr> {
        self.servers.current().to_vec()
    }

    /// Takes a question.
    pub fn ask(&mut self, core: &mut Core, guest: SocketAddr, server: SocketAddr, message: &[u8]) {
        let Some(name) = message::question(message) else { return };
        if let Err(reason) = core.policy.judge_name(&name) {
            core.log.add_name(&name, Fate::Denied(reason));
            return refuse(core, guest, server, message, Refusal::Refused);
        }
        if self.questions.len() >= MOST {
            return;
        }
        let left: Vec<SocketAddr> = self.servers.current().iter().rev().copied().collect();
        self.ask_next(core, guest, server, message.to_owned(), name, left);
    }

    fn ask_next(
        &mut self,
        core: &mut Core,
        guest: SocketAddr,
        server: SocketAddr,
        message: Vec<u8>,
        name: String,
        mut left: Vec<SocketAddr>,
    ) {
        while let Some(resolver) = left.pop() {
            let Ok(socket) = host_socket(resolver) else { continue };
            let id = core.new_id();
            let watched = core.watch(&socket, Owner::Dns, id, EpollFlags::EPOLLIN);
            if watched.is_err() || socket.send(&message).is_err() {
                continue;
            }
            let deadline = core.now + if left.is_empty() { LAST_PATIENCE } else { PATIENCE };
            self.questions.insert(id, Question { guest, server, message, name, socket, left, deadline });
            return;
        }
        core.log.add_name(&name, Fate::Failed("no resolver answers".into()));
        refuse(core, guest, server, &message, Refusal::ServerFailure);
    }

    /// Something came from a resolver.
    pub fn on_event(&mut self, core: &mut Core, id: u64, buffer: &mut [u8]) {
        let Some(question) = self.questions.get(&id) else { return };
        match question.socket.recv(buffer) {
            Ok(length) if message::answers(&buffer[..length], &question.message) => {
                let Some(question) = self.questions.remove(&id) else { return };
                let answer = &buffer[..length];
                for address in message::addresses(answer) {
                    core.names.learn(&question.name, address);
                }
                core.log.add_name(&question.name, Fate::Carried);
                send(core, question.guest, question.server, answer);
            }
            // Somebody else's answer.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.give_up_on(core, id),
        }
    }

    /// Goes on to the next resolver where one has had its time.
    pub fn tick(&mut self, core: &mut Core) {
        let late: Vec<u64> =
            self.questions.iter().filter(|(_, q)| q.deadline <= core.now).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.give_up_on(core, id));
    }

    /// When the next resolver will have had its time.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.questions.values().map(|question| question.deadline).min()
    }

    fn give_up_on(&mut self, core: &mut Core, id: u64) {
        if let Some(q) = self.questions.remove(&id) {
            self.ask_next(core, q.guest, q.server, q.message, q.name, q.left);
        }
    }
}

fn refuse(core: &mut Core, guest: SocketAddr, server: SocketAddr, asked: &[u8], why: Refusal) {
    if let Some(answer) = message::refuse(asked, why) {
        send(core, guest, server, &answer);
    }
}

fn send(core: &mut Core, guest: SocketAddr, server: SocketAddr, answer: &[u8]) {
    let ends = Ends { source: server.ip(), destination: guest.ip() };
    let datagram = emit::datagram(ends, (server.port(), guest.port()), answer);
    core.out.payload(ends, UDP, &datagram);
}
