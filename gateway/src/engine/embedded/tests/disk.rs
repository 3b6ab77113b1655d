//! A disk that loses its power or breaks.

use std::io;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::commit::Version;

/// Holds what was written, and apart from it what would be left if the power went now.
#[derive(Debug, Clone, Default)]
struct Disk {
    written: Arc<Mutex<Vec<u8>>>,
    safe: Arc<Mutex<Vec<u8>>>,
    broken: Arc<AtomicBool>,
}

impl Disk {
    fn open(&self) -> Arc<EmbeddedEngine> {
        let db = redb::Database::builder().create_with_backend(self.clone()).unwrap();
        EmbeddedEngine::start(db, Options::default()).unwrap()
    }

    /// The same disk after the power came back.
    fn after_a_power_cut(&self) -> Disk {
        let safe = self.safe.lock().clone();
        Disk { written: Arc::new(Mutex::new(safe.clone())), safe: Arc::new(Mutex::new(safe)), ..Disk::default() }
    }
}

fn piece(data: &mut [u8], offset: u64, len: usize) -> io::Result<&mut [u8]> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    data.get_mut(start..start + len).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(piece(&mut self.written.lock(), offset, out.len())?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.written.lock().resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("no space left"));
        }
        self.safe.lock().clone_from(&self.written.lock());
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        piece(&mut self.written.lock(), offset, data.len())?.copy_from_slice(data);
        Ok(())
    }
}

#[tokio::test]
async fn what_is_acknowledged_or_delivered_survives_a_power_cut() {
    let disk = Disk::default();
    let engine = disk.open();
    let mut follower = engine.follow(&acme()).await.unwrap();
    for n in 0..10 {
        let key = StateKey::stored(&n.to_string());
        let commit = Commit { effects: say(key.as_str()).effects, ..put(key.as_str(), None) };
        let (left, _) = tokio::join!(
            async {
                // Delivered before it is acknowledged, or after; on disk either way.
                follower.feed.recv().await.unwrap();
                disk.after_a_power_cut()
            },
            engine.apply(commit),
        );
        for left in [left, disk.after_a_power_cut()] {
            let read = left.open().read(&acme(), std::slice::from_ref(&key)).await.unwrap();
            assert!(read[0].is_some(), "{key:?} was known and is lost");
        }
    }
}

#[tokio::test]
async fn a_broken_disk_is_told_and_nothing_that_may_be_lost_is_delivered() {
    let disk = Disk::default();
    let engine = disk.open();
    engine.apply(put("before", None)).await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    disk.broken.store(true, Ordering::SeqCst);

    let commit = Arc::new(Commit { effects: say("never").effects, ..put("lost", None) });
    let error = engine.commit(&acme(), Arc::clone(&commit)).await.unwrap_err();
    assert!(matches!(&error, EngineError::Ambiguous(why) if why.contains("no space left")), "{error}");
    let error = engine.ping().await.unwrap_err();
    assert!(error.to_string().contains("the disk has failed"), "{error}");
    let error = engine.commit(&acme(), commit).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable(_)), "{error}");

    // What needs no disk goes on.
    let position = engine.apply(say("still here")).await;
    assert!(matches!(follower.feed.try_recv(), Ok(Feed::Entry(entry)) if entry.position == position));
}

#[tokio::test]
async fn versions_are_not_used_again_after_a_power_cut() {
    let disk = Disk::default();
    let engine = disk.open();
    let version = |engine: Arc<EmbeddedEngine>| async move {
        let read = engine.read(&acme(), &[StateKey::stored("a")]).await.unwrap().remove(0);
        read.unwrap().version
    };
    let mut seen: Vec<Version> = Vec::new();
    for _ in 0..5 {
        engine.apply(put("a", None)).await;
        seen.push(version(Arc::clone(&engine)).await);
    }
    let engine = disk.after_a_power_cut().open();
    engine.apply(put("a", None)).await;
    assert!(!seen.contains(&version(engine).await));
}
