//! A plain WebSocket client that costs next to nothing, so that what is measured is the gateway.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What a client reads at once, in bytes.
const READ_BYTES: usize = 4_096;

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// A connected client of the JSON protocol.
pub(crate) struct Client {
    pub(crate) reader: Reader,
    pub(crate) writer: OwnedWriteHalf,
}

/// What a client is told, message by message.
pub(crate) struct Reader {
    half: OwnedReadHalf,
    bytes: Vec<u8>,
    /// Where the next frame begins.
    next: usize,
}

impl Client {
    /// Connects and waits for the welcome.
    pub(crate) async fn connect(address: SocketAddr, tenant: &str, token: &str) -> Client {
        let stream = TcpStream::connect(address).await.expect("the node accepts");
        let (client, welcome) = Client::greeted(stream, tenant, "", token).await.expect("the node answers");
        assert!(welcome.starts_with("{\"event\":\"connected\""), "{welcome}");
        client
    }

    /// Asks for a WebSocket, with a query or none, on a connection that is there, and waits for the first message.
    pub(crate) async fn greeted(
        mut stream: TcpStream,
        tenant: &str,
        query: &str,
        token: &str,
    ) -> io::Result<(Client, String)> {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr()?;
        let request = format!(
            "GET /t/{tenant}/ws?{query} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::with_capacity(READ_BYTES);
        let end = loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        if !head.starts_with("HTTP/1.1 101") {
            return Err(io::Error::other(format!("no WebSocket: {head}")));
        }
        let mut client = Client::of(stream, bytes, end);
        let welcome = client.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((client, welcome))
    }

    /// A client on a stream whose frames begin at `next` of what was read already.
    pub(crate) fn of(stream: TcpStream, read_already: Vec<u8>, next: usize) -> Client {
        let (half, writer) = stream.into_split();
        Client { reader: Reader { half, bytes: read_already, next }, writer }
    }

    /// Sends an object.
    pub(crate) async fn send(&mut self, json: &str) {
        self.try_send(json).await.expect("the connection stays");
    }

    /// The same where the connection may have ended.
    pub(crate) async fn try_send(&mut self, json: &str) -> io::Result<()> {
        self.writer.write_all(&frame(TEXT, json.as_bytes())).await
    }

    /// The next message; `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.reader.next(&self.writer).await.map(|text| String::from_utf8_lossy(text).into_owned())
    }

    /// Sends an event with the id 1 and waits for its answer.
    pub(crate) async fn ask(&mut self, event: &str, data: &str) -> String {
        self.send(&format!("{{\"id\":1,\"event\":\"{event}\",\"data\":{data}}}")).await;
        loop {
            let message = self.next().await.expect("the connection stays");
            if message.starts_with("{\"id\":1,") {
                return message;
            }
        }
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
        Err(_) => panic!("a benchmark sends less than 64 KiB at once"),
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

impl Reader {
    /// The next text message; `None` when the connection has ended. Pings are answered.
    pub(crate) async fn next(&mut self, writer: &OwnedWriteHalf) -> Option<&[u8]> {
        loop {
            let Some((opcode, start, end)) = self.frame() else {
                self.fill().await.ok()?;
                continue;
            };
            self.next = end;
            match opcode {
                TEXT => return Some(&self.bytes[start..end]),
                // A pong that the socket does not take now is not missed.
                PING => drop(writer.try_write(&frame(PONG, &self.bytes[start..end]))),
                CLOSE => return None,
                _ => {}
            }
        }
    }

    /// The next frame, if it is there: opcode, and where its payload is.
    fn frame(&self) -> Option<(u8, usize, usize)> {
        let bytes = &self.bytes[self.next..];
        let (opcode, short) = (bytes.first()? & 0xF, bytes.get(1)? & 0x7F);
        let (head, length) = match short {
            126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
            127 => panic!("a benchmark is sent less than 64 KiB at once"),
            short => (2, usize::from(short)),
        };
        (bytes.len() >= head + length).then_some((opcode, self.next + head, self.next + head + length))
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.bytes.drain(..self.next);
        self.next = 0;
        self.bytes.reserve(READ_BYTES);
        match self.half.read_buf(&mut self.bytes).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
