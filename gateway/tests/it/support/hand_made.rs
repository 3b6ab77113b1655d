//! Components made by hand, instruction by instruction: what no compiler would make.

use postern::cli::plugin_build::contract;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// What happens in the functions of a component that exports `describe`, `events` and `timer-events`: WebAssembly
/// text.
pub(crate) struct HandMade {
    /// Before everything else, in the core module's start function.
    pub(crate) start: &'static str,
    /// Before `describe.info` answers.
    pub(crate) info: &'static str,
    /// Before `timer-events.fire` answers.
    pub(crate) fire: &'static str,
    /// Before `events.handle` answers.
    pub(crate) handle: &'static str,
}

/// A function body that never ends.
pub(crate) const ENDLESS: &str = "(loop (br 0))";

impl HandMade {
    /// The component.
    pub(crate) fn component(&self) -> Vec<u8> {
        let info = r#"{"name":"hand-made","version":"1"}"#;
        let HandMade { start, info: before_info, fire, handle } = self;
        // What `info` answers is at 1024: where its text is, and how long. What the others answer is at 2048: all right.
        let text = format!(
            r#"(module
                (memory (export "memory") 1)
                (table $table 1 funcref)
                (func $run {start})
                (start $run)
                (func $info (export "postern:plugin/describe@0.1.0#info") (result i32) {before_info} (i32.const 1024))
                (func (export "postern:plugin/timer-events@0.1.0#fire") (param i32 i32 i64 i32 i32) (result i32)
                    {fire} (i32.const 2048))
                (func (export "postern:plugin/events@0.1.0#handle") (param i32) (result i32) {handle} (i32.const 2048))
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
                (data (i32.const 1024) "\10\04\00\00\{length:02x}\00\00\00")
                (data (i32.const 1040) "{escaped}")
            )"#,
            length = info.len(),
            escaped = info.replace('"', "\\\"")
        );
        let mut module = wat::parse_str(text).expect("the text is WebAssembly");
        let (mut resolve, _) = contract::parse(contract::FILES).expect("the contract is readable");
        let world = "package postern:hand-made; world hand-made { export postern:plugin/describe@0.1.0; \
                     export postern:plugin/events@0.1.0; export postern:plugin/timer-events@0.1.0; }";
        let package = resolve.push_str("hand-made.wit", world).expect("the world is one");
        let world = resolve.packages[package].worlds["hand-made"];
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("it can be named");
        let encoder = ComponentEncoder::default().validate(true).module(&module);
        encoder.expect("it fits the world").encode().expect("it can be made a component")
    }
}
