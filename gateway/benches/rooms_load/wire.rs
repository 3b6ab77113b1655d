//! A WebSocket of a client, by either protocol, that costs next to nothing.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

/// What a client reads at once, in bytes.
const READ_BYTES: usize = 4_096;

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
/// Close code 1000: the client is done.
const NORMAL: [u8; 2] = 1_000_u16.to_be_bytes();

/// What is written; both ends of a client share it.
pub(crate) struct Socket(TcpStream);

/// What was read and not yet taken.
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    next: usize,
}

impl Socket {
    /// Connects and asks for a WebSocket at `path`.
    pub(crate) async fn open(address: SocketAddr, path: &str, token: Option<&str>) -> io::Result<(Socket, Inbox)> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = Socket(stream);
        let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\n{bearer}connection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write(request.as_bytes()).await?;
        let mut inbox = Inbox { bytes: Vec::new(), next: 0 };
        inbox.next = loop {
            socket.read(&mut inbox).await?;
            if let Some(end) = inbox.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&inbox.bytes[..inbox.next]);
        if !head.starts_with("HTTP/1.1 101") {
            return Err(io::Error::other(format!("no WebSocket: {head}")));
        }
        Ok((socket, inbox))
    }

    /// Sends a text message.
    pub(crate) async fn send(&self, text: &str) -> io::Result<()> {
        self.write(&frame(TEXT, text.as_bytes())).await
    }

    /// Says goodbye.
    pub(crate) async fn close(&self) -> io::Result<()> {
        self.write(&frame(CLOSE, &NORMAL)).await
    }

    /// The next text message; an error when the connection has ended. Pings are answered.
    pub(crate) async fn next<'a>(&self, inbox: &'a mut Inbox) -> io::Result<&'a str> {
        loop {
            let Some((opcode, start, end)) = inbox.frame()? else {
                self.read(inbox).await?;
                continue;
            };
            inbox.next = end;
            match opcode {
                TEXT => return std::str::from_utf8(&inbox.bytes[start..end]).map_err(io::Error::other),
                PING => self.write(&frame(PONG, &inbox.bytes[start..end])).await?,
                CLOSE => {
                    let reason = String::from_utf8_lossy(&inbox.bytes[(start + 2).min(end)..end]);
                    return Err(io::Error::other(format!("closed by the gateway: {reason}")));
                }
                _ => {}
            }
        }
    }

    /// Writes all of it. Small frames on a socket that is not full go out whole, so that two writers never mix theirs.
    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            self.0.writable().await?;
            match self.0.try_write(bytes) {
                Ok(written) if written == bytes.len() => return Ok(()),
                Ok(_) => return Err(io::Error::other("the gateway takes nothing any more")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn read(&self, inbox: &mut Inbox) -> io::Result<()> {
        inbox.bytes.drain(..inbox.next);
        inbox.next = 0;
        inbox.bytes.reserve(READ_BYTES);
        loop {
            match self.0.try_read_buf(&mut inbox.bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.0.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Inbox {
    /// The next frame, if it is there: opcode, and where its payload is.
    fn frame(&self) -> io::Result<Option<(u8, usize, usize)>> {
        let bytes = &self.bytes[self.next..];
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let (head, length) = match (second & 0x7F, rest) {
            (126, [a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
            (126, _) => return Ok(None),
            (127, _) => return Err(io::Error::other("a client here is sent less than 64 KiB at once")),
            (short, _) => (2, usize::from(short)),
        };
        let start = self.next + head;
        Ok((bytes.len() >= head + length).then_some((first & 0xF, start, start + length)))
    }
}

/// A client's frame. Its mask is zero, which leaves the payload as it is.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.push(0x80 | opcode);
    match u16::try_from(payload.len()) {
        Ok(short @ 0..=125) => frame.push(0x80 | short as u8),
        Ok(middle) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&middle.to_be_bytes());
        }
        Err(_) => panic!("a client here sends less than 64 KiB at once"),
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}
