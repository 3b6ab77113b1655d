//! A WebSocket: one task reads whole messages into a bounded inbox, one writes what the
//! outbox's direct path did not.
//!
//! Reading a frame may not be interrupted half-way, so the reader is a task of its own and is
//! never an arm of a `select!`; everybody else waits on the inbox.

mod wire;

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fastwebsockets::{OpCode, Role, WebSocketError, WebSocketRead};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use wire::{binary_frame, close_frame, ping_frame, text_frame};

use super::protocol::Message;

/// Messages of one client that wait for a decision; when it is full the reader stops, and TCP
/// tells the client.
pub const INBOX_MESSAGES_MAX: usize = 16;

/// How long one write may take before the client counts as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the reader hands on.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// The client said goodbye.
    Close,
    /// More bytes in one message than it may have.
    TooLarge,
    /// The client broke RFC 6455; the text says how.
    Broken(String),
}

/// When something was last heard of a client. Shared by reader and session.
#[derive(Debug)]
pub struct LastHeard {
    start: Instant,
    /// Fine enough that an answer is never timed before its question.
    after_ns: AtomicU64,
}

impl LastHeard {
    fn new() -> LastHeard {
        LastHeard { start: Instant::now(), after_ns: AtomicU64::new(0) }
    }

    fn now(&self) {
        let after_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.after_ns.store(after_ns, Ordering::Relaxed);
    }

    /// The time of the last frame, of whatever kind.
    pub fn at(&self) -> Instant {
        self.start + Duration::from_nanos(self.after_ns.load(Ordering::Relaxed))
    }
}

/// The writing half. Cheap to share; writes without waiting for others.
#[derive(Debug, Clone)]
pub struct Writer(Arc<OwnedWriteHalf>);

impl Writer {
    /// Writes some of the pieces, [`io::ErrorKind::WouldBlock`] when the socket takes nothing now.
    pub fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match pieces {
            // `send` is cheaper for the kernel than `writev`.
            [only] => self.0.try_write(only),
            _ => self.0.try_write_vectored(pieces),
        }
    }

    /// Writes all of the frames, in order, within [`WRITE_TIMEOUT`].
    pub async fn write_all(&self, frames: Vec<Bytes>) -> io::Result<()> {
        let mut rest = frames.as_slice();
        let mut offset = 0;
        let all = async {
            while let Some(first) = rest.first() {
                self.0.writable().await?;
                let mut pieces = Vec::with_capacity(rest.len().min(64));
                pieces.push(IoSlice::new(&first[offset..]));
                pieces.extend(rest[1..].iter().take(63).map(|frame| IoSlice::new(frame)));
                match self.0.try_write_vectored(&pieces) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(mut written) => {
                        written += offset;
                        while let Some(frame) = rest.first() {
                            if written < frame.len() {
                                break;
                            }
                            written -= frame.len();
                            rest = &rest[1..];
                        }
                        offset = written;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        tokio::time::timeout(WRITE_TIMEOUT, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Says that nothing more is written.
    pub async fn shutdown(self) {
        if let Some(mut half) = Arc::into_inner(self.0) {
            // The client may be gone already; there is nobody to tell.
            let _ = half.shutdown().await;
        }
    }
}

/// An upgraded connection: what is read from it, and the half to write to.
pub struct Socket {
    /// Whole messages, in order; ends when the connection does.
    pub inbox: mpsc::Receiver<Received>,
    /// The writing half.
    pub writer: Writer,
    /// When the client was last heard of.
    pub last_heard: Arc<LastHeard>,
    /// The most bytes one message may have; may change once the tenant is known.
    pub message_bytes_max: Arc<AtomicUsize>,
}

impl Socket {
    /// Takes a stream after its handshake, with the bytes that were already read from it.
    /// Answers the socket and the reader's work, to be spawned.
    pub fn open(
        stream: TcpStream,
        read_already: Bytes,
        message_bytes_max: usize,
    ) -> (Socket, impl Future<Output = ()> + Send + 'static) {
        let (read, write) = stream.into_split();
        let (sender, inbox) = mpsc::channel(INBOX_MESSAGES_MAX);
        let last_heard = Arc::new(LastHeard::new());
        let writer = Writer(Arc::new(write));
        let message_bytes_max = Arc::new(AtomicUsize::new(message_bytes_max));
        let reader = Reader {
            inbox: sender,
            last_heard: last_heard.clone(),
            writer: writer.clone(),
            message_bytes_max: message_bytes_max.clone(),
            partial: None,
        };
        let source = Prefixed { before: read_already, half: read };
        (Socket { inbox, writer, last_heard, message_bytes_max }, reader.run(source))
    }
}

struct Reader {
    inbox: mpsc::Sender<Received>,
    last_heard: Arc<LastHeard>,
    writer: Writer,
    message_bytes_max: Arc<AtomicUsize>,
    partial: Option<(OpCode, BytesMut)>,
}

impl Reader {
    async fn run(mut self, source: Prefixed) {
        let (mut frames, _) = fastwebsockets::after_handshake_split(source, tokio::io::sink(), Role::Server);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        let inbox = self.inbox.clone();
        // Whoever reads the inbox may be gone first: then nothing more is read either.
        tokio::select! { () = self.read(&mut frames) => {}, () = inbox.closed() => {} }
    }

    async fn read(&mut self, frames: &mut WebSocketRead<Prefixed>) {
        loop {
            let received = match self.read_one(frames).await {
                Ok(None) => continue,
                Ok(Some(received)) => received,
                Err(None) => return,
                Err(Some(last)) => {
                    let _ = self.inbox.send(last).await;
                    return;
                }
            };
            let end = matches!(received, Received::Close);
            if self.inbox.send(received).await.is_err() || end {
                return;
            }
        }
    }

    /// `Err` is the last word; `Err(None)` a broken connection.
    async fn read_one(&mut self, frames: &mut WebSocketRead<Prefixed>) -> Result<Option<Received>, Option<Received>> {
        let bytes_max = self.message_bytes_max.load(Ordering::Relaxed);
        // The library's limit is exclusive and per frame; the sum over frames is bounded below.
        frames.set_max_message_size(bytes_max + 1);
        // Nothing is ever sent by the library: pings and closes are answered here.
        let frame =
            frames.read_frame(&mut |_| async { Ok::<(), std::convert::Infallible>(()) }).await.map_err(broken)?;
        self.last_heard.now();
        let payload = frame.payload;
        match frame.opcode {
            OpCode::Ping => {
                // A pong that the socket does not take now is dropped: RFC 6455 asks for the latest only.
                let _ = self.writer.try_write(&[IoSlice::new(&wire::pong_frame(&payload))]);
                Ok(None)
            }
            OpCode::Pong => Ok(None),
            OpCode::Close => Ok(Some(Received::Close)),
            OpCode::Text | OpCode::Binary if self.partial.is_some() => {
                Err(Some(Received::Broken("a new message began inside a fragmented one".into())))
            }
            opcode @ (OpCode::Text | OpCode::Binary) if frame.fin => {
                message(opcode, Bytes::copy_from_slice(&payload)).map(Some)
            }
            opcode @ (OpCode::Text | OpCode::Binary) => {
                self.partial = Some((opcode, BytesMut::from(&payload[..])));
                Ok(None)
            }
            OpCode::Continuation => {
                let Some((opcode, mut bytes)) = self.partial.take() else {
                    return Err(Some(Received::Broken("a continuation frame continues nothing".into())));
                };
                if bytes.len() + payload.len() > bytes_max {
                    return Err(Some(Received::TooLarge));
                }
                bytes.extend_from_slice(&payload);
                if frame.fin {
                    return message(opcode, bytes.freeze()).map(Some);
                }
                self.partial = Some((opcode, bytes));
                Ok(None)
            }
        }
    }
}

fn message(opcode: OpCode, bytes: Bytes) -> Result<Received, Option<Received>> {
    if opcode == OpCode::Binary {
        return Ok(Received::Message(Message::Binary(bytes)));
    }
    match String::from_utf8(bytes.into()) {
        Ok(text) => Ok(Received::Message(Message::Text(text))),
        Err(_) => Err(Some(Received::Broken("a text message is not UTF-8".into()))),
    }
}

fn broken(error: WebSocketError) -> Option<Received> {
    match error {
        WebSocketError::FrameTooLarge => Some(Received::TooLarge),
        WebSocketError::UnexpectedEOF | WebSocketError::IoError(_) | WebSocketError::ConnectionClosed => None,
        other => Some(Received::Broken(other.to_string())),
    }
}

/// Bytes that came with the handshake, then the socket.
struct Prefixed {
    before: Bytes,
    half: OwnedReadHalf,
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.before.has_remaining() {
            let count = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.half).poll_read(cx, buf)
    }
}
