//! The tenant's back end: calls of the HTTP API on connections that are kept.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::BACKEND_TOKEN;

/// A connection that was idle for so long is not used again: a node closes such ones.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Calls of one node.
pub(crate) struct Http {
    address: SocketAddr,
    idle: RefCell<Vec<(TcpStream, Instant)>>,
}

impl Http {
    pub(crate) fn new(address: SocketAddr) -> Http {
        Http { address, idle: RefCell::default() }
    }

    /// One call; the answer's text where it succeeded.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> Result<String, String> {
        let answer = tokio::time::timeout(CALL_MAX, self.try_call(method, path, body)).await;
        let (status, text) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(format!("{method} {path}: {error}")),
            Err(_) => return Err(format!("{method} {path}: no answer in {CALL_MAX:?}")),
        };
        if status == 200 { Ok(text) } else { Err(format!("{method} {path}: {status} {text}")) }
    }

    async fn try_call(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        self.idle.borrow_mut().retain(|(_, since)| since.elapsed() < IDLE_MAX);
        let kept = self.idle.borrow_mut().pop();
        let mut stream = match kept {
            Some((stream, _)) => stream,
            None => TcpStream::connect(self.address).await?,
        };
        stream.set_nodelay(true)?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {BACKEND_TOKEN}\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::with_capacity(512);
        let (status, head, length) = loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let (status, length) = head(&String::from_utf8_lossy(&bytes[..end]))?;
                break (status, end + 4, length);
            }
        };
        while bytes.len() < head + length {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.idle.borrow_mut().push((stream, Instant::now()));
        Ok((status, String::from_utf8_lossy(&bytes[head..]).into_owned()))
    }
}

/// Status, and the length of what follows.
fn head(head: &str) -> io::Result<(u16, usize)> {
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    status.zip(length).ok_or_else(|| io::Error::other(format!("not an answer: {head}")))
}
