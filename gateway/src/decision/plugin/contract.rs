//! Does a component keep the contract? It may import and export what `wit/` has, and
//! nothing else, in the shapes that `wit/` gives.

use std::collections::BTreeMap;

use wit_component::DecodedWasm;
use wit_parser::{
    Function, InterfaceId, PackageId, Resolve, SourceMap, Type, TypeDefKind, WorldId, WorldItem, WorldKey,
};

/// The name and version of the contract.
pub const PACKAGE: &str = "postern:plugin@0.1.0";

/// The version alone.
pub const VERSION: &str = "0.1.0";

/// The world that has everything a component may import or export.
pub const EVERYTHING: &str = "everything";

/// The text of the contract, by file.
pub const FILES: [(&str, &str); 4] = [
    ("types.wit", include_str!("../../../../wit/types.wit")),
    ("imports.wit", include_str!("../../../../wit/imports.wit")),
    ("exports.wit", include_str!("../../../../wit/exports.wit")),
    ("world.wit", include_str!("../../../../wit/world.wit")),
];

/// The most differences that are told.
const DIFFERENCES_MAX: usize = 20;

/// How much of a type and of a name is told.
const SHOWN_BYTES_MAX: usize = 1_024;
const NAME_CHARS_SHOWN: usize = 128;

/// What a component wants and offers: the names of interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
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
                    match known.iter().find(|(known, _)| fits(&name, known)) {
                        Some((_, ours)) => self.interface(short(&name), *id, *ours, side),
                        None => self.differ(unknown(short(&name), &known, side)),
                    }
                    names.push(name);
                }
                WorldItem::Function(_) => {
                    let verb = side.verb();
                    self.differ(format!("it {verb} the function `{}` outside of any interface", short(&name)));
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
            match ours.types.get(type_name).map(|id| Type::Id(*id)) {
                Some(expected) if self.same(Type::Id(*id), expected) => {}
                Some(expected) => {
                    let (is, expected) = (shape(self.theirs, Type::Id(*id)), shape(self.contract, expected));
                    self.different(name, "type", type_name, &is, &expected);
                }
                None => self.differ(format!("{name}: the contract has no type `{}` there", short(type_name))),
            }
        }
        // A type that differs makes every function differ that uses it: once is enough.
        let types_differ = self.differences.len() > before;
        for (function_name, function) in &theirs.functions {
            match ours.functions.get(function_name) {
                Some(expected) if types_differ || self.same_function(function, expected) => {}
                Some(expected) => {
                    let (is, expected) = (signature(self.theirs, function), signature(self.contract, expected));
                    self.different(name, "function", function_name, &is, &expected);
                }
                None => self.differ(format!("{name}: the contract has no function `{}` there", short(function_name))),
            }
        }
        for function_name in ours.functions.keys() {
            if side == Side::Exports && !theirs.functions.contains_key(function_name) {
                self.differ(format!("{name}: it lacks the function `{function_name}`"));
            }
        }
    }

    fn same_function(&self, theirs: &Function, ours: &Function) -> bool {
        let params = theirs.params.len() == ours.params.len()
            && theirs.params.iter().zip(&ours.params).all(|(a, b)| a.name == b.name && self.same(a.ty, b.ty));
        params && theirs.kind.is_async() == ours.kind.is_async() && self.same_or_none(theirs.result, ours.result)
    }

    fn same_or_none(&self, theirs: Option<Type>, ours: Option<Type>) -> bool {
        match (theirs, ours) {
            (None, None) => true,
            (Some(theirs), Some(ours)) => self.same(theirs, ours),
            _ => false,
        }
    }

    /// Walks both types in step and ends where they part, so that it takes no longer than the contract's type is
    /// large. Written out, a small component's type can be larger than any memory.
    fn same(&self, theirs: Type, ours: Type) -> bool {
        let (Type::Id(a), Type::Id(b)) = (named(self.theirs, theirs), named(self.contract, ours)) else {
            return named(self.theirs, theirs) == named(self.contract, ours);
        };
        match (&self.theirs.types[a].kind, &self.contract.types[b].kind) {
            (TypeDefKind::Record(a), TypeDefKind::Record(b)) => {
                a.fields.len() == b.fields.len()
                    && a.fields.iter().zip(&b.fields).all(|(a, b)| a.name == b.name && self.same(a.ty, b.ty))
            }
            (TypeDefKind::Variant(a), TypeDefKind::Variant(b)) => {
                a.cases.len() == b.cases.len()
                    && a.cases.iter().zip(&b.cases).all(|(a, b)| a.name == b.name && self.same_or_none(a.ty, b.ty))
            }
            (TypeDefKind::Enum(a), TypeDefKind::Enum(b)) => {
                a.cases.iter().map(|case| &case.name).eq(b.cases.iter().map(|case| &case.name))
            }
            (TypeDefKind::Flags(a), TypeDefKind::Flags(b)) => {
                a.flags.iter().map(|flag| &flag.name).eq(b.flags.iter().map(|flag| &flag.name))
            }
            (TypeDefKind::Tuple(a), TypeDefKind::Tuple(b)) => {
                a.types.len() == b.types.len() && a.types.iter().zip(&b.types).all(|(a, b)| self.same(*a, *b))
            }
            (TypeDefKind::Result(a), TypeDefKind::Result(b)) => {
                self.same_or_none(a.ok, b.ok) && self.same_or_none(a.err, b.err)
            }
            (TypeDefKind::Option(a), TypeDefKind::Option(b)) | (TypeDefKind::List(a), TypeDefKind::List(b)) => {
                self.same(*a, *b)
            }
            // The contract has none of the others.
            _ => false,
        }
    }

    fn differ(&mut self, difference: String) {
        match self.differences.len() {
            DIFFERENCES_MAX => self.differences.push("and more".into()),
            n if n > DIFFERENCES_MAX => {}
            _ => self.differences.push(difference),
        }
    }

    fn different(&mut self, interface: &str, kind: &str, name: &str, is: &str, expected: &str) {
        self.differ(format!("{interface}: the {kind} `{}` is `{is}`, the contract says `{expected}`", short(name)));
    }
}

/// The part of a version within which everything fits together: `0.1` of `0.1.7`, `2` of `2.3.0`.
pub(super) fn track(version: &str) -> &str {
    let until = |dots: usize| version.match_indices('.').nth(dots).map_or(version, |(at, _)| &version[..at]);
    if version.starts_with("0.") { until(1) } else { until(0) }
}

/// Is it the same interface, in a version that fits?
fn fits(name: &str, ours: &str) -> bool {
    match (name.split_once('@'), ours.split_once('@')) {
        (Some((name, theirs)), Some((known, version))) => name == known && track(theirs) == track(version),
        _ => name == ours,
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

/// What a type is called last: aliases are other names of the same.
fn named(resolve: &Resolve, mut ty: Type) -> Type {
    while let Type::Id(id) = ty
        && let TypeDefKind::Type(of) = &resolve.types[id].kind
    {
        ty = *of;
    }
    ty
}

/// Names in components may be long; nobody reads that.
fn short(name: &str) -> &str {
    name.char_indices().nth(NAME_CHARS_SHOWN).map_or(name, |(end, _)| &name[..end])
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let mut text = Shown::new(resolve);
    text.push(if function.kind.is_async() { "async func(" } else { "func(" });
    for (n, param) in function.params.iter().enumerate() {
        text.push(if n > 0 { ", " } else { "" });
        text.push(short(&param.name));
        text.push(": ");
        text.ty(param.ty);
    }
    text.push(")");
    if let Some(result) = function.result {
        text.push(" -> ");
        text.ty(result);
    }
    text.finish()
}

fn shape(resolve: &Resolve, ty: Type) -> String {
    let mut text = Shown::new(resolve);
    text.ty(ty);
    text.finish()
}

/// A type written out, as far as there is room: a small component can hold a type of gigabytes.
struct Shown<'a> {
    resolve: &'a Resolve,
    text: String,
}

impl<'a> Shown<'a> {
    fn new(resolve: &'a Resolve) -> Shown<'a> {
        Shown { resolve, text: String::new() }
    }

    fn is_full(&self) -> bool {
        self.text.len() >= SHOWN_BYTES_MAX
    }

    fn push(&mut self, text: &str) {
        if !self.is_full() {
            self.text.push_str(text);
        }
    }

    fn finish(mut self) -> String {
        if self.is_full() {
            let end = self.text.floor_char_boundary(SHOWN_BYTES_MAX);
            self.text.truncate(end);
            self.text.push('…');
        }
        self.text
    }

    fn list(&mut self, open: &str, items: impl IntoIterator<Item = (&'a str, Option<Type>)>, close: &str) {
        self.push(open);
        for (n, (name, ty)) in items.into_iter().enumerate() {
            if self.is_full() {
                return;
            }
            self.push(if n > 0 { ", " } else { "" });
            self.push(short(name));
            if let Some(ty) = ty {
                self.push(if name.is_empty() { "" } else { ": " });
                self.ty(ty);
            }
        }
        self.push(close);
    }

    fn ty(&mut self, ty: Type) {
        if self.is_full() {
            return;
        }
        let resolve = self.resolve;
        let Type::Id(id) = named(resolve, ty) else {
            return self.push(&format!("{:?}", named(resolve, ty)).to_lowercase());
        };
        match &resolve.types[id].kind {
            TypeDefKind::Record(it) => {
                self.list("record {", it.fields.iter().map(|field| (field.name.as_str(), Some(field.ty))), "}");
            }
            TypeDefKind::Variant(it) => {
                self.list("variant {", it.cases.iter().map(|case| (case.name.as_str(), case.ty)), "}");
            }
            TypeDefKind::Enum(it) => self.list("enum {", it.cases.iter().map(|case| (case.name.as_str(), None)), "}"),
            TypeDefKind::Flags(it) => self.list("flags {", it.flags.iter().map(|flag| (flag.name.as_str(), None)), "}"),
            TypeDefKind::Tuple(it) => self.list("tuple<", it.types.iter().map(|ty| ("", Some(*ty))), ">"),
            TypeDefKind::Option(ty) => self.list("option<", [("", Some(*ty))], ">"),
            TypeDefKind::List(ty) => self.list("list<", [("", Some(*ty))], ">"),
            TypeDefKind::Result(it) => {
                let or_none = |ty: Option<Type>| if ty.is_some() { ("", ty) } else { ("_", None) };
                self.list("result<", [or_none(it.ok), or_none(it.err)], ">");
            }
            // The contract has none of the others.
            other => self.push(other.as_str()),
        }
    }
}
