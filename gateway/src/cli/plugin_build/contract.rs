//! Does a component keep the contract? It may import and export what `wit/` has, and
//! nothing else, in the shapes that `wit/` gives.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use wit_component::DecodedWasm;
use wit_parser::{
    Function, InterfaceId, PackageId, Resolve, SourceMap, Type, TypeDefKind, WorldId, WorldItem, WorldKey,
};

/// The name and version of the contract.
pub const PACKAGE: &str = "postern:plugin@0.1.0";

/// The world that has everything a component may import or export.
pub const EVERYTHING: &str = "everything";

/// The text of the contract, by file.
pub const FILES: [(&str, &str); 4] = [
    ("types.wit", include_str!("../../../../wit/types.wit")),
    ("imports.wit", include_str!("../../../../wit/imports.wit")),
    ("exports.wit", include_str!("../../../../wit/exports.wit")),
    ("world.wit", include_str!("../../../../wit/world.wit")),
];

/// What a component wants and offers: the names of interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
}

/// A world of the contract, as those see it who implement it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Its name, for example `handler`.
    pub name: String,
    /// What has to be there.
    pub exports: Vec<Export>,
}

/// An interface that a world exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name without the package, for example `timer-events`.
    pub interface: String,
    /// The names of its functions.
    pub functions: Vec<String>,
    /// Can its functions say that they failed (`types.failure`)?
    pub can_fail: bool,
}

/// The worlds that a plugin may choose from: all that export something.
///
/// # Errors
/// What is wrong with the contract's text.
pub fn worlds() -> Result<Vec<World>, String> {
    let (resolve, package) = parse(FILES)?;
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
    let fails = |function: &Function| function.result.is_some_and(|result| shape(resolve, result).contains("fatal("));
    Some(Export {
        interface: interface.name.clone()?,
        functions: interface.functions.keys().cloned().collect(),
        can_fail: interface.functions.values().all(fails),
    })
}

/// Reads WIT files as one package.
///
/// # Errors
/// What is wrong with the text.
pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(Resolve, PackageId), String> {
    let mut sources = SourceMap::new();
    for (name, text) in files {
        sources.push_str(name, text);
    }
    let group = sources.parse().map_err(|(_, error)| error.to_string())?;
    let mut resolve = Resolve::new();
    let package = resolve.push_group(group).map_err(|error| error.to_string())?;
    Ok((resolve, package))
}

/// Holds a component against the contract.
///
/// # Errors
/// Every difference, each with the interface and the function or type it is in.
pub fn check(component: &[u8]) -> Result<Shape, Vec<String>> {
    let contract = parse(FILES).and_then(|(resolve, package)| {
        let world = resolve.packages[package].worlds.get(EVERYTHING).copied();
        world.map(|world| (resolve, world)).ok_or_else(|| format!("the contract has no world `{EVERYTHING}`"))
    });
    let (contract, everything) = contract.map_err(|error| vec![error])?;
    if !wasmparser::Parser::is_component(component) {
        return Err(vec!["it is no component; `postern plugin build` makes one of a crate".into()]);
    }
    let decoded = wit_component::decode(component).map_err(|error| vec![format!("it cannot be read: {error:#}")])?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err(vec!["it is an encoded WIT package, no component".into()]);
    };
    let mut comparison = Comparison { theirs: &resolve, contract: &contract, everything, differences: Vec::new() };
    let imports = comparison.side(&resolve.worlds[world].imports, Side::Imports);
    let exports = comparison.side(&resolve.worlds[world].exports, Side::Exports);
    if exports.is_empty() && comparison.differences.is_empty() {
        comparison.differences.push("it exports nothing: there is nothing to call".into());
    }
    if comparison.differences.is_empty() { Ok(Shape { imports, exports }) } else { Err(comparison.differences) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Imports,
    Exports,
}

impl Side {
    fn verb(self) -> &'static str {
        match self {
            Side::Imports => "imports",
            Side::Exports => "exports",
        }
    }
}

struct Comparison<'a> {
    theirs: &'a Resolve,
    contract: &'a Resolve,
    everything: WorldId,
    differences: Vec<String>,
}

impl Comparison<'_> {
    fn side<'i>(&mut self, items: impl IntoIterator<Item = (&'i WorldKey, &'i WorldItem)>, side: Side) -> Vec<String> {
        let known = self.known(side);
        let mut names = Vec::new();
        for (key, item) in items {
            let name = self.theirs.name_world_key(key);
            match item {
                WorldItem::Interface { id, .. } => {
                    match known.get(&name) {
                        Some(ours) => self.interface(&name, *id, *ours, side),
                        None => self.differences.push(unknown(&name, &known, side)),
                    }
                    names.push(name);
                }
                WorldItem::Function(_) => {
                    let verb = side.verb();
                    self.differences.push(format!("it {verb} the function `{name}` outside of any interface"));
                }
                // A type alone does nothing; what uses it is compared.
                WorldItem::Type { .. } => {}
            }
        }
        names
    }

    fn known(&self, side: Side) -> BTreeMap<String, InterfaceId> {
        let world = &self.contract.worlds[self.everything];
        let items = if side == Side::Imports { &world.imports } else { &world.exports };
        let interfaces = items.iter().filter_map(|(key, item)| match item {
            WorldItem::Interface { id, .. } => Some((self.contract.name_world_key(key), *id)),
            WorldItem::Function(_) | WorldItem::Type { .. } => None,
        });
        interfaces.collect()
    }

    fn interface(&mut self, name: &str, theirs: InterfaceId, ours: InterfaceId, side: Side) {
        let (theirs, ours) = (&self.theirs.interfaces[theirs], &self.contract.interfaces[ours]);
        let before = self.differences.len();
        for (type_name, id) in &theirs.types {
            let is = shape(self.theirs, Type::Id(*id));
            match ours.types.get(type_name).map(|id| shape(self.contract, Type::Id(*id))) {
                Some(expected) if expected == is => {}
                Some(expected) => self.different(name, "type", type_name, &is, &expected),
                None => self.differences.push(format!("{name}: the contract has no type `{type_name}` there")),
            }
        }
        // A type that differs makes every function differ that uses it: once is enough.
        let types_differ = self.differences.len() > before;
        for (function_name, function) in &theirs.functions {
            match ours.functions.get(function_name) {
                Some(expected) => {
                    let (is, expected) = (signature(self.theirs, function), signature(self.contract, expected));
                    if is != expected && !types_differ {
                        self.different(name, "function", function_name, &is, &expected);
                    }
                }
                None => self.differences.push(format!("{name}: the contract has no function `{function_name}` there")),
            }
        }
        for function_name in ours.functions.keys() {
            if side == Side::Exports && !theirs.functions.contains_key(function_name) {
                self.differences.push(format!("{name}: it lacks the function `{function_name}`"));
            }
        }
    }

    fn different(&mut self, interface: &str, kind: &str, name: &str, is: &str, expected: &str) {
        self.differences.push(format!("{interface}: the {kind} `{name}` is `{is}`, the contract says `{expected}`"));
    }
}

fn unknown(name: &str, known: &BTreeMap<String, InterfaceId>, side: Side) -> String {
    let verb = side.verb();
    let unversioned = |name: &str| name.split_once('@').map_or(name, |(name, _)| name).to_owned();
    match known.keys().find(|known| unversioned(known) == unversioned(name)) {
        Some(ours) => format!("it {verb} {name}, but the contract here is {ours}"),
        None if name.starts_with("wasi:") => {
            format!("it {verb} {name}, but there is no WASI here: no files, sockets, randomness, clock")
        }
        None => format!("it {verb} {name}, which the contract does not have"),
    }
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let mut text = String::from(if function.kind.is_async() { "async func(" } else { "func(" });
    for (n, param) in function.params.iter().enumerate() {
        let comma = if n > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{}: {}", param.name, shape(resolve, param.ty));
    }
    text.push(')');
    if let Some(result) = function.result {
        let _ = write!(text, " -> {}", shape(resolve, result));
    }
    text
}

/// A type written out: two are the same if and only if these are.
fn shape(resolve: &Resolve, ty: Type) -> String {
    let Type::Id(id) = ty else { return format!("{ty:?}").to_lowercase() };
    let of = |ty: &Type| shape(resolve, *ty);
    let or_none = |ty: &Option<Type>| ty.as_ref().map_or_else(|| "_".into(), of);
    let list = |items: Vec<String>| items.join(", ");
    match &resolve.types[id].kind {
        TypeDefKind::Type(ty) => of(ty),
        TypeDefKind::Record(record) => {
            format!("record {{{}}}", list(record.fields.iter().map(|f| format!("{}: {}", f.name, of(&f.ty))).collect()))
        }
        TypeDefKind::Variant(variant) => {
            let cases = variant.cases.iter().map(|c| format!("{}({})", c.name, or_none(&c.ty)));
            format!("variant {{{}}}", list(cases.collect()))
        }
        TypeDefKind::Enum(cases) => {
            format!("enum {{{}}}", list(cases.cases.iter().map(|c| c.name.clone()).collect()))
        }
        TypeDefKind::Flags(flags) => {
            format!("flags {{{}}}", list(flags.flags.iter().map(|f| f.name.clone()).collect()))
        }
        TypeDefKind::Tuple(tuple) => format!("tuple<{}>", list(tuple.types.iter().map(of).collect())),
        TypeDefKind::Option(ty) => format!("option<{}>", of(ty)),
        TypeDefKind::Result(result) => format!("result<{}, {}>", or_none(&result.ok), or_none(&result.err)),
        TypeDefKind::List(ty) => format!("list<{}>", of(ty)),
        // The contract has none of the others, so whatever they are they differ.
        other => format!("{} of {:?}", other.as_str(), resolve.types[id].name),
    }
}
