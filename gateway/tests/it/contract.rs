//! The contract grows without breaking a component that exists: `wit/` is held against the
//! last release, world by world.
//!
//! `wit_component::semver_check` decides: a component of the old world must fit where one of the
//! new world is expected. So a world may gain imports and functions in them, and lose exports;
//! no type may change.

use postern::cli::plugin_build::contract::{self, EVERYTHING};
use wit_parser::{PackageId, Resolve, WorldId, WorldKey};

/// The last release: a copy of `wit/` as it was.
const RELEASED: [(&str, &str); 4] = [
    ("types.wit", include_str!("../wit-released/0.1.0/types.wit")),
    ("imports.wit", include_str!("../wit-released/0.1.0/imports.wit")),
    ("exports.wit", include_str!("../wit-released/0.1.0/exports.wit")),
    ("world.wit", include_str!("../wit-released/0.1.0/world.wit")),
];

/// A version of the contract.
struct Version {
    resolve: Resolve,
    package: PackageId,
}

impl Version {
    /// Reads the contract as version `number`: to stand beside another in one `Resolve` it needs its own.
    fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, number: &str) -> Version {
        let files: Vec<_> = files
            .into_iter()
            .map(|(name, text)| {
                (name, text.replacen("package postern:plugin@0.1.0;", &format!("package postern:plugin@{number};"), 1))
            })
            .collect();
        let parsed = contract::parse(files.iter().map(|(name, text)| (*name, text.as_str())));
        let (resolve, package) = parsed.unwrap_or_else(|error| panic!("{error}"));
        Version { resolve, package }
    }

    fn released() -> Version {
        Version::read(RELEASED, "0.0.1")
    }

    /// Those that components are built for: `platform` is only a part of them.
    fn worlds(&self) -> Vec<String> {
        self.resolve.packages[self.package].worlds.keys().filter(|name| *name != "platform").cloned().collect()
    }

    /// `everything` is what the gateway knows, and no component exports all of it: that it
    /// exports more than before breaks nobody.
    fn forget_new_exports_of_everything(&mut self, released: &Version) {
        let old: Vec<String> = released.exports_of_everything().into_iter().map(|(_, name)| name).collect();
        let world = self.resolve.packages[self.package].worlds[EVERYTHING];
        for (key, name) in self.exports_of_everything() {
            if !old.contains(&name) {
                self.resolve.worlds[world].exports.shift_remove(&key);
            }
        }
    }

    /// With their names, the version left out.
    fn exports_of_everything(&self) -> Vec<(WorldKey, String)> {
        let world = self.resolve.packages[self.package].worlds[EVERYTHING];
        let name = |key| self.resolve.name_world_key(key).split('@').next().unwrap_or_default().to_owned();
        self.resolve.worlds[world].exports.keys().map(|key| (key.clone(), name(key))).collect()
    }
}

/// The released worlds that are not there any more, or in which a released component would
/// not fit.
fn broken_worlds(released: &Version, mut now: Version) -> Vec<String> {
    now.forget_new_exports_of_everything(released);
    let mut both = released.resolve.clone();
    let moved = both.merge(now.resolve).expect("two versions stand beside each other");
    let new_package = moved.packages[now.package.index()];
    let world =
        |package: PackageId, name: &str| -> Option<WorldId> { both.packages[package].worlds.get(name).copied() };
    let breaks = |name: &String| {
        let old = world(released.package, name).expect("a released world");
        world(new_package, name).is_none_or(|new| wit_component::semver_check(both.clone(), old, new).is_err())
    };
    released.worlds().into_iter().filter(breaks).collect()
}

/// The released contract with one piece of its text replaced.
fn changed(from: &str, to: &str) -> Version {
    let found = RELEASED.iter().map(|(_, text)| text.matches(from).count()).sum::<usize>();
    assert_eq!(found, 1, "{from:?} must stand once in the contract");
    let files = RELEASED.map(|(name, text)| (name, text.replace(from, to)));
    Version::read(files.iter().map(|(name, text)| (*name, text.as_str())), "0.1.0")
}

#[test]
fn a_component_of_the_last_release_still_loads() {
    let broken = broken_worlds(&Version::released(), Version::read(contract::FILES, "0.1.0"));
    assert!(broken.is_empty(), "wit/ breaks components that were built for these worlds: {broken:?}");
}

#[test]
fn the_contract_has_the_version_that_the_build_checks() {
    let (resolve, package) = contract::parse(contract::FILES).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(resolve.packages[package].name.to_string(), contract::PACKAGE);
}

#[test]
fn changes_that_break_components_are_found() {
    // What a world does not use of `types` cannot break its components.
    let all = ["authorizer", "router", "handler", "timed-handler", "full-handler", EVERYTHING];
    let handlers = ["handler", "timed-handler", "full-handler", EVERYTHING];
    for (what, from, to, broken) in [
        (
            "a field added to `client`",
            "namespace: string,\n  }",
            "namespace: string,\n    address: string,\n  }",
            &all[..],
        ),
        ("a case added to `failure`", "fatal(string),", "fatal(string),\n    later(millis),", &handlers[..]),
        ("a case added to `host-error`", "quota(string),", "quota(string),\n    busy,", &all[..]),
        ("a parameter added", "reply: func(data: payload)", "reply: func(data: payload, last: bool)", &all[..]),
        ("an import taken away", "  import presence;\n", "", &all[..]),
        ("a function added to an export", "handle: func(", "ready: func() -> bool;\n  handle: func(", &handlers[..]),
        ("a world taken away", "world router {", "world way {", &["router"][..]),
    ] {
        let mut found = broken_worlds(&Version::released(), changed(from, to));
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
        let broken = broken_worlds(&Version::released(), changed(from, to));
        assert!(broken.is_empty(), "{what}: {broken:?}");
    }
}
