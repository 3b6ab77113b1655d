//! The plugins that come with the gateway, built as a tenant's developer builds theirs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use postern::cli::plugin_build::{BuildError, BuildOptions, Built, build, build_reference};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the gateway lies in the repository").to_owned()
}

/// The plugins that come with the gateway, built once per run of the tests.
pub(crate) fn reference() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        build_reference(&root(), &root().join("target/components"), &mut |line| eprintln!("{line}"))
            .unwrap_or_else(|error| panic!("{error}"))
    })
}

#[test]
fn every_plugin_that_comes_with_the_gateway_builds_and_keeps_the_contract() {
    let built = reference();
    for component in &built.components {
        println!("{} {} bytes, imports {:?}", component.name, component.bytes, component.imports);
        assert!(component.path.is_file());
        assert!(component.exports.iter().any(|name| name == "postern:plugin/describe@0.1.0"), "{component:?}");
        assert!(component.imports.iter().all(|name| name.starts_with("postern:plugin/")), "{component:?}");
    }
    let names: Vec<&str> = built.components.iter().map(|component| component.name.as_str()).collect();
    for name in ["room-authorization", "visitor-approvals", "bench", "test-harm"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn a_directory_without_a_plugin_is_named() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    for dir in [empty.path().to_owned(), root()] {
        let options = BuildOptions { dirs: vec![dir.clone()], ..BuildOptions::default() };
        match build(&options, &mut |_| {}) {
            Err(BuildError::NoPlugin { dir: named, .. }) => assert_eq!(named, dir),
            other => panic!("{other:?}"),
        }
    }
}
