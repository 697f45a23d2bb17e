use proptest::prelude::*;

use super::*;

fn feed(decoder: &mut Decoder, bytes: &[u8]) {
    decoder.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
    decoder.received(bytes.len());
}

fn spawn() -> Spawn {
    Spawn {
        session: 7,
        argv: vec![ByteBuf::from("sh"), ByteBuf::from(b"a \n\xff\0$(b)".to_vec())],
        env: vec![ByteBuf::from("A=b")],
        workdir: ByteBuf::from("/"),
        user: ByteBuf::from("root"),
        terminal: Some(WindowSize { rows: 24, columns: 80 }),
        stdin: true,
    }
}

fn messages_to_guest() -> Vec<ToGuest<'static>> {
    let boot = Boot {
        hostname: ByteBuf::from("guest"),
        rootfs: ByteBuf::from("/"),
        shares: vec![Share { path: ByteBuf::from("/w"), directory: true, writable: true }],
        shadows: vec![Shadow {
            path: ByteBuf::from("etc/shadow"),
            kind: ShadowKind::File(ByteBuf::from("root:*:\n")),
            uid: 0,
            gid: 42,
            mode: 0o640,
        }],
        ..Boot::default()
    };
    let layer = |path: &str, kind| Layer { path: ByteBuf::from(path), kind };
    let namespaces = Namespaces {
        layers: vec![
            layer("usr", LayerKind::Overlay { mode: 0o755 }),
            layer("var", LayerKind::Directory { mode: 0o755 }),
            layer("var/run", LayerKind::Link(ByteBuf::from("/run"))),
        ],
        seal: Seal::UserNamespace,
        ..Namespaces::default()
    };
    vec![
        ToGuest::Boot(Boot { ground: Ground::Namespaces(namespaces), ..boot.clone() }),
        ToGuest::Boot(boot),
        ToGuest::WriteFile { session: 1, path: ByteBuf::from("/s"), mode: 0o700, data: b"\0x" },
        ToGuest::Spawn(spawn()),
        ToGuest::Stdin { session: 1, data: b"bytes" },
        ToGuest::StdinEof { session: 1 },
        ToGuest::Credit { session: 1, stream: Stream::Stderr, bytes: u32::MAX },
        ToGuest::CloseOutput { session: 1, stream: Stream::Stdout },
        ToGuest::Signal { session: 1, signal: 15, everything: true },
        ToGuest::Resize { session: 1, size: WindowSize { rows: 1, columns: 65535 } },
        ToGuest::Shutdown,
    ]
}

fn messages_to_host() -> Vec<ToHost<'static>> {
    let failure = Failure { stage: "exec".into(), reason: "no such file".into(), errno: 2 };
    let ended = |outcome| ToHost::Ended { session: 3, outcome, usage: Usage::default() };
    vec![
        ToHost::Hello { release: "7.3".into() },
        ToHost::Received { bytes: 9 },
        ToHost::Ready { warnings: vec!["no swap".into()], uptime_us: 1 },
        ToHost::BootFailed(failure.clone()),
        ToHost::Started { session: 3 },
        ToHost::Output { session: 3, stream: Stream::Stdout, data: &[0, 255] },
        ToHost::Credit { session: 3, bytes: 1 },
        ToHost::StdinClosed { session: 3 },
        ended(Outcome::Exited(255)),
        ended(Outcome::Signalled(9)),
        ended(Outcome::OutOfMemory(137)),
        ended(Outcome::TimedOut),
        ended(Outcome::NeverStarted(failure.clone())),
        ended(Outcome::MachineDied(failure)),
        ToHost::Bye { left_behind: vec!["sleep".into()], unsent: 3 },
    ]
}

fn bye() -> ToHost<'static> {
    ToHost::Bye { left_behind: Vec::new(), unsent: 0 }
}

#[test]
fn every_message_survives_the_round_trip() {
    let mut bytes = Vec::new();
    for message in messages_to_guest() {
        encode(&message, &mut bytes).unwrap();
    }
    let mut decoder = Decoder::default();
    feed(&mut decoder, &bytes);
    for message in messages_to_guest() {
        assert_eq!(decoder.next::<ToGuest<'_>>().unwrap(), Some(message));
    }
    assert_eq!(decoder.next::<ToGuest<'_>>().unwrap(), None);

    let mut bytes = Vec::new();
    for message in messages_to_host() {
        encode(&message, &mut bytes).unwrap();
    }
    let mut decoder = Decoder::default();
    feed(&mut decoder, &bytes);
    for message in messages_to_host() {
        assert_eq!(decoder.next::<ToHost<'_>>().unwrap(), Some(message));
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_not_a_message_until_the_rest_arrives() {
    for message in messages_to_guest() {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes).unwrap();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::default();
            feed(&mut decoder, &bytes[..cut]);
            assert_eq!(decoder.next::<ToGuest<'_>>().unwrap(), None, "cut at {cut}");
            feed(&mut decoder, &bytes[cut..]);
            assert_eq!(decoder.next::<ToGuest<'_>>().unwrap(), Some(message.clone()));
        }
    }
}

#[test]
fn a_message_cut_inside_its_frame_is_an_error() {
    for message in messages_to_guest() {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes).unwrap();
        let body = bytes.len() - HEADER;
        for kept in 0..body {
            let mut cut = bytes[..HEADER + kept].to_vec();
            cut[..4].copy_from_slice(&(kept as u32 + 1).to_le_bytes());
            let mut decoder = Decoder::default();
            feed(&mut decoder, &cut);
            assert!(decoder.next::<ToGuest<'_>>().is_err(), "{kept} of {body} of {message:?}");
        }
    }
}

#[test]
fn bytes_behind_a_message_in_its_frame_are_an_error() {
    let mut bytes = Vec::new();
    encode(&bye(), &mut bytes).unwrap();
    bytes.push(0);
    bytes[0] += 1;
    let mut decoder = Decoder::default();
    feed(&mut decoder, &bytes);
    assert_eq!(decoder.next::<ToHost<'_>>(), Err(FrameError::Message("1 bytes too many".into())));
}

#[test]
fn another_version_is_named() {
    let mut bytes = Vec::new();
    encode(&bye(), &mut bytes).unwrap();
    bytes[4] = VERSION + 1;
    let mut decoder = Decoder::default();
    feed(&mut decoder, &bytes);
    assert_eq!(decoder.next::<ToHost<'_>>(), Err(FrameError::Version(VERSION + 1)));
}

#[test]
fn hostile_lengths_are_refused_before_anything_is_allocated() {
    for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
        let mut decoder = Decoder::default();
        feed(&mut decoder, &length.to_le_bytes());
        assert_eq!(decoder.next::<ToHost<'_>>(), Err(FrameError::Length(length)));
    }
}

#[test]
fn a_hostile_length_inside_a_message_does_not_allocate_it() {
    // `Output` whose byte string claims to be 2^63 long.
    let mut body = vec![VERSION, 5, 0, 0];
    body.extend([0xff; 9]);
    body.push(0x7f);
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    let mut decoder = Decoder::default();
    feed(&mut decoder, &bytes);
    assert!(matches!(decoder.next::<ToHost<'_>>(), Err(FrameError::Message(_))));
}

#[test]
fn a_message_above_the_limit_is_not_sent() {
    let data = vec![0; MAX_FRAME];
    let mut out = vec![1, 2, 3];
    let message = ToGuest::Stdin { session: 0, data: &data };
    assert!(matches!(encode(&message, &mut out), Err(FrameError::TooLong(_))));
    assert_eq!(out, [1, 2, 3]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut decoder = Decoder::default();
        feed(&mut decoder, &bytes);
        while let Ok(Some(_)) = decoder.next::<ToGuest<'_>>() {}
    }

    #[test]
    fn stream_bytes_survive_in_any_pieces(
        data in proptest::collection::vec(any::<u8>(), 0..4096),
        piece in 1usize..600,
    ) {
        let mut bytes = Vec::new();
        for chunk in data.chunks(700) {
            encode(&ToHost::Output { session: 1, stream: Stream::Stdout, data: chunk }, &mut bytes).unwrap();
        }
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for chunk in bytes.chunks(piece) {
            feed(&mut decoder, chunk);
            while let Some(message) = decoder.next::<ToHost<'_>>().unwrap() {
                let ToHost::Output { data, .. } = message else { panic!("{message:?}") };
                got.extend_from_slice(data);
            }
        }
        prop_assert_eq!(got, data);
    }
}
