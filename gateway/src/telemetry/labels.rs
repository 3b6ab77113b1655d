//! Labels that name tenants and plugins: as many as the settings allow, the others together under `other`.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

/// The label of those that have none of their own.
pub const OTHER: &str = "other";

/// Plugins with a label of their own, for each tenant that may have one; any tenant may have more or fewer.
const PLUGINS_EACH: usize = 5;

/// Plugins of one tenant with a label of their own: whoever makes and deletes plugins uses up nobody else's.
const PLUGINS_OF_TENANT_MAX: usize = 32;

/// Tenants with a label of their own, where the settings do not say.
pub const TENANTS_MAX_DEFAULT: usize = 200;

static TENANTS_MAX: AtomicUsize = AtomicUsize::new(TENANTS_MAX_DEFAULT);
static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

/// Who has a label, until the process ends: metrics do not forget, either.
#[derive(Debug, Default)]
struct Known {
    tenants: HashMap<String, HashSet<String>>,
    plugins: usize,
}

impl Known {
    fn of_tenant(&mut self, tenant: &str, tenants_max: usize) -> bool {
        if self.tenants.contains_key(tenant) {
            return true;
        }
        let room = self.tenants.len() < tenants_max;
        if room {
            self.tenants.insert(tenant.into(), HashSet::new());
        }
        room
    }

    fn of_plugin(&mut self, tenant: &str, plugin: &str, tenants_max: usize) -> [bool; 2] {
        if !self.of_tenant(tenant, tenants_max) {
            return [false, false];
        }
        let Some(plugins) = self.tenants.get_mut(tenant) else { return [false, false] };
        if plugins.contains(plugin) {
            return [true, true];
        }
        let room = plugins.len() < PLUGINS_OF_TENANT_MAX && self.plugins < tenants_max.saturating_mul(PLUGINS_EACH);
        if room {
            plugins.insert(plugin.into());
            self.plugins += 1;
        }
        [true, room]
    }
}

/// How many tenants have a label of their own (setting `metrics_tenants_max`); those that have one keep it.
pub fn allow(tenants_max: usize) {
    TENANTS_MAX.store(tenants_max, Ordering::Relaxed);
}

/// The label of a tenant.
pub fn of_tenant(tenant: &str) -> String {
    let own = KNOWN.lock().get_or_insert_default().of_tenant(tenant, TENANTS_MAX.load(Ordering::Relaxed));
    if own { tenant } else { OTHER }.into()
}

/// The labels of a tenant and of its plugin.
pub fn of_plugin(tenant: &str, plugin: &str) -> (String, String) {
    let max = TENANTS_MAX.load(Ordering::Relaxed);
    let own = KNOWN.lock().get_or_insert_default().of_plugin(tenant, plugin, max);
    let [tenant, plugin] = [(tenant, own[0]), (plugin, own[1])].map(|(name, own)| if own { name } else { OTHER });
    (tenant.into(), plugin.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_tenants_and_plugins_have_one_label_together() {
        let mut known = Known::default();
        assert!(known.of_tenant("a", 2));
        assert_eq!(known.of_plugin("b", "p0", 2), [true, true]);
        assert!(!known.of_tenant("c", 2));
        assert_eq!(known.of_plugin("c", "p", 2), [false, false]);
        for n in 1..2 * PLUGINS_EACH {
            assert_eq!(known.of_plugin("b", &format!("p{n}"), 2), [true, true]);
        }
        assert_eq!(known.of_plugin("a", "p", 2), [true, false]);
        assert_eq!(known.of_plugin("b", "p0", 2), [true, true], "who has a label keeps it");
    }

    #[test]
    fn one_tenants_plugins_leave_labels_for_those_of_others() {
        let mut known = Known::default();
        let own = |known: &mut Known, tenant: &str, n: usize| known.of_plugin(tenant, &format!("p{n}"), 200)[1];
        assert_eq!((0..2_000).filter(|&n| own(&mut known, "a", n)).count(), PLUGINS_OF_TENANT_MAX);
        assert!(own(&mut known, "b", 0));
    }
}
