//! What can be seen of a component without compiling or running any of it.
//!
//! The order matters. What is cheap and bounded comes first ([`survey`]), so that nothing is given to a parser that an
//! upload could make run long, grow large or recurse deep. Whether its code holds ([`validate`]) is found out in the
//! compiler's process: no bound here keeps that from taking minutes.

use wasmparser::{CompositeInnerType, Encoding, Parser, Payload, ValidPayload, Validator, WasmFeatures};
use wasmtime::Engine;

use super::super::bindings::{EXPORTABLE, IMPORTABLE};
use super::super::contract;
use super::super::failure::tame;
use super::LoadError;

/// Sections of a component, those of its modules included.
const SECTIONS_MAX: usize = 50_000;

/// Custom sections: names, debugging information, whatever tools leave behind.
const CUSTOM_SECTIONS_MAX: usize = 2_000;

/// All custom sections together, in bytes.
const CUSTOM_BYTES_MAX: usize = 16 << 20;

/// How deep components and modules stand in each other. Tools make two levels.
const NESTING_MAX: usize = 5;

/// Types that are declared inside of types, in one section. Parsers take them by recursion, on a
/// stack that an upload must not exhaust.
const NESTED_TYPES_MAX: usize = 256;

/// Core modules. Components made from one module have up to three, language runtimes some dozens.
const MODULES_MAX: usize = 128;

/// Functions, over all modules.
const FUNCTIONS_MAX: usize = 200_000;

/// The code of one function, in bytes. Compiling takes more than twice as long for twice the code.
const FUNCTION_BYTES_MAX: usize = 1 << 20;

/// Parameters, and results, of one function of a module. Each branch and each call is checked type by type, so that
/// two bytes of code can mean as many steps; compilers pass what is more in memory.
const ARITY_MAX: usize = 128;

/// Types, imports, exports, aliases, instances, elements and whatever else sections list.
const ITEMS_MAX: usize = 1_000_000;

/// How much of a name or of a tool's message is told, in bytes.
const TOLD_BYTES: usize = 256;

/// The package of the contract.
const PACKAGE: &str = "postern:plugin/";

/// What a component may be made of. Everything else is refused, known today or not.
const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::COMPONENT_MODEL);

/// What a component wants and offers: names of interfaces, with their versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surface {
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
}

/// Looks at a component of at most `bytes_max` bytes without compiling or running any of it. Takes any bytes. How long
/// that takes has no bound but the component's size, and code can be made to be slow to validate: for the gateway's
/// own process, [`survey`] is meant.
///
/// # Errors
/// The first thing that stands in the way of loading it.
pub fn inspect(bytes: &[u8], bytes_max: usize) -> Result<Surface, LoadError> {
    let surface = survey(bytes, bytes_max)?;
    validate(bytes)?;
    Ok(surface)
}

/// What can be seen in one quick pass, in steps that grow with the size alone: functions are passed over. What it lets
/// through need not be valid.
///
/// # Errors
/// The first thing that stands in the way of loading it.
pub(super) fn survey(bytes: &[u8], bytes_max: usize) -> Result<Surface, LoadError> {
    if bytes.len() > bytes_max {
        return Err(LoadError::TooLarge { bytes: bytes.len(), limit: bytes_max });
    }
    if Engine::detect_precompiled(bytes).is_some() {
        return Err(LoadError::Precompiled);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(LoadError::CoreModule);
    }
    if !Parser::is_component(bytes) {
        return Err(LoadError::NotAComponent("it does not begin like one".into()));
    }
    let mut survey = Survey::default();
    for payload in Parser::new(0).parse_all(bytes) {
        survey.payload(&payload.map_err(|error| broken(&error))?, bytes)?;
    }
    if survey.depth != 0 {
        return Err(LoadError::NotAComponent("it ends too early".into()));
    }
    Ok(survey.surface)
}

fn broken(error: &wasmparser::BinaryReaderError) -> LoadError {
    LoadError::NotAComponent(tame(&error.to_string(), TOLD_BYTES))
}

/// Does it hold as WebAssembly of the kinds that are allowed here? Only for processes whose time is bounded: an upload
/// can make it take seconds for each of its megabytes.
///
/// # Errors
/// What does not hold.
pub(super) fn validate(bytes: &[u8]) -> Result<(), LoadError> {
    match valid(bytes, FEATURES) {
        Ok(()) => Ok(()),
        Err(error) if valid(bytes, WasmFeatures::default()).is_ok() => {
            Err(LoadError::Feature(tame(&error.to_string(), TOLD_BYTES)))
        }
        Err(error) => Err(broken(&error)),
    }
}

fn valid(bytes: &[u8], features: WasmFeatures) -> Result<(), wasmparser::BinaryReaderError> {
    let mut validator = Validator::new_with_features(features);
    let mut allocations = wasmparser::FuncValidatorAllocations::default();
    for payload in Parser::new(0).parse_all(bytes) {
        if let ValidPayload::Func(function, body) = validator.payload(&payload?)? {
            let mut function = function.into_validator(std::mem::take(&mut allocations));
            function.validate(&body)?;
            allocations = function.into_allocations();
        }
    }
    Ok(())
}

/// What was met on the way through a component.
#[derive(Default)]
struct Survey {
    depth: usize,
    sections: usize,
    custom_sections: usize,
    custom_bytes: usize,
    modules: usize,
    functions: usize,
    items: usize,
    surface: Surface,
}

/// One more, or `more` more, of what there may be `limit` of.
fn count(
    total: &mut usize,
    more: usize,
    limit: usize,
    what: &'static str,
    advice: &'static str,
) -> Result<(), LoadError> {
    *total = total.saturating_add(more);
    if *total > limit { Err(LoadError::Bound { what, value: *total, limit, advice }) } else { Ok(()) }
}

const SMALLER: &str = "make it smaller, or of fewer parts";

impl Survey {
    fn payload(&mut self, payload: &Payload<'_>, bytes: &[u8]) -> Result<(), LoadError> {
        if !matches!(payload, Payload::CodeSectionEntry(_)) {
            count(&mut self.sections, 1, SECTIONS_MAX, "sections", SMALLER)?;
        }
        match payload {
            Payload::Version { encoding, .. } => self.begin(*encoding)?,
            Payload::End(_) => self.depth = self.depth.saturating_sub(1),
            // Components inside: tools make some without code, to give exports their types.
            Payload::ModuleSection { .. } if self.depth > 1 => return Err(LoadError::Composed),
            Payload::ComponentImportSection(imports) => {
                self.items(imports.count())?;
                if self.depth == 1 {
                    for import in imports.clone() {
                        let name = import.map_err(|error| broken(&error))?.name.name;
                        self.surface.imports.push(imported(name)?);
                    }
                }
            }
            Payload::ComponentExportSection(exports) => {
                self.items(exports.count())?;
                if self.depth == 1 {
                    for export in exports.clone() {
                        let name = export.map_err(|error| broken(&error))?.name.name;
                        self.surface.exports.push(exported(name)?);
                    }
                }
            }
            Payload::CustomSection(section) => {
                count(&mut self.custom_sections, 1, CUSTOM_SECTIONS_MAX, "custom sections", STRIP)?;
                let size = section.range().len();
                count(&mut self.custom_bytes, size, CUSTOM_BYTES_MAX, "bytes of custom sections", STRIP)?;
            }
            Payload::FunctionSection(functions) => {
                count(&mut self.functions, functions.count() as usize, FUNCTIONS_MAX, "functions", SMALLER)?;
            }
            Payload::CodeSectionEntry(body) => {
                let (mut size, split) = (0, "split the function, or compile it with less inlining");
                count(&mut size, body.range().len(), FUNCTION_BYTES_MAX, "bytes in one function", split)?;
            }
            Payload::TypeSection(types) => {
                self.items(types.count())?;
                for group in types.clone() {
                    let group = group.map_err(|error| broken(&error))?;
                    group.types().try_for_each(|kind| arity(&kind.composite_type.inner))?;
                }
            }
            Payload::ComponentTypeSection(types) => {
                self.items(types.count())?;
                nested_types(bytes.get(types.range()).unwrap_or_default())?;
            }
            Payload::CoreTypeSection(types) => {
                self.items(types.count())?;
                nested_types(bytes.get(types.range()).unwrap_or_default())?;
            }
            other => self.items(listed(other))?,
        }
        Ok(())
    }

    fn begin(&mut self, encoding: Encoding) -> Result<(), LoadError> {
        count(&mut self.depth, 1, NESTING_MAX, "components in each other", SMALLER)?;
        match encoding {
            Encoding::Module => count(&mut self.modules, 1, MODULES_MAX, "core modules", SMALLER),
            Encoding::Component => Ok(()),
        }
    }

    fn items(&mut self, more: u32) -> Result<(), LoadError> {
        count(&mut self.items, more as usize, ITEMS_MAX, "items in its sections", SMALLER)
    }
}

const STRIP: &str = "strip it: `strip = true` in the release profile, or `wasm-tools strip`";

/// How many items a section lists.
fn listed(section: &Payload<'_>) -> u32 {
    match section {
        Payload::ImportSection(section) => section.count(),
        Payload::TableSection(section) => section.count(),
        Payload::MemorySection(section) => section.count(),
        Payload::TagSection(section) => section.count(),
        Payload::GlobalSection(section) => section.count(),
        Payload::ExportSection(section) => section.count(),
        Payload::ElementSection(section) => section.count(),
        Payload::DataSection(section) => section.count(),
        Payload::InstanceSection(section) => section.count(),
        Payload::ComponentInstanceSection(section) => section.count(),
        Payload::ComponentAliasSection(section) => section.count(),
        Payload::ComponentCanonicalSection(section) => section.count(),
        _ => 0,
    }
}

/// Bounds what a function takes and gives.
fn arity(kind: &CompositeInnerType) -> Result<(), LoadError> {
    let CompositeInnerType::Func(function) = kind else { return Ok(()) };
    let more = function.params().len().max(function.results().len());
    count(&mut 0, more, ARITY_MAX, "parameters or results of one function", "pass them in memory")
}

/// Bounds how deep the types of a section can be nested, without parsing them: where a type stands in a type there
/// is the byte 1 (a declaration of a type) before the byte 0x41 or 0x42 (a component's, an instance's type).
/// Others may look alike, so there is some room.
fn nested_types(section: &[u8]) -> Result<(), LoadError> {
    let nested = section.windows(2).filter(|pair| pair[0] == 1 && matches!(pair[1], 0x41 | 0x42)).count();
    count(&mut 0, nested, NESTED_TYPES_MAX, "types in each other in one section", SMALLER)
}

/// The name of an import that the contract has.
fn imported(name: &str) -> Result<String, LoadError> {
    match in_contract(name, &IMPORTABLE)? {
        true => Ok(tame(name, TOLD_BYTES)),
        false if name.starts_with("wasi:") => Err(LoadError::Wasi(tame(name, TOLD_BYTES))),
        false => Err(LoadError::Import(tame(name, TOLD_BYTES))),
    }
}

/// The name of an export that the contract has.
fn exported(name: &str) -> Result<String, LoadError> {
    if in_contract(name, &EXPORTABLE)? {
        Ok(tame(name, TOLD_BYTES))
    } else {
        Err(LoadError::Export(tame(name, TOLD_BYTES)))
    }
}

/// Is this one of the contract's interfaces, of a version that fits?
fn in_contract(name: &str, interfaces: &[&str]) -> Result<bool, LoadError> {
    let Some(rest) = name.strip_prefix(PACKAGE) else { return Ok(false) };
    let (interface, version) = rest.split_once('@').unwrap_or((rest, ""));
    let spoken = contract::track(contract::VERSION);
    if contract::track(version) != spoken {
        let theirs = if version.is_empty() { "without a version".into() } else { tame(version, TOLD_BYTES) };
        return Err(LoadError::Version { theirs, spoken });
    }
    Ok(interfaces.contains(&interface))
}

#[cfg(test)]
mod tests;
