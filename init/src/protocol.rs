//! The messages between host and init, and how they become bytes.
//!
//! One ordered, reliable byte channel joins the two. Each side sends frames:
//!
//! ```text
//! length: u32 LE | version: u8 | message: postcard
//! ```
//!
//! `length` counts the version byte and the message. The decoder trusts nothing: a length above
//! [`MAX_FRAME`], a length of zero, another version or bytes that are no message are errors, never
//! a panic and never an allocation of the size that was claimed.
//!
//! Flow control is by credit. A sender of stream data (`Stdin`, `Output`) may have at most as many
//! bytes under way as the receiver has granted: [`WINDOW`] at the start, more with each `Credit`.
//! Every other message is small and rare. So both sides can always read, and neither needs more
//! than a window of memory for each stream.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
pub use serde_bytes::ByteBuf;

/// Version of the frame layout and of every message; the two ends must have the same.
pub const VERSION: u8 = 1;

/// Upper bound of a frame's `length`, in bytes. Holds the longest argument list that Linux takes.
pub const MAX_FRAME: usize = 4 << 20;

/// Most stream bytes in one `Stdin` or `Output` message.
pub const MAX_DATA: usize = 128 << 10;

/// Stream bytes that may be under way before the receiver grants more.
pub const WINDOW: u32 = 1 << 20;

/// Stream bytes that a receiver lets gather before it grants them anew: each grant costs the guest
/// a system call or two, which are dear there.
pub const CREDIT_STEP: u32 = WINDOW / 4;

/// Bytes that may be under way to a guest on a serial line. A terminal's input buffer holds 4095;
/// when it fills, User Mode Linux stops listening to the line and may never start again.
pub const LINE_BUFFER: usize = 2048;

/// Bytes that a first read asks for.
const FIRST_READ: usize = 8 << 10;

/// Bytes before the message: length and version.
const HEADER: usize = 5;

/// Names one command within a machine; chosen by the host, never used twice.
pub type SessionId = u32;

/// From host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest<'a> {
    /// How to set the machine up. The first message, and only the first.
    Boot(Boot),
    /// Append `data` to a file in the guest, creating it with `mode`. A failure is kept and
    /// reported when `session` is spawned.
    WriteFile {
        /// The session that needs the file.
        session: SessionId,
        /// Absolute path in the guest.
        path: ByteBuf,
        /// Permission bits of a new file.
        mode: u32,
        /// The bytes to append.
        #[serde(with = "serde_bytes")]
        data: &'a [u8],
    },
    /// Start a command.
    Spawn(Spawn),
    /// Bytes for the command's standard input.
    Stdin {
        /// Which command.
        session: SessionId,
        /// At most [`MAX_DATA`] bytes.
        #[serde(with = "serde_bytes")]
        data: &'a [u8],
    },
    /// End of the command's standard input.
    StdinEof {
        /// Which command.
        session: SessionId,
    },
    /// The host consumed `bytes` of an output stream.
    Credit {
        /// Which command.
        session: SessionId,
        /// Which of its streams.
        stream: Stream,
        /// How many bytes more may come.
        bytes: u32,
    },
    /// Nobody reads this output any more: the writer shall get `SIGPIPE`.
    CloseOutput {
        /// Which command.
        session: SessionId,
        /// Which of its streams.
        stream: Stream,
    },
    /// Send a signal to the command's process group, or to everything it started.
    Signal {
        /// Which command.
        session: SessionId,
        /// Signal number.
        signal: i32,
        /// Whether processes that left the group are meant too.
        everything: bool,
    },
    /// The terminal has another size.
    Resize {
        /// Which command.
        session: SessionId,
        /// The new size.
        size: WindowSize,
    },
    /// As soon as no command runs, have everything sent, write everything back to the host's files and
    /// answer with [`ToHost::Bye`]. Said once more: do not wait until everything is sent.
    Shutdown,
}

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost<'a> {
    /// The init runs. Over a carrier that loses bytes sent before the guest opened it, the guest
    /// speaks first; over any other the host need not wait for it.
    Hello {
        /// `uname -r` in the guest.
        release: String,
    },
    /// So many bytes of frames have been taken from a carrier that holds only a few
    /// ([`LINE_BUFFER`]).
    Received {
        /// Bytes since the last such message.
        bytes: u32,
    },
    /// The machine is set up. Commands that were spawned before start now.
    Ready {
        /// What had to be left out, in words.
        warnings: Vec<String>,
        /// Microseconds from the start of the kernel to this message.
        uptime_us: u64,
    },
    /// The machine cannot be set up.
    BootFailed(Failure),
    /// The command runs.
    Started {
        /// Which command.
        session: SessionId,
    },
    /// The command wrote something.
    Output {
        /// Which command.
        session: SessionId,
        /// Which of its streams.
        stream: Stream,
        /// At most [`MAX_DATA`] bytes.
        #[serde(with = "serde_bytes")]
        data: &'a [u8],
    },
    /// The command's standard input took `bytes`.
    Credit {
        /// Which command.
        session: SessionId,
        /// How many bytes more may come.
        bytes: u32,
    },
    /// The command closed its standard input.
    StdinClosed {
        /// Which command.
        session: SessionId,
    },
    /// The command ended and all its output has been sent.
    Ended {
        /// Which command.
        session: SessionId,
        /// How.
        outcome: Outcome,
        /// What it used.
        usage: Usage,
    },
    /// Everything is written back; the machine may be switched off.
    Bye {
        /// Names of the processes that commands left behind, which have been killed; the first of many.
        left_behind: Vec<String>,
        /// Bytes that commands sent last and that nobody took.
        unsent: u64,
    },
}

/// How the machine is set up. Paths are absolute and without symbolic links unless noted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The machine's host name.
    pub hostname: ByteBuf,
    /// Directory of the host that becomes the read-only lower layer of `/`.
    pub rootfs: ByteBuf,
    /// Host paths that appear at the same place in the machine, beside the root.
    pub shares: Vec<Share>,
    /// Paths of the lower layer that the host user cannot read or does not show.
    pub shadows: Vec<Shadow>,
    /// Size of everything writable that lives in memory, in bytes.
    pub writable_bytes: u64,
    /// Most tasks that may exist at once.
    pub max_tasks: u32,
    /// Whether `io_uring` is closed to commands.
    pub deny_io_uring: bool,
    /// What the machine stands on.
    pub ground: Ground,
    /// The network card, if the machine has one.
    pub network: Option<NetworkCard>,
}

/// How a network card is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCard {
    /// Where it comes from.
    pub source: CardSource,
    /// Hardware address that it shall have.
    pub mac: [u8; 6],
    /// Hardware address of everybody whom it can talk to.
    pub others_mac: [u8; 6],
    /// Longest packet, in bytes.
    pub mtu: u32,
    /// Its addresses, at most one of each family.
    pub ends: Vec<NetworkEnd>,
}

/// What the init calls the other end of a card that it made, where that is one of a pair of links.
pub const PEER: &str = "eth0-outside";
/// The number that it gives it, above those that the kernel itself gives to what comes with a network.
pub const PEER_INDEX: u32 = 1000;

/// Where a network card comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CardSource {
    /// The kernel has it, under this name.
    Kernel(String),
    /// The init makes one, and passes its other end on over the socket that it was started with
    /// under this number: one byte, a [`CardKind`], and the descriptor. With a socket there come
    /// three more of the network that the card's other end is in: one for requests to the network's
    /// configuration, and two for TCP over IPv4.
    Made(i32),
}

/// What the other end of a card is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CardKind {
    /// A socket: a frame in each message.
    Socket = b's',
    /// A device: a frame in each call.
    Device = b'd',
}

/// One family of a network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEnd {
    /// The card's address.
    pub address: IpAddr,
    /// Bits of it that all neighbours share.
    pub prefix: u8,
    /// Where everything goes that is not a neighbour.
    pub gateway: IpAddr,
}

/// What a machine stands on, with what is particular to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ground {
    /// A guest kernel of its own, with the host's files on hostfs.
    Guest(Guest),
    /// Fresh namespaces of the host's kernel.
    Namespaces(Namespaces),
    /// Nothing: commands run where the init was started.
    Nothing,
}

impl Default for Ground {
    fn default() -> Self {
        Self::Guest(Guest::default())
    }
}

/// Particulars of a guest kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The host user and group whose files shall appear as root's, where the kernel can do that.
    pub owner: Option<(u32, u32)>,
    /// Block device with a swap signature.
    pub swap: Option<ByteBuf>,
    /// Kernel modules (paths in the lower layer) to load before the root is mounted.
    pub modules: Vec<ByteBuf>,
}

/// Particulars of namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// What the root is made of, parents before children.
    pub layers: Vec<Layer>,
    /// What keeps commands from undoing what the init has mounted.
    pub seal: Seal,
    /// Whether root is the host's root, so that the kernel's own files must be closed to it.
    pub host_root: bool,
    /// Whether the mounts are made in a user namespace.
    pub in_user_namespace: bool,
    /// Whether users other than root exist inside.
    pub many_users: bool,
    /// Whether the network is the host's.
    pub host_network: bool,
    /// Whether the control group that the machine was born in is its own.
    pub own_group: bool,
}

/// What keeps commands from undoing what the init has mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seal {
    /// Nothing has to: whatever is mounted is thrown away, or the commands' to change.
    #[default]
    Open,
    /// A second user namespace with the same users, in which every mount made before is locked.
    UserNamespace,
    /// Commands are deprived of the capabilities that it takes.
    Capabilities,
}

/// A piece of the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Path relative to the root, without leading slash; empty for the root itself.
    pub path: ByteBuf,
    /// What stands there.
    pub kind: LayerKind,
}

/// What a piece of the root is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerKind {
    /// The host's directory below a throw-away layer.
    Overlay {
        /// Permission bits.
        mode: u32,
    },
    /// The host's file or directory with everything below it, read-only.
    ReadOnly,
    /// A directory whose contents are listed one by one.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A throw-away copy of the host's file.
    Copy,
    /// A symbolic link to this.
    Link(ByteBuf),
}

/// One `--rw` path, or a working directory that must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Path on the host and in the guest.
    pub path: ByteBuf,
    /// Whether it is a directory (otherwise a file).
    pub directory: bool,
    /// Whether writes reach the host; otherwise they are thrown away.
    pub writable: bool,
}

/// One path that the guest's root shows differently from the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// Path relative to the root, without leading slash.
    pub path: ByteBuf,
    /// What stands there instead.
    pub kind: ShadowKind,
    /// Owner of the original.
    pub uid: u32,
    /// Group of the original.
    pub gid: u32,
    /// Permission bits of the original.
    pub mode: u32,
}

/// What a shadowed path becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShadowKind {
    /// Nothing: the path does not exist.
    Absent,
    /// An empty directory.
    EmptyDirectory,
    /// A directory of the lower layer, kept as it is but for its owner and mode (a parent).
    Directory,
    /// A file with these contents.
    File(ByteBuf),
}

/// A command to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The host's name for it.
    pub session: SessionId,
    /// Program and arguments; the program is searched for in the `PATH` of `env`.
    pub argv: Vec<ByteBuf>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<ByteBuf>,
    /// Working directory.
    pub workdir: ByteBuf,
    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest.
    pub user: ByteBuf,
    /// A terminal of this size, if the command shall have one.
    pub terminal: Option<WindowSize>,
    /// Whether standard input follows; otherwise it is `/dev/null`.
    pub stdin: bool,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// An output stream. With a terminal everything is `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// How a command ended. Never a bare integer: a missing outcome cannot look like success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It called `exit` with this status.
    Exited(u8),
    /// A signal ended it.
    Signalled(i32),
    /// The guest's kernel killed it, or what it waited for, because memory ran out. The status is
    /// the one that the command ended with, 137 where it was killed itself.
    OutOfMemory(u8),
    /// It did not end in the time it was given. Made by the host.
    TimedOut,
    /// It never ran.
    NeverStarted(Failure),
    /// The machine ended before the command did. Made by the host.
    MachineDied(Failure),
}

/// Something that failed, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done, for example `mount /proc`.
    pub stage: String,
    /// Why it failed.
    pub reason: String,
    /// The error number of the system call, 0 where there was none.
    pub errno: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.reason)
    }
}

impl std::error::Error for Failure {}

/// What a command and its waited-for children used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds in user mode.
    pub user_us: u64,
    /// Microseconds in the guest's kernel.
    pub system_us: u64,
    /// Largest resident set of one process, in KiB.
    pub peak_rss_kib: u64,
    /// Times that the guest's kernel killed a process because memory ran out.
    pub oom_kills: u64,
    /// Times that a fork was refused because of the limit of tasks.
    pub task_limit_hits: u64,
}

/// Why a byte stream is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// A frame claims a length of zero or above [`MAX_FRAME`].
    Length(u32),
    /// A frame of another version.
    Version(u8),
    /// A frame whose bytes are no message.
    Message(String),
    /// A message that would need a frame above [`MAX_FRAME`].
    TooLong(usize),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(n) => write!(f, "frame of impossible length {n}"),
            Self::Version(v) => write!(f, "frame of version {v}, this side speaks {VERSION}"),
            Self::Message(why) => write!(f, "frame with an unreadable message: {why}"),
            Self::TooLong(n) => write!(f, "message of {n} bytes, the limit is {MAX_FRAME}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Appends `message` as one frame to `out`. On an error `out` is as before.
pub fn encode<M: Serialize>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, VERSION]);
    let body = std::mem::take(out);
    *out = match postcard::to_extend(message, body) {
        Ok(bytes) => bytes,
        // Encoding into a growing vector fails only for types without a known length, and no
        // message has one; the vector is gone with the error, so the stream is unusable anyway.
        Err(e) => return Err(FrameError::Message(e.to_string())),
    };
    let length = out.len() - start - 4;
    if length > MAX_FRAME {
        out.truncate(start);
        return Err(FrameError::TooLong(length));
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Collects received bytes and hands out whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Space that the next read is worth.
    reach: usize,
}

impl Decoder {
    /// Free space for received bytes, from a little up to about `most`: more each time that what
    /// came filled it, since untouched memory costs nothing.
    pub fn room(&mut self, most: usize) -> &mut [u8] {
        self.space(self.reach.clamp(FIRST_READ.min(most), most))
    }

    /// Free space for at least `wanted` received bytes; tell [`Decoder::received`] how many came.
    pub fn space(&mut self, wanted: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.bytes.len() - self.end < wanted {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.bytes.len() - self.end < wanted {
                self.bytes.resize(self.end + wanted, 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were written to the front of what [`Decoder::space`] returned.
    pub fn received(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "more received than there was space for");
        if count == self.bytes.len() - self.end {
            self.reach = count.saturating_mul(2);
        }
        self.end += count;
    }

    /// The next whole message, or nothing if its bytes are not all there yet.
    ///
    /// After an error the stream cannot be followed any further.
    pub fn next<'a, M: Deserialize<'a>>(&'a mut self) -> Result<Option<M>, FrameError> {
        let held = &self.bytes[self.start..self.end];
        let Some((length, rest)) = held.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        if length == 0 || length as usize > MAX_FRAME {
            return Err(FrameError::Length(length));
        }
        let Some(&version) = rest.first() else { return Ok(None) };
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if rest.len() < length as usize {
            return Ok(None);
        }
        let body = self.start + HEADER..self.start + 4 + length as usize;
        self.start = body.end;
        match postcard::take_from_bytes(&self.bytes[body]) {
            Ok((message, [])) => Ok(Some(message)),
            Ok((_, rest)) => Err(FrameError::Message(format!("{} bytes too many", rest.len()))),
            Err(e) => Err(FrameError::Message(e.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
