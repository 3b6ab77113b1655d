//! The `[admin]` of the gateway: what tenants may do over the admin API.

use std::num::NonZeroU32;

use super::source::{Report, Section};

/// What a tenant may do over the admin API with tokens of its own; operators are not bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminLimits {
    /// Changes of one tenant a minute, on this node, uploads aside: `changes_per_minute`; 1 to 100,000, default 120.
    pub changes_per_minute: NonZeroU32,
    /// Uploads of one tenant an hour, on this node: `uploads_per_hour`; 1 to 100,000, default 30.
    pub uploads_per_hour: NonZeroU32,
    /// Tokens that are not good, of one address (IPv6: of one /64) a minute, on this node: `wrong_tokens_per_minute`; 1 to
    /// 100,000, default 30. Holds for whoever comes without a good token, behind a proxy for all of them together.
    pub wrong_tokens_per_minute: NonZeroU32,
    /// The components of all versions of one tenant's plugins together, in bytes, whoever uploads them:
    /// `component_bytes_per_tenant`; 1 MiB to 1 TiB, default 512 MiB.
    pub component_bytes_per_tenant: u64,
}

impl Default for AdminLimits {
    fn default() -> AdminLimits {
        AdminLimits {
            changes_per_minute: const { NonZeroU32::new(120).unwrap() },
            uploads_per_hour: const { NonZeroU32::new(30).unwrap() },
            wrong_tokens_per_minute: const { NonZeroU32::new(30).unwrap() },
            component_bytes_per_tenant: 512 << 20,
        }
    }
}

pub(super) fn admin(section: Option<Section<'_>>, report: &mut Report) -> AdminLimits {
    let mut limits = AdminLimits::default();
    if let Some(mut given) = section {
        for (key, rate) in [
            ("changes_per_minute", &mut limits.changes_per_minute),
            ("uploads_per_hour", &mut limits.uploads_per_hour),
            ("wrong_tokens_per_minute", &mut limits.wrong_tokens_per_minute),
        ] {
            let mut number = rate.get();
            given.integer(key, 1..=100_000, &mut number, report);
            *rate = NonZeroU32::new(number).unwrap_or(*rate);
        }
        let bytes = 1 << 20..=1 << 40;
        given.integer("component_bytes_per_tenant", bytes, &mut limits.component_bytes_per_tenant, report);
        given.finish(report);
    }
    limits
}
