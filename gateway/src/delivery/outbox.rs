//! What waits for one client: bounded, written straight to the socket when nothing waits,
//! coalesced when something does.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::close::Close;
use crate::commit::{Cursor, Position};

/// How many pieces one system call writes at most.
const PIECES_PER_WRITE: usize = 64;

/// The socket's side of an outbox: writes what it can without waiting.
pub trait TryWrite: Send + Sync {
    /// Writes some of the pieces; [`io::ErrorKind::WouldBlock`] when the socket takes nothing now.
    fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct OutboxLimits {
    /// In bytes.
    pub bytes: usize,
    /// In messages.
    pub messages: usize,
}

/// The queue of one client. Shared by whoever has something to say to it.
pub struct Outbox {
    state: Mutex<State>,
    /// Wakes the writer: something waits that the socket did not take at once, or the end has come.
    writer: Notify,
    /// Wakes the session: somebody wants the connection to end.
    ended: Notify,
}

struct State {
    queue: VecDeque<Bytes>,
    bytes: usize,
    /// How far into the tenant's log the client has come once the queue is written.
    reached: Option<Cursor>,
    /// What is delivered while the client is first given what it missed.
    held: Option<Held>,
    socket: Arc<dyn TryWrite>,
    /// Something was [pushed](Outbox::push) since the last flush.
    unflushed: bool,
    /// The writer task holds a part of the queue: nobody else may write.
    writing: bool,
    end: Option<Close>,
    limits: OutboxLimits,
    /// The first piece is on the wire in part: it must be ended before anything else is written.
    front_begun: bool,
    /// Is what others push forgotten?
    muted: bool,
    /// The session is done: nothing is taken any more.
    sealed: bool,
}

/// What is held back, and how far the client has come once that is written, too.
#[derive(Default)]
struct Held {
    queue: VecDeque<Bytes>,
    reached: Option<Cursor>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Outbox").field("messages", &state.queue.len()).field("bytes", &state.bytes).finish()
    }
}

/// What the writer does next.
#[derive(Debug)]
pub enum Next {
    /// Write these, in order, then ask again.
    Write(Vec<Bytes>),
    /// Everything is written and the session has sealed the outbox: close the socket.
    Done,
}

impl Outbox {
    /// An empty one in front of a socket.
    pub fn new(socket: Arc<dyn TryWrite>, limits: OutboxLimits) -> Arc<Outbox> {
        Arc::new(Outbox {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                reached: None,
                held: None,
                socket,
                unflushed: false,
                writing: false,
                end: None,
                limits,
                front_begun: false,
                muted: false,
                sealed: false,
            }),
            writer: Notify::new(),
            ended: Notify::new(),
        })
    }

    /// Puts complete frames behind everything that waits. What does not fit any more ends the
    /// connection as slow: a client never gets a part of what it should.
    ///
    /// Answers whether it is the first push since the last flush: whoever is told so must
    /// [`flush`](Outbox::flush), and flushes for those who push meanwhile.
    pub fn push(&self, frames: Bytes) -> bool {
        self.put(self.state.lock(), frames, true)
    }

    /// As [`push`](Outbox::push), of something that the log has here.
    pub fn push_at(&self, frames: Bytes, cursor: Cursor) -> bool {
        let mut state = self.state.lock();
        match &mut state.held {
            Some(held) => held.reached = Some(cursor),
            None => state.reached = Some(cursor),
        }
        self.put(state, frames, true)
    }

    /// As [`push`](Outbox::push), but before what is held back.
    pub fn push_before_held(&self, frames: Bytes) {
        self.put(self.state.lock(), frames, false);
    }

    /// As [`push_before_held`](Outbox::push_before_held), of something that the log has here.
    pub fn push_missed(&self, frames: Bytes, cursor: Cursor) {
        let mut state = self.state.lock();
        state.reached = Some(cursor);
        self.put(state, frames, false);
    }

    /// As [`push_before_held`](Outbox::push_before_held), of something that is not in the log but says how far into it
    /// the client has come: exactly as far as what was pushed before it, or, where nothing is held back,
    /// as `handed_out`, up to where the tenant's delivery has pushed. Never less than what the client was told before.
    pub fn push_between(
        &self,
        handed_out: impl FnOnce() -> Option<Position>,
        frames: impl FnOnce(Option<Cursor>) -> Bytes,
    ) {
        let mut state = self.state.lock();
        // Read under the lock: what is pushed meanwhile comes behind this. To a connection that is ended nothing is
        // handed out any more, so what others were given says nothing of how far it has come.
        let follows = state.held.is_none() && state.end.is_none();
        let handed_out = if follows { handed_out() } else { None };
        let whole = handed_out.map(|position| Cursor { position, part: None });
        state.reached = match (state.reached, whole) {
            (Some(reached), Some(whole)) if reached.position > whole.position => Some(reached),
            (reached, whole) => whole.or(reached),
        };
        let frames = frames(state.reached);
        self.put(state, frames, false);
    }

    /// Sets other limits, once it is known whose client this is.
    pub fn set_limits(&self, limits: OutboxLimits) {
        self.state.lock().limits = limits;
    }

    /// Holds back what is pushed from now on, within the same limits, until [`release`](Outbox::release).
    pub fn hold(&self) {
        let mut state = self.state.lock();
        state.muted = false;
        state.held.get_or_insert_default();
    }

    /// Is something held back, or would be?
    pub fn is_holding(&self) -> bool {
        self.state.lock().held.is_some()
    }

    /// Forgets what was held back, and what comes until the next [`hold`](Outbox::hold): the client did not get so far
    /// as to have it.
    pub fn discard_held(&self) {
        let mut state = self.state.lock();
        state.muted = true;
        if let Some(held) = state.held.take() {
            state.bytes -= held.queue.iter().map(Bytes::len).sum::<usize>();
        }
    }

    /// Lets what was held back go, in order.
    pub fn release(&self) {
        let mut state = self.state.lock();
        if let Some(mut held) = state.held.take() {
            state.queue.append(&mut held.queue);
            state.reached = held.reached.or(state.reached);
        }
        drop(state);
        self.flush();
    }

    fn put(&self, mut state: MutexGuard<'_, State>, frames: Bytes, may_hold: bool) -> bool {
        if state.sealed || state.end == Some(Close::Slow) || (state.muted && may_hold) {
            return false;
        }
        let messages = state.queue.len() + state.held.as_ref().map_or(0, |held| held.queue.len());
        if messages >= state.limits.messages || state.bytes + frames.len() > state.limits.bytes {
            let begun = usize::from(state.front_begun);
            state.queue.truncate(begun);
            state.held = None;
            state.bytes = state.queue.iter().map(Bytes::len).sum();
            drop(state);
            self.end(Close::Slow);
            return false;
        }
        state.bytes += frames.len();
        match &mut state.held {
            Some(held) if may_hold => held.queue.push_back(frames),
            _ => state.queue.push_back(frames),
        }
        may_hold && !std::mem::replace(&mut state.unflushed, true)
    }

    /// Writes what waits as far as the socket takes it; the writer does the rest.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.unflushed = false;
        if state.writing {
            return;
        }
        while !state.queue.is_empty() {
            match state.try_write() {
                Ok(written) => state.take(written),
                // An error shows again in the writer, which ends the connection.
                Err(_) => {
                    drop(state);
                    self.writer.notify_one();
                    return;
                }
            }
        }
    }

    /// Asks for the connection's end. The first reason counts, except that nothing outweighs `Slow`.
    pub fn end(&self, close: Close) {
        let mut state = self.state.lock();
        if state.end.is_none() || close == Close::Slow {
            state.end = Some(close);
        }
        drop(state);
        self.ended.notify_one();
        self.writer.notify_one();
    }

    /// Waits until somebody asks for the end. For one waiter; may be dropped.
    pub async fn ended(&self) -> Close {
        loop {
            if let Some(close) = self.state.lock().end {
                return close;
            }
            self.ended.notified().await;
        }
    }

    /// The last word: queues `frames` (the close frame) and takes nothing after it.
    pub fn seal(&self, frames: Bytes) {
        let mut state = self.state.lock();
        if !state.sealed {
            state.sealed = true;
            state.bytes += frames.len();
            state.queue.push_back(frames);
        }
        drop(state);
        self.writer.notify_one();
    }

    /// For the writer: waits until the socket did not take something at once.
    pub async fn next(&self) -> Next {
        loop {
            {
                let mut state = self.state.lock();
                state.writing = false;
                if !state.queue.is_empty() {
                    state.writing = true;
                    state.front_begun = false;
                    let frames: Vec<Bytes> = state.queue.drain(..).collect();
                    let bytes: usize = frames.iter().map(Bytes::len).sum();
                    state.bytes = state.bytes.saturating_sub(bytes);
                    return Next::Write(frames);
                }
                if state.sealed {
                    return Next::Done;
                }
            }
            self.writer.notified().await;
        }
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl State {
    /// Writes from the queue's front, which is not empty, what the socket takes.
    fn try_write(&self) -> io::Result<usize> {
        if let (1, Some(only)) = (self.queue.len(), self.queue.front()) {
            return self.socket.try_write(&[IoSlice::new(only)]);
        }
        let mut pieces = [IoSlice::new(&[]); PIECES_PER_WRITE];
        let mut count = 0;
        for (piece, frames) in pieces.iter_mut().zip(&self.queue) {
            *piece = IoSlice::new(frames);
            count += 1;
        }
        self.socket.try_write(&pieces[..count])
    }

    fn take(&mut self, mut written: usize) {
        self.bytes -= written.min(self.bytes);
        while written > 0 {
            let Some(first) = self.queue.front_mut() else { return };
            if written >= first.len() {
                written -= first.len();
                self.queue.pop_front();
                self.front_begun = false;
            } else {
                first.advance(written);
                self.front_begun = true;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes `room` bytes and then blocks.
    #[derive(Default)]
    struct Socket {
        taken: Mutex<Vec<u8>>,
        room: Mutex<usize>,
        calls: Mutex<usize>,
    }

    impl TryWrite for Socket {
        fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            *self.calls.lock() += 1;
            let mut room = self.room.lock();
            if *room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let mut written = 0;
            for piece in pieces {
                let part = (*room).min(piece.len());
                self.taken.lock().extend_from_slice(&piece[..part]);
                *room -= part;
                written += part;
            }
            Ok(written)
        }
    }

    fn outbox(room: usize, limits: OutboxLimits) -> (Arc<Outbox>, Arc<Socket>) {
        let socket = Arc::new(Socket::default());
        *socket.room.lock() = room;
        (Outbox::new(socket.clone(), limits), socket)
    }

    const WIDE: OutboxLimits = OutboxLimits { bytes: 1000, messages: 100 };

    #[test]
    fn what_waits_goes_out_in_one_call_when_the_socket_takes_it() {
        let (outbox, socket) = outbox(1000, WIDE);
        for part in ["one ", "two ", "three"] {
            outbox.push(Bytes::from_static(part.as_bytes()));
        }
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"one two three");
        assert_eq!(*socket.calls.lock(), 1);
        assert_eq!(outbox.waiting_bytes(), 0);
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_is_left_for_the_writer_from_the_right_byte() {
        let (outbox, socket) = outbox(6, WIDE);
        outbox.push(Bytes::from_static(b"one "));
        outbox.push(Bytes::from_static(b"two"));
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"one tw");
        let Next::Write(rest) = outbox.next().await else { panic!("nothing to write") };
        assert_eq!(rest.concat(), b"o");
        // While the writer holds a part, nobody writes past it.
        *socket.room.lock() = 100;
        outbox.push(Bytes::from_static(b"three"));
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"one tw");
        let Next::Write(rest) = outbox.next().await else { panic!("nothing to write") };
        assert_eq!(rest.concat(), b"three");
    }

    #[tokio::test]
    async fn a_client_that_takes_too_little_is_slow_and_gets_no_part_of_the_rest() {
        let (outbox, _socket) = outbox(0, OutboxLimits { bytes: 10, messages: 100 });
        outbox.push(Bytes::from_static(b"123456"));
        outbox.push(Bytes::from_static(b"789012"));
        assert_eq!(outbox.ended().await, Close::Slow);
        outbox.push(Bytes::from_static(b"x"));
        assert_eq!(outbox.waiting_bytes(), 0);
    }

    #[test]
    fn only_the_first_to_push_since_a_flush_has_to_flush() {
        let (outbox, socket) = outbox(1000, WIDE);
        assert!(outbox.push(Bytes::from_static(b"one ")));
        assert!(!outbox.push(Bytes::from_static(b"two ")));
        // Whoever flushes at once does not take the duty from anybody.
        outbox.push_before_held(Bytes::from_static(b"three "));
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"one two three ");
        outbox.push_before_held(Bytes::from_static(b"four "));
        assert!(outbox.push(Bytes::from_static(b"five")));
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"one two three four five");
    }

    #[test]
    fn what_is_held_back_comes_after_what_was_missed() {
        let (outbox, socket) = outbox(1000, WIDE);
        outbox.hold();
        outbox.push(Bytes::from_static(b"live"));
        outbox.push_before_held(Bytes::from_static(b"missed "));
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"missed ");
        outbox.release();
        assert_eq!(*socket.taken.lock(), b"missed live");
    }

    #[test]
    fn a_word_between_says_how_far_the_client_has_come_and_never_less_than_before() {
        let (outbox, _socket) = outbox(1000, WIDE);
        let at = |seq, part| Cursor { position: Position { epoch: 1, seq }, part };
        let said = |handed_out: Option<u64>| {
            let mut said = None;
            let position = handed_out.map(|seq| Position { epoch: 1, seq });
            outbox.push_between(
                || position,
                |reached| {
                    said = reached;
                    Bytes::from_static(b"word")
                },
            );
            said
        };
        assert_eq!(said(None), None);
        assert_eq!(said(Some(3)), Some(at(3, None)));
        outbox.push_at(Bytes::from_static(b"live"), at(5, Some(0)));
        assert_eq!(said(Some(4)), Some(at(5, Some(0))), "the delivery is in the middle of an entry");
        assert_eq!(said(Some(5)), Some(at(5, None)), "the rest of the entry was for others");
        outbox.push_at(Bytes::from_static(b"live"), at(5, None));
        outbox.hold();
        outbox.push_at(Bytes::from_static(b"live"), at(9, None));
        assert_eq!(said(Some(9)), Some(at(5, None)), "what is held back has not reached the client");
        outbox.push_missed(Bytes::from_static(b"missed"), at(7, None));
        assert_eq!(said(Some(9)), Some(at(7, None)));
        outbox.release();
        assert_eq!(said(Some(8)), Some(at(9, None)));
        outbox.end(Close::Fenced);
        assert_eq!(said(Some(20)), Some(at(9, None)), "what came after its end went to others");
    }

    #[test]
    fn what_was_held_back_for_a_client_that_did_not_get_in_is_forgotten() {
        let (outbox, socket) = outbox(1000, OutboxLimits { bytes: 10, messages: 2 });
        outbox.hold();
        outbox.push_at(Bytes::from_static(b"12345678"), Cursor { position: Position { epoch: 1, seq: 9 }, part: None });
        outbox.discard_held();
        outbox.push(Bytes::from_static(b"late"));
        outbox.flush();
        assert_eq!(*socket.taken.lock(), b"", "what comes behind it is forgotten, too");
        outbox.hold();
        outbox.push(Bytes::from_static(b"abcdefgh"));
        outbox.release();
        assert_eq!(*socket.taken.lock(), b"abcdefgh", "its place is free again");
    }

    #[tokio::test]
    async fn a_frame_that_is_on_the_wire_in_part_is_ended_before_the_last_word() {
        let (outbox, socket) = outbox(3, OutboxLimits { bytes: 10, messages: 100 });
        outbox.push(Bytes::from_static(b"123456"));
        outbox.flush();
        outbox.push(Bytes::from_static(b"7890123456"));
        assert_eq!(outbox.ended().await, Close::Slow);
        outbox.seal(Bytes::from_static(b"close"));
        assert_eq!(*socket.taken.lock(), b"123");
        let Next::Write(rest) = outbox.next().await else { panic!("nothing to write") };
        assert_eq!(rest.concat(), b"456close");
    }

    #[tokio::test]
    async fn the_last_word_comes_after_everything_and_nothing_comes_after_it() {
        let (outbox, _socket) = outbox(0, WIDE);
        outbox.push(Bytes::from_static(b"a"));
        outbox.seal(Bytes::from_static(b"close"));
        outbox.push(Bytes::from_static(b"late"));
        let Next::Write(rest) = outbox.next().await else { panic!("nothing to write") };
        assert_eq!(rest.concat(), b"aclose");
        assert!(matches!(outbox.next().await, Next::Done));
    }

    #[tokio::test]
    async fn the_first_reason_for_the_end_counts() {
        let (outbox, _socket) = outbox(0, WIDE);
        outbox.end(Close::Shutdown);
        outbox.end(Close::Disconnected);
        assert_eq!(outbox.ended().await, Close::Shutdown);
    }
}
