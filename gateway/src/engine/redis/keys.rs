//! Names in Redis, all built here.
//!
//! `ps:{tag}:{tenant}:…` is a tenant's, `ps:{tag}:_…` a partition's: no tenant's name starts with `_` (but the
//! catalog's, `_catalog`, which is no partition's) or contains `:`, so no tenant's key is another's, whatever stands
//! behind the name.
//!
//! | name after `ps:{tag}:{tenant}:` | type | what |
//! |---|---|---|
//! | `log` | stream | the commits |
//! | `meta` | hash | `e` epoch, `g` generation, `v` version counter, `t` and `c` checkpoints, `m` where memberships changed last, `f` when the tenant was forgotten last; what plugins keep: `b` bytes, `n` keys, `w` timers |
//! | `ch` | shard channel | the commits, and what is not logged |
//! | `id:{commit}` | string | the position of an applied commit |
//! | `k:{key}` | string | a value behind its version |
//! | `keys`, `exp` | sorted sets | the keys in order; when those with a time to live end |
//! | `sz` | hash | plugins' keys → bytes of key and value |
//! | `s:{session}` | string | a session record |
//! | `c` | hash | connection → namespace, subject, session, incarnation of its node |
//! | `r:{room}` | sorted set | members |
//! | `n:{connection}` | set | its rooms |
//! | `u`, `u:{user}` | sorted sets | seats of the tenant and of a user: `{incarnation}\0{connection}` |
//! | `ut` | sorted set | incarnations: when they said last that they have seats |
//! | `b:{bucket}` | string | a bucket's tokens, and when it was looked at |
//!
//! | name after `ps:{tag}:` | type | what |
//! |---|---|---|
//! | `_ctl` | shard channel | what nodes send themselves to see whether it arrives |
//! | `_tz`, `_th` | sorted set, hash | timers: when due or when the lease ends; what is held |
//! | `_td` | stream | the latest timers that were given up |
//! | `_i:{incarnation}` | set | the connections that it registered, as `{tenant}/{connection}` |
//! | `_dead` | hash | incarnations that may not register any more, since when |
//!
//! | name after `ps:{n}:` | type | what |
//! |---|---|---|
//! | `nodes`, `stat` | sorted set, hash | incarnations: when their lease ends; what they say of themselves |
//! | `dead`, `unfinished` | sorted set, set | those that are gone, since when; those that left connections |
//!
//! | name after `ps:{artNN}:` | type | what |
//! |---|---|---|
//! | `{digest}` | string | an artefact whose digest begins with the digits `NN` |
//! | `at` | sorted set | when those were stored or needed last |
//!
//! The documented view of who is there, for other programs: see [`view_prefix`].

use xxhash_rust::xxh3::xxh3_64;

use crate::commit::{CommitId, StateKey, TimerKey};
use crate::room::Room;
use crate::tenant::TenantId;

/// Tenants are spread over this many partitions; it never changes.
pub(super) const PARTITIONS: usize = 256;

/// Partition `p`'s hash tag has its slot in `[64 p, 64 p + 63]`, so that an even spread of slots is an
/// even spread of partitions.
#[rustfmt::skip]
const TAGS: [&str; PARTITIONS] = [
    "cv", "14", "6y", "10", "6u", "7o", "6q", "18", "6l", "7v", "6h", "7r", "07", "bu", "03", "7z",
    "4n", "5t", "29", "5p", "25", "ov", "21", "5x", "at", "36", "ap", "32", "4w", "5m", "4s", "5i",
    "1p", "0j", "1t", "0n", "1x", "0b", "dw", "0f", "1a", "ep", "1e", "et", "1i", "0s", "1m", "0w",
    "3c", "2y", "3g", "gv", "3k", "2q", "3o", "2u", "3r", "2h", "3v", "2l", "3z", "43", "fu", "2d",
    "cw", "15", "6x", "11", "6t", "7n", "6p", "19", "6m", "7w", "6i", "7s", "06", "bt", "02", "8z",
    "4o", "5u", "28", "5q", "24", "ow", "20", "5y", "au", "37", "4z", "33", "4v", "5l", "4r", "5h",
    "1q", "0k", "1u", "0o", "1y", "0c", "dv", "0g", "73", "0z", "1d", "eu", "1h", "0r", "1l", "0v",
    "3b", "2x", "3f", "gw", "3j", "2p", "3n", "2t", "3s", "2i", "3w", "2m", "fp", "2a", "ft", "2e",
    "16", "ct", "12", "9z", "7m", "6w", "7i", "6s", "7t", "6n", "7p", "09", "bw", "05", "7x", "01",
    "5v", "4l", "5r", "4h", "ot", "27", "5z", "23", "34", "av", "30", "4y", "5o", "4u", "38", "4q",
    "0h", "1r", "0l", "1v", "63", "1z", "0d", "du", "0y", "1c", "ev", "1g", "0q", "1k", "0u", "1o",
    "gp", "3a", "gt", "3e", "2s", "3i", "2w", "3m", "2j", "3p", "2n", "3t", "2b", "3x", "2f", "fw",
    "17", "cu", "13", "6z", "7l", "6v", "7h", "6r", "7u", "6o", "7q", "08", "bv", "04", "7y", "00",
    "5w", "4m", "5s", "4i", "ou", "26", "oq", "22", "35", "aw", "31", "4x", "5n", "4t", "39", "4p",
    "0i", "1s", "0m", "1w", "0a", "dp", "0e", "dt", "0x", "1b", "ew", "1f", "0p", "1j", "0t", "1n",
    "2z", "53", "gu", "3d", "2r", "3h", "2v", "3l", "2k", "3q", "2o", "3u", "2c", "3y", "2g", "fv",
];

/// Slots of a cluster.
pub(super) const SLOTS: usize = 16_384;

/// CRC16/XMODEM, as Redis Cluster's specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc
}

/// The slot that a key or shard channel is in: that of its hash tag, if it has one.
pub(super) fn slot_of(key: &str) -> usize {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    usize::from(crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes())) % SLOTS
}

/// The slot that everything of a partition is in.
pub(super) fn slot_of_partition(partition: usize) -> usize {
    usize::from(crc16(TAGS[partition % PARTITIONS].as_bytes())) % SLOTS
}

/// The partition that a tenant's keys are in.
pub(super) fn partition_of(tenant: &TenantId) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below 256")]
    let partition = (xxh3_64(tenant.as_str().as_bytes()) % PARTITIONS as u64) as usize;
    partition
}

/// The keys that a partition's tenants share.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartitionKeys(usize);

impl PartitionKeys {
    pub(super) fn of(partition: usize) -> PartitionKeys {
        PartitionKeys(partition % PARTITIONS)
    }

    pub(super) fn prefix(self) -> String {
        format!("ps:{{{}}}:_", TAGS[self.0])
    }

    /// The shard channel that nodes see by whether what is published arrives.
    pub(super) fn control(self) -> String {
        self.prefix() + "ctl"
    }

    pub(super) fn timers_due(self) -> String {
        self.prefix() + "tz"
    }

    pub(super) fn timers_held(self) -> String {
        self.prefix() + "th"
    }

    pub(super) fn timers_dead(self) -> String {
        self.prefix() + "td"
    }

    pub(super) fn dead(self) -> String {
        self.prefix() + "dead"
    }

    pub(super) fn connections_of(self, incarnation: &str) -> String {
        self.prefix() + "i:" + incarnation
    }

    /// What the names of its tenants' keys start with, before the tenant.
    pub(super) fn tenants(self) -> String {
        format!("ps:{{{}}}:", TAGS[self.0])
    }
}

/// One tenant's keys.
#[derive(Debug, Clone)]
pub(super) struct TenantKeys {
    base: String,
    partition: PartitionKeys,
}

impl TenantKeys {
    pub(super) fn of(tenant: &TenantId) -> TenantKeys {
        let partition = partition_of(tenant);
        TenantKeys { base: format!("ps:{{{}}}:{tenant}:", TAGS[partition]), partition: PartitionKeys::of(partition) }
    }

    /// What every key of the tenant starts with.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn partition(&self) -> PartitionKeys {
        self.partition
    }

    pub(super) fn log(&self) -> String {
        self.with("log", "")
    }

    pub(super) fn meta(&self) -> String {
        self.with("meta", "")
    }

    pub(super) fn channel(&self) -> String {
        self.with("ch", "")
    }

    pub(super) fn commit_id(&self, id: &CommitId) -> String {
        self.with("id:", id.as_str())
    }

    pub(super) fn value(&self, key: &StateKey) -> String {
        self.with("k:", key.as_str())
    }

    pub(super) fn index(&self) -> String {
        self.with("keys", "")
    }

    pub(super) fn session(&self, session: &str) -> String {
        self.with("s:", session)
    }

    pub(super) fn rooms_of(&self, connection: &str) -> String {
        self.with("n:", connection)
    }

    pub(super) fn connections(&self) -> String {
        self.with("c", "")
    }

    pub(super) fn room(&self, room: &Room) -> String {
        self.with("r:", room.as_str())
    }

    /// The seats of all users.
    pub(super) fn seats(&self) -> String {
        self.with("u", "")
    }

    pub(super) fn seats_of(&self, subject: &str) -> String {
        self.with("u:", subject)
    }

    pub(super) fn seats_told(&self) -> String {
        self.with("ut", "")
    }

    pub(super) fn bucket(&self, name: &str) -> String {
        self.with("b:", name)
    }

    fn with(&self, kind: &str, name: &str) -> String {
        [&self.base, kind, name].concat()
    }
}

/// The leases of nodes. One slot: who lives is one fact.
pub(super) const NODES: &str = "ps:{n}:nodes";
/// What nodes say of themselves.
pub(super) const STAT: &str = "ps:{n}:stat";
/// Incarnations that are gone for good.
pub(super) const DEAD: &str = "ps:{n}:dead";
/// Those of them that left connections behind.
pub(super) const UNFINISHED: &str = "ps:{n}:unfinished";
/// Until when the connections of nodes that retired keep their places, by incarnation.
pub(super) const KEPT: &str = "ps:{n}:kept";

/// What the documented keys of a tenant start with: `{tenant}:`, or nothing for the default tenant.
/// `presence:online` is the set of users online, `room:{room}:users` that of the users in a room,
/// `user:{user}:socket` the user's latest connection; all of the namespace `/`. A tenant named like the first part of
/// one of these has none: its keys could be the default tenant's.
pub(super) fn view_prefix(tenant: &TenantId, default_tenant: Option<&TenantId>) -> Option<String> {
    match tenant.as_str() {
        name if default_tenant.is_some_and(|default| default.as_str() == name) => Some(String::new()),
        "presence" | "room" | "user" | "ps" => None,
        name => Some(format!("{name}:")),
    }
}

/// A timer in its partition: `{tenant}/{plugin}/{name}`; neither of the first two contains `/`.
pub(super) fn timer_member(tenant: &TenantId, key: &TimerKey) -> String {
    format!("{tenant}/{}/{}", key.plugin, key.name)
}

/// Reads what [`timer_member`] wrote.
pub(super) fn parse_timer_member(member: &str) -> Option<(TenantId, TimerKey)> {
    let mut parts = member.splitn(3, '/');
    let tenant = TenantId::parse(parts.next()?).ok()?;
    Some((tenant, TimerKey { plugin: parts.next()?.into(), name: parts.next()?.into() }))
}

/// Where an artefact is, if `digest` is 64 lower-case hexadecimal digits. Artefacts spread over 256
/// tags of their own.
pub(super) fn artifact(digest: &str) -> Option<String> {
    let valid = digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| format!("ps:{{art{}}}:{digest}", &digest[..2]))
}

/// When the artefacts were stored or needed last whose digests begin like this one.
pub(super) fn artifact_times(digest: &str) -> Option<String> {
    artifact(digest).map(|_| format!("ps:{{art{}}}:at", &digest[..2]))
}

/// The same, of those that begin with a byte.
pub(super) fn artifact_times_of(first: u8) -> String {
    format!("ps:{{art{first:02x}}}:at")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_a_tag_whose_slot_is_in_its_own_sixty_four() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (partition, tag) in TAGS.iter().enumerate() {
            assert_eq!(slot_of_partition(partition) / 64, partition, "{tag}");
        }
    }

    #[test]
    fn a_key_is_in_the_slot_of_its_tag() {
        assert_eq!(slot_of("123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot_of("ps:{123456789}:acme:k:{x}"), slot_of("123456789"));
        assert_eq!(slot_of("{}x"), usize::from(crc16(b"{}x")) % SLOTS);
        assert_eq!(slot_of("{x"), usize::from(crc16(b"{x")) % SLOTS);
    }

    #[test]
    fn a_tenants_keys_share_a_tag_and_are_no_other_tenants() {
        let tenant = TenantId::parse("acme").unwrap();
        let other = TenantId::parse("acme-2").unwrap();
        let (keys, others) = (TenantKeys::of(&tenant), TenantKeys::of(&other));
        let tag = keys.log().split_inclusive('}').next().unwrap().to_owned();
        for key in [keys.log(), keys.channel(), keys.session("a}b:{c}"), keys.partition().timers_due()] {
            assert!(key.starts_with(&tag), "{key}");
        }
        assert!(!keys.base().starts_with(others.base()) && !others.base().starts_with(keys.base()));
    }

    #[test]
    fn a_timer_is_found_by_its_member_whatever_its_name() {
        let tenant = TenantId::parse("acme").unwrap();
        for name in ["", "a", "a/b", "x y\nz"] {
            let key = TimerKey { plugin: "visitor-approvals".into(), name: name.into() };
            assert_eq!(parse_timer_member(&timer_member(&tenant, &key)), Some((tenant.clone(), key)));
        }
        assert_eq!(parse_timer_member("acme/x"), None);
        assert_eq!(parse_timer_member("/x/y"), None);
    }

    #[test]
    fn only_a_digest_names_an_artifact() {
        let digest = "0a".repeat(32);
        assert_eq!(artifact(&digest), Some(format!("ps:{{art0a}}:{digest}")));
        for text in ["", "0a", &"0A".repeat(32), &"zz".repeat(32), &"é".repeat(32)] {
            assert_eq!(artifact(text), None);
        }
    }
}
