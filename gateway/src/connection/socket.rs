//! A WebSocket: one task reads whole messages into a bounded inbox, one writes what the
//! outbox's direct path did not.
//!
//! Everybody else waits on the inbox: while it is full the reader stops, and TCP tells the client.

mod frames;
mod wire;

use std::future::Future;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use frames::{Assembler, FrameError, Incoming, Step};
pub use wire::{binary_frame, close_frame, ping_frame, pong_frame, text_frame};

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
    /// The client asks whether we are there; the payload goes back to it.
    Ping(Bytes),
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
            message_bytes_max: message_bytes_max.clone(),
            assembler: Assembler::default(),
        };
        (Socket { inbox, writer, last_heard, message_bytes_max }, reader.run(read, read_already))
    }
}

/// What one read makes room for at least, in bytes.
const READ_BYTES_MIN: usize = 2_048;

/// What one read makes room for at most, in bytes: a client that announces much gets no memory before it sends.
const READ_BYTES_MAX: usize = 64 << 10;

struct Reader {
    inbox: mpsc::Sender<Received>,
    last_heard: Arc<LastHeard>,
    message_bytes_max: Arc<AtomicUsize>,
    assembler: Assembler,
}

impl Reader {
    async fn run(mut self, half: OwnedReadHalf, read_already: Bytes) {
        let inbox = self.inbox.clone();
        // Whoever reads the inbox may be gone first: then nothing more is read either.
        tokio::select! { () = self.read(&half, BytesMut::from(&read_already[..])) => {}, () = inbox.closed() => {} }
    }

    async fn read(&mut self, half: &OwnedReadHalf, mut buffer: BytesMut) {
        loop {
            let received = match self.assembler.step(&mut buffer, self.message_bytes_max.load(Ordering::Relaxed)) {
                Ok(Step::More(more)) => {
                    if fill(half, &mut buffer, more).await {
                        continue;
                    } else {
                        return;
                    }
                }
                Ok(Step::Incoming(incoming)) => {
                    self.last_heard.now();
                    match incoming {
                        Incoming::Text(text) => Received::Message(Message::Text(text)),
                        Incoming::Binary(bytes) => Received::Message(Message::Binary(bytes)),
                        Incoming::Ping(payload) => Received::Ping(payload),
                        Incoming::Pong => continue,
                        Incoming::Close => Received::Close,
                    }
                }
                Err(FrameError::TooLarge) => Received::TooLarge,
                Err(error) => Received::Broken(error.to_string()),
            };
            let last = matches!(received, Received::Close | Received::TooLarge | Received::Broken(_));
            if self.inbox.send(received).await.is_err() || last {
                return;
            }
        }
    }
}

/// Reads some bytes; `false`: there are no more. A connection that says nothing holds no buffer.
async fn fill(half: &OwnedReadHalf, buffer: &mut BytesMut, more: usize) -> bool {
    if buffer.is_empty() {
        *buffer = BytesMut::new();
    }
    loop {
        if half.readable().await.is_err() {
            return false;
        }
        buffer.reserve(more.clamp(READ_BYTES_MIN, READ_BYTES_MAX));
        match half.try_read_buf(buffer) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}
