//! Whatever bytes arrive, in whatever pieces, the decoder neither panics nor keeps more than came.
//! And what it accepts is what encoding it again gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sekexe_init::protocol::{Decoder, ToGuest, ToHost, encode};

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (bytes, piece) = input;
    let (mut to_guest, mut to_host) = (Decoder::default(), Decoder::default());
    for chunk in bytes.chunks(usize::from(piece) + 1) {
        for decoder in [&mut to_guest, &mut to_host] {
            decoder.space(chunk.len())[..chunk.len()].copy_from_slice(chunk);
            decoder.received(chunk.len());
        }
        while let Ok(Some(message)) = to_guest.next::<ToGuest<'_>>() {
            let mut again = Vec::new();
            encode(&message, &mut again).expect("what was received can be sent");
        }
        while let Ok(Some(message)) = to_host.next::<ToHost<'_>>() {
            let mut again = Vec::new();
            encode(&message, &mut again).expect("what was received can be sent");
        }
    }
});
