//! The worlds of the contract, as those see them who implement one.

use wit_parser::{Function, InterfaceId, Resolve, Type, TypeDefKind, WorldItem};

use super::contract;

/// The type of `types` that a function answers which failed.
const FAILURE: &str = "failure";

/// A world that a plugin can choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct World {
    /// Its name, for example `handler`.
    pub(super) name: String,
    /// What has to be there.
    pub(super) exports: Vec<Export>,
}

/// An interface that a world exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Export {
    /// Its name without the package, for example `timer-events`.
    pub(super) interface: String,
    pub(super) functions: Vec<String>,
    /// Can all its functions answer that they failed, and how?
    pub(super) can_fail: bool,
}

/// All that export something.
pub(super) fn worlds() -> Result<Vec<World>, String> {
    let (resolve, package) = contract::parse(contract::FILES)?;
    let worlds = resolve.packages[package].worlds.iter().map(|(name, id)| {
        let exports = resolve.worlds[*id].exports.values().filter_map(|item| match item {
            WorldItem::Interface { id, .. } => export(&resolve, *id),
            WorldItem::Function(_) | WorldItem::Type { .. } => None,
        });
        World { name: name.clone(), exports: exports.collect() }
    });
    Ok(worlds.filter(|world| !world.exports.is_empty()).collect())
}

fn export(resolve: &Resolve, id: InterfaceId) -> Option<Export> {
    let interface = &resolve.interfaces[id];
    Some(Export {
        interface: interface.name.clone()?,
        functions: interface.functions.keys().cloned().collect(),
        can_fail: interface.functions.values().all(|function| can_fail(resolve, function)),
    })
}

fn can_fail(resolve: &Resolve, function: &Function) -> bool {
    let Some(Type::Id(id)) = function.result else { return false };
    let TypeDefKind::Result(result) = &resolve.types[id].kind else { return false };
    let Some(Type::Id(error)) = result.err else { return false };
    resolve.types[error].name.as_deref() == Some(FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_says_what_has_to_be_there_and_which_of_it_can_fail() {
        let worlds = worlds().unwrap();
        let exports = |name: &str| {
            let world = worlds.iter().find(|world| world.name == name).unwrap();
            let exports = world.exports.iter();
            exports.map(|it| format!("{} {} {}", it.interface, it.functions.join(","), it.can_fail)).collect::<Vec<_>>()
        };
        assert_eq!(exports("timed-handler"), ["describe info false", "events handle true", "timer-events fire true"]);
        assert_eq!(exports("authorizer"), ["describe info false", "authorization connect,join false"]);
        assert!(!worlds.iter().any(|world| world.name == "platform"), "a plugin that does nothing is none");
    }
}
