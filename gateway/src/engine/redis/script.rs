//! The scripts, and how one is run.

use std::sync::LazyLock;
use std::time::Instant;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use metrics::{Histogram, histogram};

/// A Lua script with the SHA-1 that Redis knows it by.
pub(super) struct Script {
    source: &'static str,
    digest: LazyLock<String>,
    seconds: LazyLock<Histogram>,
}

macro_rules! script {
    ($(#[doc = $doc:literal])+ $name:ident, $($file:literal),+) => {
        $(#[doc = $doc])+
        pub(super) static $name: Script = Script {
            source: concat!(include_str!("scripts/log.lua"), $(include_str!(concat!("scripts/", $file))),+),
            digest: LazyLock::new(|| ::redis::Script::new($name.source).get_hash().to_owned()),
            seconds: LazyLock::new(|| histogram!("engine_command_seconds", "script" => stringify!($name).to_ascii_lowercase())),
        };
    };
}

script! {
    /// One commit.
    COMMIT, "presence.lua", "stored.lua", "commit.lua"
}
script! {
    /// What a tenant keeps.
    TOTALS, "stored.lua", "totals.lua"
}
script! {
    /// Puts the registry right with what a node knows.
    REGISTER, "presence.lua", "register.lua"
}
script! {
    /// Takes a seat.
    TAKE_SEAT, "presence.lua", "take_seat.lua"
}
script! {
    /// Says which seats a node has.
    KEEP_SEATS, "keep_seats.lua"
}
script! {
    /// Takes tokens out of a bucket.
    TAKE_TOKENS, "take_tokens.lua"
}
script! {
    /// A node's beat.
    LEASE, "lease.lua"
}
script! {
    /// Moves an incarnation to the dead.
    BURY, "bury.lua"
}
script! {
    /// Ends an incarnation's own lease.
    RETIRE, "retire.lua"
}
script! {
    /// Connections that a dead incarnation left in a partition.
    ORPHANS, "orphans.lua"
}
script! {
    /// Gives a timer up.
    BURY_TIMER, "stored.lua", "bury_timer.lua"
}
script! {
    /// Forgets what a deleted tenant has left.
    FORGET, "presence.lua", "forget.lua"
}
script! {
    /// Notes that artefacts are needed now.
    TOUCH_ARTIFACTS, "touch_artifacts.lua"
}
script! {
    /// Artefacts that were not needed for long.
    OLD_ARTIFACTS, "old_artifacts.lua"
}
script! {
    /// Deletes one of them.
    DELETE_ARTIFACT, "delete_artifact.lua"
}
script! {
    /// The top of a log.
    TOP, "top.lua"
}
script! {
    /// A stretch of the index of keys.
    LIST_KEYS, "list_keys.lua"
}
script! {
    /// Leases due timers.
    CLAIM_TIMERS, "claim_timers.lua"
}
script! {
    /// Gives a leased timer back.
    RELEASE_TIMER, "release_timer.lua"
}

/// Makes the scripts known to a server: part of a connection's handshake.
pub(super) async fn load_all(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let all = [
        &COMMIT,
        &REGISTER,
        &LEASE,
        &BURY,
        &RETIRE,
        &ORPHANS,
        &TOP,
        &LIST_KEYS,
        &CLAIM_TIMERS,
        &RELEASE_TIMER,
        &BURY_TIMER,
        &TOTALS,
        &TAKE_SEAT,
        &KEEP_SEATS,
        &TAKE_TOKENS,
        &FORGET,
        &TOUCH_ARTIFACTS,
        &OLD_ARTIFACTS,
        &DELETE_ARTIFACT,
    ];
    for script in all {
        ::redis::cmd("SCRIPT").arg("LOAD").arg(script.source).exec_async(connection).await?;
    }
    Ok(())
}

impl Script {
    /// Runs it. Redis may have forgotten it (`SCRIPT FLUSH`, a failover); then nothing was done, and it is
    /// sent along once.
    pub(super) async fn run(
        &'static self,
        connection: &mut MultiplexedConnection,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<Value, RedisError> {
        let since = Instant::now();
        let known = invocation("EVALSHA", &self.digest, keys, arguments);
        let answer = match known.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                invocation("EVAL", self.source, keys, arguments).query_async(connection).await
            }
            answer => answer,
        };
        self.seconds.record(since.elapsed());
        answer
    }
}

fn invocation(verb: &str, script: &str, keys: &[&str], arguments: &[&[u8]]) -> Cmd {
    let mut command = ::redis::cmd(verb);
    command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    command
}
