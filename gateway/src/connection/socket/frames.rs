//! Reading RFC 6455 frames of clients: bytes in, whole messages out.
//!
//! The parser is ours because the WebSocket library accepts unmasked frames, bounds single frames only, is out
//! of step when a read is dropped half-way, and keeps a buffer for every idle connection. Unmasking is the
//! library's.

use bytes::{Buf, Bytes, BytesMut};
use fastwebsockets::OpCode;

/// The longest payload of a control frame, in bytes (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    fin: bool,
    opcode: OpCode,
    mask: [u8; 4],
    payload_bytes: u64,
    /// Of the header itself.
    bytes: usize,
}

/// What a client's bytes come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A whole text message, known to be UTF-8.
    Text(String),
    /// A whole binary message.
    Binary(Bytes),
    /// A ping with its payload.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// The closing handshake.
    Close,
}

/// Why no more can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// The frames of a message are more than it may have.
    #[error("a message is too large")]
    TooLarge,
    /// RFC 6455 §5.1.
    #[error("a client's frames must be masked")]
    Unmasked,
    /// No extension was negotiated.
    #[error("reserved bits are set, but no extension was agreed on")]
    ReservedBits,
    /// RFC 6455 §5.2.
    #[error("the opcode {0} is not one of RFC 6455")]
    Opcode(u8),
    /// RFC 6455 §5.5.
    #[error("a control frame is fragmented or has more than 125 bytes")]
    Control,
    /// RFC 6455 §5.4.
    #[error("a new message began inside a fragmented one")]
    Interrupted,
    /// RFC 6455 §5.4.
    #[error("a continuation frame continues nothing")]
    Continuation,
    /// RFC 6455 §8.1.
    #[error("a text message is not UTF-8")]
    NotUtf8,
    /// RFC 6455 §5.5.1.
    #[error("a close frame has one byte, or a code or reason that is none")]
    Close,
    /// RFC 6455 §5.2.
    #[error("the length of a frame has its highest bit set")]
    Length,
}

/// Puts messages together. Holds the fragments of one.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    partial: Option<(OpCode, BytesMut)>,
}

/// Reads a header; `Ok(None)`: not all of it is there.
fn header(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0b0111_0000 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = OpCode::try_from(first & 0x0f).map_err(|_| FrameError::Opcode(first & 0x0f))?;
    if second & 0x80 == 0 {
        return Err(FrameError::Unmasked);
    }
    let (payload_bytes, rest, length_bytes) = match second & 0x7f {
        126 => match rest {
            [a, b, rest @ ..] => (u64::from(u16::from_be_bytes([*a, *b])), rest, 2),
            _ => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest, 8),
            None => return Ok(None),
        },
        short => (u64::from(short), rest, 0),
    };
    if payload_bytes >> 63 != 0 {
        return Err(FrameError::Length);
    }
    let fin = first & 0x80 != 0;
    let control = matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong);
    if control && (!fin || payload_bytes > CONTROL_BYTES_MAX) {
        return Err(FrameError::Control);
    }
    let Some((mask, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some(Header { fin, opcode, mask: *mask, payload_bytes, bytes: 2 + length_bytes + 4 }))
}

/// What the next step needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A message, or a part of the protocol.
    Incoming(Incoming),
    /// At least this many more bytes.
    More(usize),
}

impl Assembler {
    /// Takes the next message out of `buffer`, or says how many bytes are missing for a step.
    pub(super) fn step(&mut self, buffer: &mut BytesMut, message_bytes_max: usize) -> Result<Step, FrameError> {
        loop {
            let Some(header) = header(buffer)? else { return Ok(Step::More(1)) };
            let held = self.partial.as_ref().map_or(0, |(_, bytes)| bytes.len());
            let payload_bytes = usize::try_from(header.payload_bytes).map_err(|_| FrameError::TooLarge)?;
            let control = matches!(header.opcode, OpCode::Close | OpCode::Ping | OpCode::Pong);
            // Refused by its header, before any of it is taken.
            if !control && held.saturating_add(payload_bytes) > message_bytes_max {
                return Err(FrameError::TooLarge);
            }
            let whole = header.bytes + payload_bytes;
            if buffer.len() < whole {
                return Ok(Step::More(whole - buffer.len()));
            }
            buffer.advance(header.bytes);
            let mut payload = buffer.split_to(payload_bytes);
            fastwebsockets::unmask(&mut payload, header.mask);
            if let Some(incoming) = self.take(header, payload)? {
                return Ok(Step::Incoming(incoming));
            }
        }
    }

    fn take(&mut self, header: Header, payload: BytesMut) -> Result<Option<Incoming>, FrameError> {
        match header.opcode {
            OpCode::Ping => Ok(Some(Incoming::Ping(payload.freeze()))),
            OpCode::Pong => Ok(Some(Incoming::Pong)),
            OpCode::Close => check_close(&payload).map(|()| Some(Incoming::Close)),
            OpCode::Text | OpCode::Binary if self.partial.is_some() => Err(FrameError::Interrupted),
            opcode @ (OpCode::Text | OpCode::Binary) if header.fin => message(opcode, payload).map(Some),
            opcode @ (OpCode::Text | OpCode::Binary) => {
                // A copy: a fragment must not keep the whole read buffer alive.
                self.partial = Some((opcode, BytesMut::from(&payload[..])));
                Ok(None)
            }
            OpCode::Continuation => {
                let Some((opcode, mut bytes)) = self.partial.take() else { return Err(FrameError::Continuation) };
                bytes.extend_from_slice(&payload);
                if header.fin {
                    return message(opcode, bytes).map(Some);
                }
                self.partial = Some((opcode, bytes));
                Ok(None)
            }
        }
    }
}

fn message(opcode: OpCode, bytes: BytesMut) -> Result<Incoming, FrameError> {
    if opcode == OpCode::Binary {
        return Ok(Incoming::Binary(Bytes::copy_from_slice(&bytes)));
    }
    std::str::from_utf8(&bytes).map(|text| Incoming::Text(text.to_owned())).map_err(|_| FrameError::NotUtf8)
}

fn check_close(payload: &[u8]) -> Result<(), FrameError> {
    match payload {
        [] => Ok(()),
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if allowed && std::str::from_utf8(reason).is_ok() { Ok(()) } else { Err(FrameError::Close) }
        }
        [_] => Err(FrameError::Close),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..126 => bytes.push(0x80 | u8::try_from(short).unwrap()),
            medium @ 126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(medium).unwrap().to_be_bytes());
            }
            long => {
                bytes.push(0x80 | 127);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        bytes.extend(MASK);
        bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    fn read(bytes: &[u8], max: usize) -> Result<Vec<Incoming>, FrameError> {
        let (mut assembler, mut buffer) = (Assembler::default(), BytesMut::from(bytes));
        let mut incoming = Vec::new();
        while let Step::Incoming(one) = assembler.step(&mut buffer, max)? {
            incoming.push(one);
        }
        Ok(incoming)
    }

    #[test]
    fn the_masked_hello_of_rfc_6455_is_read() {
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&hello, 100), Ok(vec![Incoming::Text("Hello".into())]));
    }

    #[test]
    fn fragments_become_one_message_with_pings_between() {
        let bytes = [frame(0x01, b"Hel"), frame(0x89, b"p"), frame(0x00, b"l"), frame(0x80, b"o")].concat();
        let expected = vec![Incoming::Ping(Bytes::from_static(b"p")), Incoming::Text("Hello".into())];
        assert_eq!(read(&bytes, 5), Ok(expected));
        assert_eq!(read(&bytes, 4), Err(FrameError::TooLarge), "the sum of the fragments is what is bounded");
    }

    #[test]
    fn what_rfc_6455_forbids_is_refused_by_name() {
        for (bytes, error) in [
            (vec![0x81, 0x05, b'H', b'e', b'l', b'l', b'o'], FrameError::Unmasked),
            (frame(0xc1, b"x"), FrameError::ReservedBits),
            (frame(0x83, b"x"), FrameError::Opcode(3)),
            (frame(0x09, b"x"), FrameError::Control),
            (frame(0x8a, &[0; 126]), FrameError::Control),
            (frame(0x80, b"x"), FrameError::Continuation),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), FrameError::Interrupted),
            (frame(0x81, b"\xff"), FrameError::NotUtf8),
            (frame(0x88, b"x"), FrameError::Close),
            (frame(0x88, &1005_u16.to_be_bytes()), FrameError::Close),
            (vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], FrameError::Length),
        ] {
            assert_eq!(read(&bytes, 1_000), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_by_its_header() {
        assert_eq!(read(&frame(0x82, &[0; 200])[..8], 199), Err(FrameError::TooLarge));
        assert_eq!(read(&[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1 << 20), Err(FrameError::TooLarge));
    }

    proptest! {
        #[test]
        fn messages_read_the_same_however_their_bytes_arrive(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
            cuts in prop::collection::vec(1_usize..80, 1..40),
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(0x82, payload)).collect();
            let (mut assembler, mut buffer) = (Assembler::default(), BytesMut::new());
            let (mut rest, mut seen, mut cuts) = (&bytes[..], Vec::new(), cuts.iter().cycle());
            loop {
                match assembler.step(&mut buffer, 300).unwrap() {
                    Step::Incoming(Incoming::Binary(bytes)) => seen.push(bytes.to_vec()),
                    Step::Incoming(other) => prop_assert!(false, "{other:?}"),
                    Step::More(more) if rest.is_empty() => { prop_assert!(more > 0); break }
                    Step::More(_) => {
                        let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                        buffer.extend_from_slice(now);
                        rest = later;
                    }
                }
            }
            prop_assert_eq!(seen, payloads);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, 100);
        }
    }
}
