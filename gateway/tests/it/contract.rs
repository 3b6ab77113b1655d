//! The contract grows without breaking a component that exists: `wit/` is held against the
//! last release, world by world.
//!
//! What decides are the subtype rules of the component model, as in
//! `wit_component::semver_check`: a component of the old world must fit where one of the new
//! world is expected. So a world may gain imports and functions in them, and lose exports;
//! no type may change.

use postern::cli::plugin_build::contract::{self, EVERYTHING};
use wasmparser::Validator;
use wasmparser::component_types::{ComponentAnyTypeId, ComponentEntityType};
use wasmparser::types::Types;
use wit_parser::{PackageId, Resolve};

/// The last release: a copy of `wit/` as it was.
const RELEASED: [(&str, &str); 4] = [
    ("types.wit", include_str!("../wit-released/0.1.0/types.wit")),
    ("imports.wit", include_str!("../wit-released/0.1.0/imports.wit")),
    ("exports.wit", include_str!("../wit-released/0.1.0/exports.wit")),
    ("world.wit", include_str!("../wit-released/0.1.0/world.wit")),
];

/// A version of the contract, without its number: names are compared, not releases.
struct Version {
    resolve: Resolve,
    package: PackageId,
}

impl Version {
    fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Version {
        let (mut resolve, package) = contract::parse(files).unwrap_or_else(|error| panic!("{error}"));
        resolve.packages[package].name.version = None;
        Version { resolve, package }
    }

    fn worlds(&self) -> Vec<String> {
        self.resolve.packages[self.package].worlds.keys().cloned().collect()
    }

    /// `everything` is what the gateway knows, and no component exports all of it: that it
    /// exports more than before breaks nobody.
    fn forget_new_exports_of_everything(&mut self, released: &Version) {
        let old = released.resolve.packages[released.package].worlds[EVERYTHING];
        let old = released.resolve.worlds[old].exports.keys().map(|key| released.resolve.name_world_key(key));
        let old: Vec<String> = old.collect();
        let new = self.resolve.packages[self.package].worlds[EVERYTHING];
        let names = self.resolve.worlds[new].exports.keys().map(|key| (key.clone(), self.resolve.name_world_key(key)));
        let added: Vec<_> = names.filter(|(_, name)| !old.contains(name)).map(|(key, _)| key).collect();
        for key in added {
            self.resolve.worlds[new].exports.shift_remove(&key);
        }
    }

    fn encoded(&self, validator: &mut Validator) -> Types {
        let bytes = wit_component::encode(&self.resolve, self.package).expect("a valid package can be encoded");
        validator.reset();
        validator.validate_all(&bytes).expect("what was encoded is valid")
    }
}

/// The type of the components of a world.
fn world_type(types: &Types, world: &str) -> Option<ComponentEntityType> {
    let types = types.as_ref();
    let ComponentEntityType::Type { created: ComponentAnyTypeId::Component(wrapper), .. } =
        types.component_item_for_export(world)?.ty
    else {
        return None;
    };
    types[wrapper].exports.values().next().map(|item| item.ty)
}

/// The released worlds that are not there any more, or in which a released component would
/// not fit.
fn broken_worlds(released: &Version, mut now: Version) -> Vec<String> {
    now.forget_new_exports_of_everything(released);
    let mut validator = Validator::new();
    let (old_types, new_types) = (released.encoded(&mut validator), now.encoded(&mut validator));
    // One validator numbers the types of both; the later list has the earlier one's as well.
    let all = new_types.as_ref();
    let breaks = |world: &String| {
        let old = world_type(&old_types, world).expect("every released world is encoded");
        let fits = |new| ComponentEntityType::is_subtype_of(&old, all, &new, all);
        !world_type(&new_types, world).is_some_and(fits)
    };
    released.worlds().into_iter().filter(breaks).collect()
}

/// The released contract with one piece of its text replaced.
fn changed(from: &str, to: &str) -> Version {
    let found = RELEASED.iter().map(|(_, text)| text.matches(from).count()).sum::<usize>();
    assert_eq!(found, 1, "{from:?} must stand once in the contract");
    let files = RELEASED.map(|(name, text)| (name, text.replace(from, to)));
    Version::read(files.iter().map(|(name, text)| (*name, text.as_str())))
}

#[test]
fn a_component_of_the_last_release_still_loads() {
    let broken = broken_worlds(&Version::read(RELEASED), Version::read(contract::FILES));
    assert!(broken.is_empty(), "wit/ breaks components that were built for these worlds: {broken:?}");
}

#[test]
fn the_contract_has_the_version_that_the_build_checks() {
    let (resolve, package) = contract::parse(contract::FILES).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(resolve.packages[package].name.to_string(), contract::PACKAGE);
}

#[test]
fn changes_that_break_components_are_found() {
    // Every world imports all of `types`: no shape in it can change without breaking all.
    let all = ["platform", "authorizer", "router", "handler", "timed-handler", "full-handler", EVERYTHING];
    let handlers = ["handler", "timed-handler", "full-handler", EVERYTHING];
    for (what, from, to, broken) in [
        (
            "a field added to `client`",
            "namespace: string,\n  }",
            "namespace: string,\n    address: string,\n  }",
            &all[..],
        ),
        ("a case added to `failure`", "fatal(string),", "fatal(string),\n    later(millis),", &all[..]),
        ("a case added to `host-error`", "quota(string),", "quota(string),\n    busy,", &all[..]),
        ("a parameter added", "reply: func(data: payload)", "reply: func(data: payload, last: bool)", &all[..]),
        ("an import taken away", "  import presence;\n", "", &all[..]),
        ("a function added to an export", "handle: func(", "ready: func() -> bool;\n  handle: func(", &handlers[..]),
        ("a world taken away", "world router {", "world way {", &["router"][..]),
    ] {
        let mut found = broken_worlds(&Version::read(RELEASED), changed(from, to));
        let mut expected: Vec<&str> = broken.to_vec();
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn changes_that_break_nobody_are_let_through() {
    for (what, from, to) in [
        ("a new function to import", "id: func() -> string;", "id: func() -> string;\n  trace: func() -> string;"),
        (
            "a new interface to import",
            "world platform {",
            "interface more { f: func(); }\nworld platform {\n  import more;",
        ),
        (
            "a new interface to export",
            "world everything {",
            "interface more { f: func(); }\nworld everything {\n  export more;",
        ),
        ("a new world", "world router {", "world more { include platform; }\nworld router {"),
        ("other words", "/// May this client do this?", "/// May it?"),
    ] {
        let broken = broken_worlds(&Version::read(RELEASED), changed(from, to));
        assert!(broken.is_empty(), "{what}: {broken:?}");
    }
}
