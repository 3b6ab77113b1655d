//! Memory that a module has from the start, for what it would otherwise ask for as soon as it runs.
//!
//! Every call runs in a fresh instance, and allocators of guest languages ask for a page or two at once
//! (`memory.grow`). For the host that is a system call each, more than all the rest of a small call. So the memory
//! begins [`HEADROOM_PAGES`] larger, and `memory.grow` and `memory.size` become a function and a global that hand those
//! pages out first. What the module sees is unchanged: same sizes, same answers, zeroed pages.

use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, Function, FunctionSection, GlobalSection, GlobalType, Instruction, Module,
    TypeSection, ValType,
};
use wasmparser::{Operator, Parser, Payload};

/// Pages of 64 KiB that a module begins with beyond its own.
const HEADROOM_PAGES: u64 = 4;

/// A core module with headroom; as it is where that cannot be done: without one 32-bit memory of its own, without
/// globals, or where the memory may not be so large.
pub fn with_headroom(module: &[u8]) -> Vec<u8> {
    let Some(shape) = Shape::of(module) else { return module.to_vec() };
    let mut larger = Module::new();
    match Headroom(shape).parse_core_module(&mut larger, Parser::new(0), module) {
        Ok(()) => larger.finish(),
        Err(_) => module.to_vec(),
    }
}

/// Where in a module the new function, its type and the global come.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Pages that it begins with by itself.
    pages: u32,
    types: u32,
    functions: u32,
    globals: u32,
}

impl Shape {
    fn of(module: &[u8]) -> Option<Shape> {
        let mut shape = Shape { pages: 0, types: 0, functions: 0, globals: 0 };
        let (mut memories, mut has_globals, mut has_code) = (0, false, false);
        for payload in Parser::new(0).parse_all(module) {
            match payload.ok()? {
                Payload::TypeSection(types) => {
                    // A group of several types counts as several.
                    for group in types {
                        shape.types += u32::try_from(group.ok()?.types().len()).ok()?;
                    }
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        match import.ok()?.ty {
                            wasmparser::TypeRef::Func(_) => shape.functions += 1,
                            wasmparser::TypeRef::Global(_) => shape.globals += 1,
                            wasmparser::TypeRef::Table(_) => {}
                            _ => return None,
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    has_code = functions.count() > 0;
                    shape.functions += functions.count();
                }
                Payload::GlobalSection(globals) => {
                    has_globals = true;
                    shape.globals += globals.count();
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        let memory = memory.ok()?;
                        let room = memory.maximum.is_none_or(|maximum| memory.initial + HEADROOM_PAGES <= maximum);
                        if memory.memory64 || memory.shared || memory.page_size_log2.is_some() || !room {
                            return None;
                        }
                        memories += 1;
                        shape.pages = u32::try_from(memory.initial).ok()?;
                    }
                }
                _ => {}
            }
        }
        let whole = memories == 1 && has_globals && has_code;
        (whole && u64::from(shape.pages) + HEADROOM_PAGES <= 1 << 16).then_some(shape)
    }
}

struct Headroom(Shape);

impl Headroom {
    fn grow(&self) -> u32 {
        self.0.functions
    }

    fn size(&self) -> u32 {
        self.0.globals
    }

    /// `memory.grow`: the pages asked for, from those that are there as far as they go. The global holds the size that
    /// the module knows of.
    fn grow_function(&self) -> Function {
        const DELTA: u32 = 0;
        const WANTED: u32 = 1;
        let (size, failed) = (self.size(), Instruction::I32Const(-1));
        let mut function = Function::new([(1, ValType::I32)]);
        for instruction in [
            Instruction::LocalGet(DELTA),
            Instruction::GlobalGet(size),
            Instruction::I32Add,
            Instruction::LocalTee(WANTED),
            // More pages than there are numbers for them.
            Instruction::GlobalGet(size),
            Instruction::I32LtU,
            Instruction::If(BlockType::Empty),
            failed.clone(),
            Instruction::Return,
            Instruction::End,
            Instruction::LocalGet(WANTED),
            Instruction::MemorySize(0),
            Instruction::I32GtU,
            Instruction::If(BlockType::Empty),
            Instruction::LocalGet(WANTED),
            Instruction::MemorySize(0),
            Instruction::I32Sub,
            Instruction::MemoryGrow(0),
            failed.clone(),
            Instruction::I32Eq,
            Instruction::If(BlockType::Empty),
            failed,
            Instruction::Return,
            Instruction::End,
            Instruction::End,
            Instruction::GlobalGet(size),
            Instruction::LocalGet(WANTED),
            Instruction::GlobalSet(size),
            Instruction::End,
        ] {
            function.instruction(&instruction);
        }
        function
    }
}

impl Reencode for Headroom {
    type Error = std::convert::Infallible;

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        utils::parse_type_section(self, types, section)?;
        types.ty().function([ValType::I32], [ValType::I32]);
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        utils::parse_function_section(self, functions, section)?;
        functions.function(self.0.types);
        Ok(())
    }

    fn parse_global_section(
        &mut self,
        globals: &mut GlobalSection,
        section: wasmparser::GlobalSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        utils::parse_global_section(self, globals, section)?;
        let ty = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
        globals.global(ty, &ConstExpr::i32_const(self.0.pages.cast_signed()));
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        utils::parse_code_section(self, code, section)?;
        code.function(&self.grow_function());
        Ok(())
    }

    fn memory_type(&mut self, ty: wasmparser::MemoryType) -> Result<wasm_encoder::MemoryType, Error<Self::Error>> {
        let ty = utils::memory_type(self, ty);
        Ok(wasm_encoder::MemoryType { minimum: ty.minimum + HEADROOM_PAGES, ..ty })
    }

    fn instruction<'a>(&mut self, operator: Operator<'a>) -> Result<Instruction<'a>, Error<Self::Error>> {
        match operator {
            Operator::MemoryGrow { .. } => Ok(Instruction::Call(self.grow())),
            Operator::MemorySize { .. } => Ok(Instruction::GlobalGet(self.size())),
            other => utils::instruction(self, other),
        }
    }
}
