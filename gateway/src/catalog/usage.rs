//! The accounts: what each plugin used, by the day.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::store::Tries;
use super::{Catalog, CatalogError, PAGE_MAX, keys};
use crate::commit::{CommitId, Millis, StateKey, now_ms};
use crate::tenant::TenantId;

/// How long accounts are kept, in milliseconds: 400 days.
pub const USAGE_KEPT_MS: Millis = 400 * 24 * 3_600_000;

/// The most numbers that are added at once.
pub const USAGE_DELTAS_MAX: usize = 256;

/// The most connections of a tenant that were open at once, on all nodes together: of these the largest counts.
pub const CONNECTIONS_PEAK: &str = "connections-peak";

/// The most days that are asked for at once.
const DAYS_MAX: usize = 400;

/// The longest name of a plugin or of what was used, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A day, in milliseconds.
const DAY_MS: Millis = 86_400_000;

/// What was used since the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageDelta {
    /// By whose plugin.
    pub tenant: TenantId,
    /// Which; a name such as `gateway` where it is no plugin's.
    pub plugin: String,
    /// What, for example `calls`, `cpu_us`: 1 to 64 of `a-z`, `0-9`, `-` and `_`.
    pub what: String,
    /// How much.
    pub number: i64,
    /// How it comes together with what is there.
    pub gathered: Gathered,
}

/// How numbers of a day come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gathered {
    /// They are added.
    Sum,
    /// The largest counts.
    Most,
}

impl Gathered {
    fn with(self, one: i64, other: i64) -> i64 {
        match self {
            Gathered::Sum => one.saturating_add(other),
            Gathered::Most => one.max(other),
        }
    }
}

/// What one plugin used on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// `YYYY-MM-DD`, UTC.
    pub day: String,
    /// Which plugin.
    pub plugin: String,
    /// How much of what.
    pub used: BTreeMap<String, i64>,
}

/// The day of a moment, `YYYY-MM-DD` in UTC.
pub fn day_of(at_ms: Millis) -> String {
    // Days since 1970-01-01 to a date of the Gregorian calendar, by eras of 400 years that begin in March.
    let days = at_ms / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

impl Catalog {
    /// Adds to the accounts of a day. The same `id` again, within a minute, adds nothing: so a call that failed is
    /// repeated with the id that it had, and its numbers are counted once.
    ///
    /// # Errors
    /// More than [`USAGE_DELTAS_MAX`] numbers, names that cannot be, or the engine's.
    pub async fn add_usage(&self, id: &CommitId, day: &str, deltas: &[UsageDelta]) -> Result<(), CatalogError> {
        if deltas.len() > USAGE_DELTAS_MAX {
            let (what, value, limit) = ("numbers added to the accounts at once", deltas.len(), USAGE_DELTAS_MAX);
            return Err(CatalogError::Limit { what, value, limit });
        }
        let named = |delta: &&UsageDelta| is_key(&delta.plugin) && is_key(&delta.what);
        if let Some(delta) = deltas.iter().find(|delta| !named(delta)) {
            return Err(CatalogError::Invalid(vec![format!("{:?} or {:?} is no name", delta.plugin, delta.what)]));
        }
        // One write a key.
        let mut numbers: BTreeMap<StateKey, (Gathered, i64)> = BTreeMap::new();
        for delta in deltas {
            let key = keys::usage(&delta.tenant, day, &delta.plugin, &delta.what);
            let (_, number) = numbers.entry(key).or_insert((delta.gathered, 0));
            *number = delta.gathered.with(*number, delta.number);
        }
        let keys: Vec<_> = numbers.keys().cloned().collect();
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let mut draft = self.draft_with(id.clone());
            for (key, found) in self.read(&keys).await? {
                let Some((gathered, number)) = numbers.get(&key).copied() else { continue };
                match (found, gathered) {
                    (Some(_), Gathered::Sum) => draft.add(key, number),
                    (Some(found), Gathered::Most) if as_number(&found.value) >= number => {}
                    // An addition alone would give it no end.
                    (found, _) => {
                        draft.rests_on(key.clone(), found.map(|found| found.version));
                        draft.put_bytes(key, number.to_string().into(), Some(USAGE_KEPT_MS));
                    }
                }
            }
            if draft.commit().await? {
                return Ok(());
            }
        }
    }

    /// Remembers what others have used under a tenant's name on the day on which it is made anew: right after that.
    ///
    /// # Errors
    /// The engine's.
    pub async fn begin_accounts(&self, tenant: &TenantId) -> Result<(), CatalogError> {
        let today = day_of(now_ms());
        let former = self.usage(tenant, &today, &today).await?;
        let mut draft = self.draft();
        match former.is_empty() {
            true => draft.delete(keys::usage_of_former(tenant)),
            false => draft.put(keys::usage_of_former(tenant), &former, Some(USAGE_KEPT_MS))?,
        }
        draft.commit().await.map(drop)
    }

    /// As [`usage`](Catalog::usage), without what others used who had the tenant's name before: to the tenth of a minute
    /// in which nodes send it.
    pub async fn usage_of_owner(&self, tenant: &TenantId, from: &str, to: &str) -> Result<Vec<UsageRow>, CatalogError> {
        let created = day_of(self.created_ms(Some(tenant)).await?.unwrap_or_default());
        let mut rows = self.usage(tenant, from, to).await?;
        rows.retain(|row| row.day >= created);
        let former = self.read(&[keys::usage_of_former(tenant)]).await?.pop().and_then(|(_, found)| found);
        let former: Vec<UsageRow> = match former {
            Some(found) => serde_json::from_slice(&found.value).map_err(|error| CatalogError::Damaged {
                key: keys::usage_of_former(tenant).as_str().to_owned(),
                why: error.to_string(),
            })?,
            None => Vec::new(),
        };
        for row in &mut rows {
            let before = former.iter().find(|before| (&before.day, &before.plugin) == (&row.day, &row.plugin));
            for (what, number) in before.iter().flat_map(|before| &before.used) {
                let Some(all) = row.used.get_mut(what) else { continue };
                *all = match what.as_str() {
                    // Whose the largest was cannot be told where it is not larger than theirs.
                    CONNECTIONS_PEAK if *all > *number => *all,
                    CONNECTIONS_PEAK => 0,
                    _ => all.saturating_sub(*number),
                };
            }
            row.used.retain(|_, number| *number > 0);
        }
        rows.retain(|row| !row.used.is_empty());
        Ok(rows)
    }

    /// A tenant's accounts from one day to another, both included (`YYYY-MM-DD`), by day and plugin.
    pub async fn usage(&self, tenant: &TenantId, from: &str, to: &str) -> Result<Vec<UsageRow>, CatalogError> {
        for day in [from, to] {
            if !is_day(day) {
                return Err(CatalogError::Invalid(vec![format!("{day:?} is no day: YYYY-MM-DD")]));
            }
        }
        let prefix = keys::usage_of(tenant);
        let mut after = format!("{prefix}{from}");
        let mut rows: BTreeMap<(String, String), BTreeMap<String, i64>> = BTreeMap::new();
        let mut days = std::collections::BTreeSet::new();
        loop {
            let page = self.list(&prefix, Some(&after), PAGE_MAX).await?;
            let last = page.keys.last().map(|key| key.as_str().to_owned());
            for (key, found) in self.read(&page.keys).await? {
                let parts: Vec<_> = key.as_str().strip_prefix(&*prefix).unwrap_or_default().split('/').collect();
                let ([day, plugin, what], Some(found)) = (&*parts, found) else { continue };
                if *day > to {
                    continue;
                }
                days.insert((*day).to_owned());
                let number = as_number(&found.value);
                rows.entry(((*day).into(), (*plugin).into())).or_default().insert((*what).into(), number);
            }
            if days.len() > DAYS_MAX {
                return Err(CatalogError::Limit { what: "days", value: days.len(), limit: DAYS_MAX });
            }
            match last.filter(|last| page.more && *last <= format!("{prefix}{to}0")) {
                Some(last) => after = last,
                None => break,
            }
        }
        Ok(rows.into_iter().map(|((day, plugin), used)| UsageRow { day, plugin, used }).collect())
    }
}

fn as_number(value: &[u8]) -> i64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn is_key(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn is_day(text: &str) -> bool {
    let mut parts = text.split('-');
    let [year, month, day] = [parts.next(), parts.next(), parts.next()];
    let number = |part: Option<&str>, digits: usize| {
        part.filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|part| part.parse::<u32>().ok())
    };
    number(year, 4).is_some()
        && number(month, 2).is_some_and(|month| (1..=12).contains(&month))
        && number(day, 2).is_some_and(|day| (1..=31).contains(&day))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (at_ms, day) in [
            (0, "1970-01-01"),
            (951_782_399_999, "2000-02-28"),
            (951_782_400_000, "2000-02-29"),
            (1_709_251_199_999, "2024-02-29"),
            (1_735_689_599_999, "2024-12-31"),
            (4_107_542_400_000, "2100-03-01"),
        ] {
            assert_eq!(day_of(at_ms), day);
        }
        assert!(is_day("2026-11-22") && !is_day("2026-13-01") && !is_day("2026-1-01") && !is_day("22.11.2026"));
    }
}
