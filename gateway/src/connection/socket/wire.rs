//! RFC 6455 frames of a server: whole, unmasked, ready to be shared by all that get them.

use bytes::{Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, Payload};

/// The longest reason of a close frame, in bytes (RFC 6455 §5.5: 125 with the code).
const CLOSE_REASON_BYTES_MAX: usize = 123;

fn frame(opcode: OpCode, payload: &[u8]) -> Bytes {
    // 16: what `fmt_head` may use; RFC 6455 needs 10 at most.
    let mut head = [0_u8; 16];
    let head_bytes = Frame::new(true, opcode, None, Payload::Borrowed(payload)).fmt_head(&mut head);
    let mut bytes = BytesMut::with_capacity(head_bytes + payload.len());
    bytes.extend_from_slice(&head[..head_bytes]);
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

/// A text message.
pub fn text_frame(text: &str) -> Bytes {
    frame(OpCode::Text, text.as_bytes())
}

/// A binary message.
pub fn binary_frame(bytes: &[u8]) -> Bytes {
    frame(OpCode::Binary, bytes)
}

/// A ping without payload.
pub fn ping_frame() -> Bytes {
    frame(OpCode::Ping, &[])
}

/// The answer to a ping.
pub fn pong_frame(payload: &[u8]) -> Bytes {
    frame(OpCode::Pong, payload)
}

/// The last frame; a reason that is too long is cut at a character.
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)]);
    frame(OpCode::Close, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_length_forms_of_rfc_6455() {
        assert_eq!(&text_frame("Hello")[..], [&[0x81, 0x05][..], b"Hello"].concat());
        assert_eq!(&binary_frame(&[7; 256])[..4], [0x82, 126, 1, 0]);
        assert_eq!(&binary_frame(&[7; 65_536])[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(&ping_frame()[..], [0x89, 0]);
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let frame = close_frame(4001, &"ä".repeat(100));
        assert_eq!(frame[1], 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
