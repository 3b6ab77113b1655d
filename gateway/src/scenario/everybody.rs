//! The authorizer of scenarios that name none: everybody comes in, joins every room and may do everything there.
//!
//! It is a component as any other, so that nothing in the gateway knows of it.

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataSection, ExportKind, ExportSection, Function, FunctionSection, Instruction,
    MemorySection, MemoryType, Module, TypeSection, ValType,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

use crate::decision::plugin::contract;

/// What it says about itself.
const INFO: &str = r#"{"name":"everybody","version":"1.0.0"}"#;

/// The world of the contract that it is made for.
const WORLD: &str = "authorizer";

/// Where its answers lie in its memory: those of `info`, `connect` and `join`.
const ANSWERS: [i32; 3] = [16, 64, 128];

/// Where the text of `info` lies.
const TEXT: i32 = 256;

/// Where the arguments of a call go; nobody reads them.
const ARGUMENTS: i32 = 1_024;

/// The component.
///
/// # Errors
/// It does not fit the contract any more.
pub(super) fn component() -> Result<Vec<u8>, String> {
    let mut module = core();
    let (resolve, package) = contract::parse(contract::FILES)?;
    let world = resolve.packages[package].worlds.get(WORLD).copied();
    let world = world.ok_or_else(|| format!("the contract has no world `{WORLD}`"))?;
    let failed = |error: &dyn std::fmt::Display| format!("the authorizer for everybody: {error:#}");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).map_err(|error| failed(&error))?;
    let encoder = ComponentEncoder::default().validate(true).module(&module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| failed(&error))
}

/// Its functions answer what lies ready in its memory.
fn core() -> Vec<u8> {
    let (mut types, mut functions, mut exports) = (TypeSection::new(), FunctionSection::new(), ExportSection::new());
    let (mut memories, mut code, mut data) = (MemorySection::new(), CodeSection::new(), DataSection::new());
    memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
    exports.export("memory", ExportKind::Memory, 0);
    // As flat numbers: a client is four texts; a join has a room and perhaps a payload beside it.
    let hooks = [("describe", "info", 0), ("authorization", "connect", 8), ("authorization", "join", 15)];
    for (index, ((interface, name, params), answer)) in (0..).zip(hooks.into_iter().zip(ANSWERS)) {
        types.ty().function(vec![ValType::I32; params], [ValType::I32]);
        functions.function(index);
        let version = contract::VERSION;
        exports.export(&format!("postern:plugin/{interface}@{version}#{name}"), ExportKind::Func, index);
        code.function(&body(&[Instruction::I32Const(answer)]));
    }
    types.ty().function([ValType::I32; 4], [ValType::I32]);
    functions.function(3);
    exports.export("cabi_realloc", ExportKind::Func, 3);
    code.function(&make_room());

    let length = INFO.len().to_le_bytes();
    let info: Vec<u8> = TEXT.to_le_bytes().into_iter().chain(length[..4].iter().copied()).collect();
    data.active(0, &ConstExpr::i32_const(ANSWERS[0]), info);
    // `connect` answers zeros: ok, no rooms. `join` answers ok and, 8 bytes on, all three grants; 0: not to be kept.
    data.active(0, &ConstExpr::i32_const(ANSWERS[2] + 8), [1_u8, 1, 1]);
    data.active(0, &ConstExpr::i32_const(TEXT), INFO.bytes());
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&memories).section(&exports).section(&code).section(&data);
    module.finish()
}

fn body(instructions: &[Instruction<'_>]) -> Function {
    let mut function = Function::new([]);
    for instruction in instructions {
        function.instruction(instruction);
    }
    function.instruction(&Instruction::End);
    function
}

/// `cabi_realloc`: always the same place, with as much memory behind it as is asked for.
fn make_room() -> Function {
    const SIZE: u32 = 3;
    body(&[
        Instruction::LocalGet(SIZE),
        Instruction::I32Const(ARGUMENTS),
        Instruction::I32Add,
        Instruction::MemorySize(0),
        Instruction::I32Const(16),
        Instruction::I32Shl,
        Instruction::I32GtU,
        Instruction::If(BlockType::Empty),
        Instruction::LocalGet(SIZE),
        Instruction::I32Const(16),
        Instruction::I32ShrU,
        Instruction::I32Const(1),
        Instruction::I32Add,
        Instruction::MemoryGrow(0),
        Instruction::Drop,
        Instruction::End,
        Instruction::I32Const(ARGUMENTS),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_contract() {
        let shape = contract::check(&component().unwrap()).unwrap();
        // Types are nothing that can be called.
        assert_eq!(shape.imports, [format!("postern:plugin/types@{}", contract::VERSION)]);
        assert!(shape.exports.iter().any(|name| name.contains("/authorization@")), "{shape:?}");
    }
}
