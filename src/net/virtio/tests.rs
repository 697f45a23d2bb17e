use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proptest::prelude::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, VolatileSlice};

use super::rings::FROM_GUEST;
use super::*;

const MEMORY: u64 = 1 << 20;
const ENTRIES: u16 = 16;
const MTU: usize = 65_520;
/// Where a queue's parts are, from its beginning, and how far queues are apart.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const APART: u64 = 0x10000;
/// Where buffers are.
const BUFFERS: u64 = 0x40000;

/// A guest's driver that writes everything by hand.
struct Guest {
    socket: UnixStream,
    file: File,
    memory: GuestMemoryMmap,
    kicks: [EventFd; 2],
    calls: Vec<UnixStream>,
    next: [u16; 2],
}

fn pair(seals: SealFlag) -> (Virtio, Guest) {
    let (ours, socket) = UnixStream::pair().unwrap();
    let file = File::from(memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(MEMORY).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let place = FileOffset::new(file.try_clone().unwrap(), 0);
    let regions = [(GuestAddress(0), MEMORY as usize, Some(place))];
    let memory = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
    let kicks = [EventFd::new().unwrap(), EventFd::new().unwrap()];
    let guest = Guest { socket, file, memory, kicks, calls: Vec::new(), next: [0; 2] };
    (Virtio::new(ours.into(), MTU).unwrap(), guest)
}

/// A card that is ready.
fn announced() -> (Virtio, Guest) {
    let (mut card, mut guest) = pair(SealFlag::F_SEAL_SHRINK);
    guest.announce();
    assert!(card.attend().unwrap());
    (card, guest)
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn halves(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

impl Guest {
    fn say(&self, request: u32, body: &[u8], fds: &[RawFd]) {
        let header = halves(&[request, 1, body.len() as u32]);
        let control = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
    }

    fn say_memory(&self) {
        let table = [halves(&[1, 0]), numbers(&[0, MEMORY, 0, 0])].concat();
        self.say(5, &table, &[self.file.as_raw_fd()]);
    }

    fn announce(&mut self) {
        // All features that are offered.
        self.say(2, &numbers(&[1 | 2 | 8 | 32 | 3 << 11 | 1 << 29 | 1 << 30 | 1 << 32]), &[]);
        self.say_memory();
        for index in [TO_GUEST, FROM_GUEST] {
            let (number, base) = (index as u32, index as u64 * APART);
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            self.calls.push(ours);
            self.say(13, &numbers(&[index as u64]), &[theirs.as_raw_fd()]);
            self.say(8, &halves(&[number, ENTRIES.into()]), &[]);
            self.say(10, &halves(&[number, 0]), &[]);
            let places = numbers(&[base, base + USED, base + AVAILABLE, 0]);
            self.say(9, &[halves(&[number, 0]), places].concat(), &[]);
            self.say(12, &numbers(&[index as u64]), &[self.kicks[index].as_raw_fd()]);
            self.say(18, &halves(&[number, 1]), &[]);
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Puts a chain of buffers into a queue, as its next entries.
    fn offer(&mut self, queue: usize, buffers: &[(u64, u32)]) {
        let base = queue as u64 * APART;
        let first = self.next[queue];
        for (number, (place, length)) in buffers.iter().enumerate() {
            let entry = first % ENTRIES + number as u16;
            let more = u16::from(number + 1 < buffers.len());
            let flags = more | if queue == TO_GUEST { 2 } else { 0 };
            let mut descriptor = [numbers(&[*place]), halves(&[*length])].concat();
            descriptor.extend([flags.to_ne_bytes(), (entry + 1).to_ne_bytes()].concat());
            self.write(base + u64::from(entry) * 16, &descriptor);
        }
        let slot = base + AVAILABLE + 4 + u64::from(first % ENTRIES) * 2;
        self.write(slot, &(first % ENTRIES).to_ne_bytes());
        self.next[queue] += 1;
        self.write(base + AVAILABLE + 2, &self.next[queue].to_ne_bytes());
    }

    /// How many entries of a queue came back, and the length of the last one.
    fn came_back(&self, queue: usize) -> (u16, u32) {
        let base = queue as u64 * APART + USED;
        let count = u16::from_ne_bytes(self.read(base + 2, 2).try_into().unwrap());
        let last = base + 4 + u64::from(count.wrapping_sub(1) % ENTRIES) * 8;
        (count, u32::from_ne_bytes(self.read(last + 4, 4).try_into().unwrap()))
    }

    fn was_called(&mut self, queue: usize) -> bool {
        self.calls[queue].read(&mut [0; 8]).is_ok()
    }
}

fn receive(card: &mut Virtio) -> io::Result<Vec<Vec<u8>>> {
    let mut buffers = vec![vec![0; 70_000]; 4];
    let mut lengths = [0; 4];
    let count = card.receive(&mut buffers, &mut lengths)?;
    Ok((0..count).map(|number| buffers[number][..lengths[number]].to_vec()).collect())
}

#[test]
fn frames_go_both_ways_in_parts() {
    let (mut card, mut guest) = announced();
    let frame: Vec<u8> = (0..6000u32).map(|n| n as u8).collect();
    guest.offer(TO_GUEST, &[(BUFFERS, 100), (BUFFERS + 4096, 4096), (BUFFERS + 16384, 4096)]);
    assert_eq!(card.send([&frame[..]].into_iter()).unwrap(), 1);
    assert_eq!(guest.came_back(TO_GUEST), (1, 6000));
    let parts =
        [guest.read(BUFFERS, 100), guest.read(BUFFERS + 4096, 4096), guest.read(BUFFERS + 16384, 1804)];
    assert!(parts.concat() == frame);
    assert!(guest.was_called(TO_GUEST));

    guest.write(BUFFERS, &frame);
    guest.offer(FROM_GUEST, &[(BUFFERS, 1000), (BUFFERS + 1000, 5000)]);
    assert!(receive(&mut card).unwrap() == [frame]);
    assert_eq!(guest.came_back(FROM_GUEST).0, 1);
    assert_eq!(receive(&mut card).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn frames_wait_until_the_guest_has_room_and_says_so() {
    let (mut card, mut guest) = announced();
    let frame = [7; 64];
    assert_eq!(card.send([&frame[..]].into_iter()).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!card.attend().unwrap());
    guest.offer(TO_GUEST, &[(BUFFERS, 2048)]);
    guest.kicks[TO_GUEST].write(1).unwrap();
    assert!(card.attend().unwrap());
    assert_eq!(card.send([&frame[..], &frame].into_iter()).unwrap(), 1);
    assert_eq!(guest.came_back(TO_GUEST), (1, 64));
}

#[test]
fn the_bytes_of_a_frame_go_straight_to_their_places() {
    let (mut card, mut guest) = announced();
    let (head, body) = ([7; 78], (0..5000u32).map(|n| n as u8).collect::<Vec<_>>());
    assert!(!card.has_room());
    guest.offer(TO_GUEST, &[(BUFFERS, 100), (BUFFERS + 4096, 4096), (BUFFERS + 16384, 4096)]);
    assert!(card.has_room());
    let copy = |places: &[VolatileSlice<'_>]| {
        let mut rest = &body[..];
        for place in places {
            let (now, later) = rest.split_at(place.len());
            place.copy_from(now);
            rest = later;
        }
        rest.is_empty()
    };
    card.put(&head, body.len(), copy).unwrap();
    assert_eq!(guest.came_back(TO_GUEST), (1, 5078));
    let parts =
        [guest.read(BUFFERS, 100), guest.read(BUFFERS + 4096, 4096), guest.read(BUFFERS + 16384, 882)];
    assert!(parts.concat() == [&head[..], &body].concat());
    assert!(!guest.was_called(TO_GUEST));
    card.wake().unwrap();
    assert!(guest.was_called(TO_GUEST));
    assert!(!card.has_room());
}

#[test]
fn a_frame_whose_bytes_do_not_come_is_none() {
    let (mut card, mut guest) = announced();
    guest.offer(TO_GUEST, &[(BUFFERS, 2048)]);
    card.put(&[1; 64], 100, |_| false).unwrap();
    assert_eq!(guest.came_back(TO_GUEST), (1, 0));
    guest.offer(TO_GUEST, &[(BUFFERS, 100)]);
    card.put(&[1; 64], 100, |_| panic!("there is no room for them")).unwrap();
    assert_eq!(guest.came_back(TO_GUEST), (2, 0));
    assert_eq!(card.put(&[1; 64], 0, |_| true).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn what_a_guest_has_sent_counts_when_it_is_gone() {
    let (mut card, mut guest) = announced();
    guest.write(BUFFERS, &[7; 64]);
    guest.offer(FROM_GUEST, &[(BUFFERS, 64)]);
    let Guest { socket, calls, .. } = guest;
    drop((socket, calls));
    assert_eq!(card.attend().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(receive(&mut card).unwrap() == [[7; 64]]);
}

#[test]
fn a_buffer_too_short_for_a_frame_comes_back_empty() {
    let (mut card, mut guest) = announced();
    guest.offer(TO_GUEST, &[(BUFFERS, 50)]);
    assert_eq!(card.send([&[1; 64][..]].into_iter()).unwrap(), 1);
    assert_eq!(guest.came_back(TO_GUEST), (1, 0));
}

#[test]
fn a_guest_that_does_not_look_keeps_nobody_waiting() {
    let (mut card, mut guest) = announced();
    // Nobody reads these calls, and a socket holds some hundreds of them.
    for _ in 0..5000 {
        guest.offer(TO_GUEST, &[(BUFFERS, 2048)]);
        // The guest wants to be woken by the very next entry.
        let entry = guest.next[TO_GUEST].wrapping_sub(1);
        guest.write(TO_GUEST as u64 * APART + AVAILABLE + 4 + u64::from(ENTRIES) * 2, &entry.to_ne_bytes());
        assert_eq!(card.send([&[1; 64][..]].into_iter()).unwrap(), 1);
    }
}

#[test]
fn memory_that_may_shrink_is_refused() {
    let (mut card, guest) = pair(SealFlag::F_SEAL_GROW);
    guest.say_memory();
    assert_eq!(card.attend().unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Nobody waits for a card that will never be.
    assert_eq!((&guest.socket).read(&mut [0; 1]).unwrap_or_default(), 0);
}

#[test]
fn half_a_message_is_the_end_of_the_card_and_soon() {
    let (mut card, mut guest) = pair(SealFlag::F_SEAL_SHRINK);
    guest.socket.write_all(&halves(&[5, 1, 40])).unwrap();
    let start = Instant::now();
    assert_eq!(card.attend().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn announcements_that_make_no_sense_are_the_end_of_the_card() {
    let device = File::open("/dev/null").unwrap();
    let nonsense: [(u32, Vec<u8>, Vec<RawFd>); 9] = [
        // Memory beyond its file, a queue outside, of no size, of an odd one, of no number.
        (5, [halves(&[1, 0]), numbers(&[0, MEMORY * 2, 0, 0])].concat(), vec![-1]),
        (9, [halves(&[0, 0]), numbers(&[MEMORY, 0, 0, 0])].concat(), vec![]),
        (9, [halves(&[0, 0]), numbers(&[1, 1, 1, 0])].concat(), vec![]),
        (8, halves(&[0, 0]), vec![]),
        (8, halves(&[0, 100_000]), vec![]),
        (10, halves(&[0, 100_000]), vec![]),
        (8, halves(&[7, 16]), vec![]),
        // What wakes us is no event, and what nobody has ever offered.
        (12, numbers(&[0]), vec![device.as_raw_fd()]),
        (4, vec![], vec![]),
    ];
    for (request, body, fds) in nonsense {
        let (mut card, guest) = announced();
        let own = guest.file.as_raw_fd();
        let fds: Vec<RawFd> = fds.into_iter().map(|fd| if fd < 0 { own } else { fd }).collect();
        guest.say(request, &body, &fds);
        let end = card.attend().expect_err(&format!("request {request}, {body:?}"));
        assert_eq!(end.kind(), ErrorKind::ConnectionReset, "request {request}, {body:?}: {end}");
    }
}

proptest! {
    /// Whatever the guest writes into its queues, we end, and write to nobody's memory but its own.
    #[test]
    fn queues_may_hold_anything(
        places in prop::collection::vec(prop_oneof![0..MEMORY, any::<u64>()], 16),
        lengths in prop::collection::vec(prop_oneof![0..9000u32, any::<u32>()], 16),
        flags in prop::collection::vec(0..8u16, 16),
        next in prop::collection::vec(prop_oneof![0..ENTRIES, any::<u16>()], 16),
        entries in prop::collection::vec(prop_oneof![0..ENTRIES, any::<u16>()], 16),
        available in any::<u16>(),
    ) {
        let (mut card, guest) = announced();
        for base in [0, APART] {
            for number in 0..16 {
                let mut descriptor = [numbers(&[places[number]]), halves(&[lengths[number]])].concat();
                descriptor.extend([flags[number].to_ne_bytes(), next[number].to_ne_bytes()].concat());
                guest.write(base + number as u64 * 16, &descriptor);
                guest.write(base + AVAILABLE + 4 + number as u64 * 2, &entries[number].to_ne_bytes());
            }
            guest.write(base + AVAILABLE + 2, &(available % 20).to_ne_bytes());
        }
        for frame in receive(&mut card).unwrap_or_default() {
            prop_assert!((HEADER..=70_000).contains(&frame.len()));
        }
        let frame = vec![1; 5000];
        for _ in 0..20 {
            if card.send([&frame[..]].into_iter()).is_err() {
                break;
            }
            let fill = |places: &[VolatileSlice<'_>]| {
                places.iter().for_each(|place| place.copy_from(&frame[..place.len().min(frame.len())]));
                true
            };
            if !card.has_room() || card.put(&frame[..66], 4934, fill).is_err() {
                break;
            }
        }
    }
}
