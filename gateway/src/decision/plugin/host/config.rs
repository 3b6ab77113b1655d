//! `config`: the settings that the tenant gave the plugin.

use super::Call;

pub(in super::super) fn get(call: &Call, name: &str) -> Option<String> {
    if call.source.hook.may_read() { call.settings.get(name).cloned() } else { None }
}
