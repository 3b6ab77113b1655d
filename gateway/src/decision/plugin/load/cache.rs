//! Compiled code on the disk, so that a start does not compile everything again.
//!
//! Code is believed without another look, so nothing is given out that this cache has not written itself: every
//! file carries a MAC over its name and its content, by a key that only the gateway's user can read. What does not
//! hold is deleted and compiled again. Nothing here fails a load: without the cache it only takes longer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::hmac;
use parking_lot::Mutex;

/// How the names of the files end.
const EXTENSION: &str = "code";

/// The file with the key, beside them.
const KEY_FILE: &str = "key";

/// The key, in bytes.
const KEY_BYTES: usize = 32;

/// HMAC-SHA256, in bytes. It stands before the code.
const MAC_BYTES: usize = 32;

/// Where compiled code is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeCache {
    /// The directory. It is made when it is not there; nobody else may read it.
    pub dir: PathBuf,
    /// All files together, in bytes; what was not used for longest goes first.
    pub bytes_max: u64,
}

/// An open cache.
pub(in super::super) struct Cache {
    settings: CodeCache,
    key: hmac::Key,
    /// What code must have been made by.
    engine: String,
    /// One at a time looks for what is to go.
    tidying: Mutex<()>,
}

impl Cache {
    /// Opens the directory, or makes it. `engine` identifies what the code is made by, with its version.
    pub(in super::super) fn open(settings: &CodeCache, engine: &str) -> io::Result<Cache> {
        let dir = &settings.dir;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        own(dir)?;
        if fs::metadata(dir)?.permissions().mode() & 0o077 != 0 {
            // It may have been there, for everybody to write.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret(dir)?);
        Ok(Cache { settings: settings.clone(), key, engine: engine.into(), tidying: Mutex::new(()) })
    }

    /// The code of a component, by the component's SHA-256 in hexadecimal.
    pub(super) fn get(&self, digest: &str) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let mut file = File::open(&path).ok()?;
        match self.read(&mut file, digest) {
            Ok(Some(code)) => {
                // When it was used last; a disk that is full or read-only only forgets it.
                let _ = file.set_modified(SystemTime::now());
                Some(code)
            }
            Ok(None) => {
                tracing::warn!(file = %path.display(), "compiled code is not what was written; it is deleted");
                metrics::counter!("plugin_code_cache_rejected_total").increment(1);
                let _ = fs::remove_file(&path);
                None
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "compiled code cannot be read");
                None
            }
        }
    }

    fn read(&self, file: &mut File, digest: &str) -> io::Result<Option<Vec<u8>>> {
        let mut mac = [0; MAC_BYTES];
        let mut code = Vec::new();
        if let Err(error) = file.read_exact(&mut mac) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        file.take(self.settings.bytes_max).read_to_end(&mut code)?;
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&self.label(digest));
        context.update(&code);
        let same = aws_lc_rs::constant_time::verify_slices_are_equal(context.sign().as_ref(), &mac).is_ok();
        Ok(same.then_some(code))
    }

    /// Keeps code. Whatever goes wrong is told and comes to nothing else.
    pub(super) fn put(&self, digest: &str, code: &[u8]) {
        let written = self.write(digest, code).and_then(|()| self.tidy());
        if let Err(error) = written {
            tracing::warn!(dir = %self.settings.dir.display(), %error, "compiled code cannot be kept (plugins.code_cache_dir)");
        }
    }

    fn write(&self, digest: &str, code: &[u8]) -> io::Result<()> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&self.label(digest));
        context.update(code);
        let temporary = self.settings.dir.join(format!("{digest}.{}.new", crate::commit::CommitId::random().as_str()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(context.sign().as_ref())?;
            file.write_all(code)?;
            fs::rename(&temporary, self.path(digest))
        };
        write().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// What the MAC is over besides the code: code of another component or engine is not what was asked for.
    fn label(&self, digest: &str) -> Vec<u8> {
        format!("postern-code-v1\n{}\n{digest}\n", self.engine).into_bytes()
    }

    fn path(&self, digest: &str) -> PathBuf {
        // Two versions of the gateway beside each other do not delete each other's code.
        self.settings.dir.join(format!("{digest}-{}.{EXTENSION}", self.engine))
    }

    /// Deletes what was not used for longest until the rest fits, and what a crash has left half written.
    fn tidy(&self) -> io::Result<()> {
        let _one = self.tidying.lock();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.settings.dir)? {
            let entry = entry?;
            let path = entry.path();
            let Ok(about) = entry.metadata() else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let extension = path.extension().and_then(|extension| extension.to_str());
            match extension {
                Some(EXTENSION) => files.push((used, about.len(), path)),
                Some("new") if used.elapsed().is_ok_and(|age| age > ABANDONED) => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        files.sort();
        for (_, bytes, path) in files {
            if total <= self.settings.bytes_max {
                break;
            }
            fs::remove_file(&path)?;
            total -= bytes;
        }
        Ok(())
    }
}

/// A file that nobody has finished writing for so long is nobody's.
const ABANDONED: std::time::Duration = std::time::Duration::from_secs(600);

/// Is it the gateway's own? Whoever else owns it could put a key and code there that hold.
fn own(path: &Path) -> io::Result<()> {
    let (owner, user) = (fs::metadata(path)?.uid(), rustix::process::geteuid().as_raw());
    if owner == user {
        return Ok(());
    }
    let path = path.display();
    Err(io::Error::other(format!(
        "{path} belongs to user {owner}, the gateway runs as user {user}: chown it, or set plugins.code_cache_dir"
    )))
}

/// The key of a directory, made at its first use. Several processes may come at once: the first one's counts.
fn secret(dir: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = dir.join(KEY_FILE);
    if !path.exists() {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
        let temporary = dir.join(format!("{KEY_FILE}.{}.new", crate::commit::CommitId::random().as_str()));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?.write_all(&key)?;
        let linked = fs::hard_link(&temporary, &path);
        fs::remove_file(&temporary)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let mut file = File::open(&path)?;
    own(&path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} can be read by others: delete it", path.display())));
    }
    let mut key = [0; KEY_BYTES];
    file.read_exact(&mut key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, bytes_max: u64) -> Cache {
        Cache::open(&CodeCache { dir: dir.join("cache"), bytes_max }, "engine-1").unwrap()
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let all = fs::read_dir(dir.join("cache")).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some()).collect()
    }

    #[test]
    fn code_comes_back_as_it_was_kept_also_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 1 << 20).put("d1", b"code");
        let again = open(dir.path(), 1 << 20);
        assert_eq!(again.get("d1").as_deref(), Some(&b"code"[..]));
        assert_eq!(again.get("d2"), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("cache")), 0o700);
        assert_eq!(mode(&dir.path().join("cache/key")), 0o600);
        assert!(files(dir.path()).iter().all(|file| mode(file) == 0o600));
    }

    #[test]
    fn code_that_was_changed_cut_short_or_renamed_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 1 << 20);
        let path = cache.path("d1");
        for spoil in [
            |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1,
            |bytes: &mut Vec<u8>| bytes[3] ^= 1,
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
            |bytes: &mut Vec<u8>| bytes.truncate(10),
            |bytes: &mut Vec<u8>| bytes.push(0),
            Vec::clear,
        ] {
            cache.put("d1", b"machine code");
            let mut bytes = fs::read(&path).unwrap();
            spoil(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get("d1"), None);
            assert!(!path.exists());
        }
        cache.put("d1", b"machine code");
        fs::rename(&path, cache.path("d2")).unwrap();
        assert_eq!(cache.get("d2"), None);
    }

    #[test]
    fn code_of_another_engine_or_with_another_key_is_not_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 1 << 20);
        cache.put("d1", b"code");
        let other = Cache::open(&cache.settings, "engine-2").unwrap();
        fs::copy(cache.path("d1"), other.path("d1")).unwrap();
        assert_eq!(other.get("d1"), None);
        fs::remove_file(dir.path().join("cache/key")).unwrap();
        assert_eq!(open(dir.path(), 1 << 20).get("d1"), None);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 400);
        let age = |digest: &str, seconds: u64| {
            let file = File::open(cache.path(digest)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        cache.put("a", &[1; 100]);
        age("a", 30);
        cache.put("b", &[2; 100]);
        age("b", 20);
        assert!(cache.get("a").is_some(), "used now");
        cache.put("c", &[3; 100]);
        cache.put("d", &[4; 100]);
        assert_eq!(cache.get("b"), None);
        assert!(["a", "c", "d"].iter().all(|digest| cache.get(digest).is_some()));
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused_and_named() {
        let root = Path::new("/");
        let is_roots = fs::metadata(root).unwrap().uid() == 0 && rustix::process::geteuid().is_root();
        if is_roots {
            // Root may give things away; others have what is root's to try with.
            let dir = tempfile::tempdir().unwrap();
            drop(open(dir.path(), 100));
            let cache = dir.path().join("cache");
            for path in [cache.join("key"), cache.clone()] {
                std::os::unix::fs::chown(&path, Some(1), None).unwrap();
                let Err(refused) = Cache::open(&CodeCache { dir: cache.clone(), bytes_max: 1 }, "e") else {
                    panic!("{} was taken", path.display());
                };
                assert!(refused.to_string().contains("belongs to user 1, the gateway runs as user 0"), "{refused}");
                std::os::unix::fs::chown(&path, Some(0), None).unwrap();
            }
        } else {
            assert!(own(root).unwrap_err().to_string().contains("belongs to user 0"));
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), 100));
        let key = dir.path().join("cache/key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let opened = Cache::open(&CodeCache { dir: dir.path().join("cache"), bytes_max: 1 }, "e");
        assert!(opened.is_err());
    }
}
