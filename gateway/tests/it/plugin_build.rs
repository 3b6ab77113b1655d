//! The plugins that come with the gateway, built as a tenant's developer builds theirs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use postern::cli::plugin_build::headroom::with_headroom;
use postern::cli::plugin_build::{BuildError, BuildOptions, Built, build, build_reference};
use proptest::prelude::*;
use wasm_encoder::{
    CodeSection, ConstExpr, ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType,
    Instruction, MemArg, MemorySection, MemoryType, Module, TypeSection, ValType,
};

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

#[test]
fn what_the_compiler_says_of_a_mistake_is_told_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let manifest = "[package]\nname = \"broken\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[workspace]\n";
    std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("src/lib.rs"), "pub fn door() -> u8 { bell }\n").unwrap();
    let options = BuildOptions { dirs: vec![dir.path().to_owned()], ..BuildOptions::default() };
    let mut told = String::new();
    let error = build(&options, &mut |line| told.extend([line, "\n"])).unwrap_err().to_string();
    told.push_str(&error);
    assert_eq!(told.matches("cannot find value `bell`").count(), 1, "{told}");
    assert!(error.contains("cargo build failed") && error.contains("stands above"), "{error}");
}

/// A module whose exports `grow`, `size` and `peek` are the instructions of that name.
fn memory_module(pages: u64, maximum: Option<u64>) -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32], [ValType::I32]);
    let (mut functions, mut exports, mut code) = (FunctionSection::new(), ExportSection::new(), CodeSection::new());
    let load = Instruction::I32Load(MemArg { offset: 0, align: 2, memory_index: 0 });
    let bodies = [
        ("grow", vec![Instruction::LocalGet(0), Instruction::MemoryGrow(0)]),
        ("size", vec![Instruction::MemorySize(0)]),
        ("peek", vec![Instruction::LocalGet(0), load]),
    ];
    for (index, (name, body)) in (0..).zip(bodies) {
        functions.function(0);
        exports.export(name, ExportKind::Func, index);
        let mut function = Function::new([]);
        body.iter().chain([&Instruction::End]).for_each(|instruction| {
            function.instruction(instruction);
        });
        code.function(&function);
    }
    let mut memories = MemorySection::new();
    memories.memory(MemoryType { minimum: pages, maximum, memory64: false, shared: false, page_size_log2: None });
    let mut globals = GlobalSection::new();
    globals.global(GlobalType { val_type: ValType::I32, mutable: true, shared: false }, &ConstExpr::i32_const(0));
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&memories).section(&globals).section(&exports).section(&code);
    module.finish()
}

/// What a module answers to a number of growths: each answer, the size after it, and whether the new end can be read.
fn grown(engine: &wasmtime::Engine, module: &[u8], deltas: &[i32]) -> Vec<(i32, i32, Option<i32>)> {
    let module = wasmtime::Module::new(engine, module).expect("the module is valid");
    let mut store = wasmtime::Store::new(engine, ());
    let instance = wasmtime::Instance::new(&mut store, &module, &[]).expect("the module has no imports");
    let [grow, size, peek] = ["grow", "size", "peek"]
        .map(|name| instance.get_typed_func::<i32, i32>(&mut store, name).expect("the module exports it"));
    let answer = |delta: &i32| {
        let answer = grow.call(&mut store, *delta).expect("growing does not trap");
        let pages = size.call(&mut store, 0).expect("asking does not trap");
        let last = peek.call(&mut store, pages.wrapping_mul(65_536).wrapping_sub(4)).ok();
        (answer, pages, last)
    };
    deltas.iter().map(answer).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_module_with_headroom_sees_the_memory_that_it_would_see_without(
        pages in 1_u64..20,
        more in proptest::option::of(0_u64..40),
        deltas in proptest::collection::vec(prop_oneof![0_i32..12, Just(-1), Just(i32::MIN), Just(70_000)], 1..12),
    ) {
        let original = memory_module(pages, more.map(|more| pages + more));
        let larger = with_headroom(&original);
        // Where the maximum leaves no room for it there is none.
        prop_assert_eq!(larger == original, more.is_some_and(|more| more < 4));
        let engine = wasmtime::Engine::default();
        prop_assert_eq!(grown(&engine, &larger, &deltas), grown(&engine, &original, &deltas));
    }
}

#[test]
fn what_is_no_module_gets_no_headroom() {
    for bytes in [&b"hello"[..], b"", b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"] {
        assert_eq!(with_headroom(bytes), bytes);
    }
}
