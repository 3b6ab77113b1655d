//! How often a tenant may change something with tokens of its own, on this node.
//!
//! Each change leaves a record in the audit log for more than a year, each upload a component in the engine, which all
//! tenants share.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::denied::Denied;
use crate::catalog::{Actor, Scope};
use crate::config::AdminLimits;
use crate::tenant::TenantId;

/// Tenants that are remembered; beyond, those that have all of their allowance again are forgotten. There are no more
/// tokens than this.
const REMEMBERED: usize = 2_000;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Counted {
    /// Uploads, by the hour.
    Uploads,
    /// Other changes, by the minute.
    Changes,
}

/// When who has all of its allowance again.
type Allowances = BTreeMap<(TenantId, Counted), Instant>;

static ALLOWANCES: Mutex<Allowances> = Mutex::new(Allowances::new());

/// Counts one more; operators are not counted.
///
/// # Errors
/// When it is one too many; says when it is not any more.
pub(super) fn count(limits: &AdminLimits, actor: &Actor, what: Counted) -> Result<(), Denied> {
    match &actor.tenant {
        Some(tenant) if actor.scope != Scope::Operator => {
            take(&mut ALLOWANCES.lock(), limits, tenant, what, Instant::now())
        }
        _ => Ok(()),
    }
}

fn take(
    allowances: &mut Allowances,
    limits: &AdminLimits,
    tenant: &TenantId,
    what: Counted,
    now: Instant,
) -> Result<(), Denied> {
    let (number, period, unit, setting): (NonZeroU32, _, _, _) = match what {
        Counted::Uploads => (limits.uploads_per_hour, Duration::from_secs(3_600), "hour", "uploads_per_hour"),
        Counted::Changes => (limits.changes_per_minute, Duration::from_secs(60), "minute", "changes_per_minute"),
    };
    if allowances.len() >= REMEMBERED {
        allowances.retain(|_, whole_at| *whole_at > now);
    }
    let key = (tenant.clone(), what);
    let whole_at = allowances.get(&key).copied().unwrap_or(now).max(now) + period / number.get();
    let Some(wait) = (whole_at - now).checked_sub(period).filter(|wait| !wait.is_zero()) else {
        allowances.insert(key, whole_at);
        return Ok(());
    };
    let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    let text = format!(
        "the tenant {tenant} has made as many calls of this kind on this node as it may: admin.{setting} = {number} in \
         each {unit}; try again in {seconds} s"
    );
    Err(Denied::too_often(text, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hours_worth_at_once_then_evenly_and_each_tenant_for_itself() {
        let tenant = |name| TenantId::parse(name).unwrap();
        let limits = AdminLimits { uploads_per_hour: NonZeroU32::new(30).unwrap(), ..AdminLimits::default() };
        let (mut allowances, now) = (Allowances::new(), Instant::now());
        let mut take = |tenant: &TenantId, what, after_s| {
            take(&mut allowances, &limits, tenant, what, now + Duration::from_secs(after_s))
        };
        for _ in 0..30 {
            take(&tenant("a"), Counted::Uploads, 0).unwrap();
        }
        let refusal = take(&tenant("a"), Counted::Uploads, 0).unwrap_err().answer();
        assert_eq!((refusal.status().as_u16(), &refusal.headers()["retry-after"]), (429, &"121".parse().unwrap()));
        take(&tenant("b"), Counted::Uploads, 0).unwrap();
        take(&tenant("a"), Counted::Changes, 0).unwrap();
        assert!(take(&tenant("a"), Counted::Uploads, 119).is_err());
        take(&tenant("a"), Counted::Uploads, 121).unwrap();
        assert!(take(&tenant("a"), Counted::Uploads, 121).is_err());
    }

    #[test]
    fn operators_are_not_counted() {
        let limits = AdminLimits { changes_per_minute: NonZeroU32::MIN, ..AdminLimits::default() };
        for _ in 0..10 {
            count(&limits, &Actor::gateway("ops"), Counted::Changes).unwrap();
        }
    }
}
