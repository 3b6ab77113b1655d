//! Components made by hand: what no compiler of a language would make.

use postern::cli::plugin_build::contract;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// What a component begins with.
pub(crate) const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// What a core module begins with.
pub(crate) const CORE: &[u8] = b"\0asm\x01\0\0\0";

/// The name of the function that every component has.
const INFO: &str = "postern:plugin/describe@0.1.0#info";

const DESCRIBE: &str = "package postern:plugin@0.1.0;
    interface describe { info: func() -> string; }
    world w { export describe; }";

/// A number as WebAssembly writes it.
pub(crate) fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn counted(items: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = leb(items.len());
    items.iter().for_each(|item| bytes.extend(item));
    bytes
}

fn sized(content: &[u8]) -> Vec<u8> {
    [leb(content.len()), content.to_vec()].concat()
}

/// `begins` and one section more.
pub(crate) fn with_section(begins: &[u8], id: u8, content: &[u8]) -> Vec<u8> {
    [begins.to_vec(), vec![id], sized(content)].concat()
}

/// The body of a function: `locals` of type i32, then code; `end` is added.
pub(crate) fn body(locals: usize, code: &[u8]) -> Vec<u8> {
    let declared = if locals == 0 { vec![0] } else { [vec![1], leb(locals), vec![0x7f]].concat() };
    [declared, code.to_vec(), vec![0x0b]].concat()
}

/// A core module that exports `describe.info`, imports `import` (module, name; of two numbers, without a result) if
/// there is one, and has these other functions.
pub(crate) fn core(import: Option<(&str, &str)>, export: &str, bodies: &[Vec<u8>]) -> Vec<u8> {
    let name = |text: &str| sized(text.as_bytes());
    let types = counted(&[vec![0x60, 0, 1, 0x7f], vec![0x60, 0, 0], vec![0x60, 2, 0x7f, 0x7f, 0]]);
    let mut module = with_section(CORE, 1, &types);
    let imports: Vec<Vec<u8>> =
        import.iter().map(|(module, item)| [name(module), name(item), vec![0, 2]].concat()).collect();
    if !imports.is_empty() {
        module = with_section(&module, 2, &counted(&imports));
    }
    let functions: Vec<Vec<u8>> = std::iter::once(vec![0]).chain(bodies.iter().map(|_| vec![1])).collect();
    module = with_section(&module, 3, &counted(&functions));
    module = with_section(&module, 5, &[1, 0, 1]);
    let exports = [[name(export), vec![0], leb(imports.len())].concat(), [name("memory"), vec![2, 0]].concat()];
    module = with_section(&module, 7, &counted(&exports));
    // i32.const 0
    let info = sized(&body(0, &[0x41, 0]));
    let code: Vec<Vec<u8>> = std::iter::once(info).chain(bodies.iter().map(|body| sized(body))).collect();
    with_section(&module, 10, &counted(&code))
}

/// A component of the world `w` of this package.
pub(crate) fn component_of(package: &str, core: &[u8]) -> Vec<u8> {
    let (resolve, id) = contract::parse([("own.wit", package)]).expect("the text is WIT");
    let mut core = core.to_vec();
    embed_component_metadata(&mut core, &resolve, resolve.packages[id].worlds["w"], StringEncoding::UTF8)
        .expect("the world is there");
    let encoder = ComponentEncoder::default().validate(false).module(&core).expect("a core module");
    let mut encoder = encoder;
    encoder.encode().expect("a component")
}

/// A component that only describes itself, and has these other functions.
pub(crate) fn described(bodies: &[Vec<u8>]) -> Vec<u8> {
    component_of(DESCRIBE, &core(None, INFO, bodies))
}

/// One function of about `bytes` bytes in which everything depends on everything.
pub(crate) fn tangle(bytes: usize) -> Vec<u8> {
    let locals = 2_000;
    let mut code = Vec::with_capacity(bytes);
    let mut n = 1_usize;
    while code.len() < bytes {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let local = |shift: u32| leb((n >> shift) % locals);
        // local = if local { local * local } else { local + local }
        code.push(0x20);
        code.extend(local(20));
        code.extend([0x04, 0x7f, 0x20]);
        code.extend(local(24));
        code.push(0x20);
        code.extend(local(28));
        code.extend([0x6c, 0x05, 0x20]);
        code.extend(local(32));
        code.push(0x20);
        code.extend(local(36));
        code.extend([0x6a, 0x0b, 0x21]);
        code.extend(local(40));
    }
    body(locals, &code)
}

/// One function of nested blocks, with tables of jumps out of all of them.
pub(crate) fn jumps(blocks: usize, tables: usize) -> Vec<u8> {
    let mut code = Vec::new();
    (0..blocks).for_each(|_| code.extend([0x02, 0x40]));
    for _ in 0..tables {
        // A block that the table's code ends in, so that the next one can be reached.
        code.extend([0x02, 0x40, 0x41, 0, 0x0e]);
        code.extend(leb(blocks));
        (0..=blocks).for_each(|block| code.extend(leb(block)));
        code.push(0x0b);
    }
    (0..blocks).for_each(|_| code.push(0x0b));
    body(0, &code)
}

/// A component of functions of almost 1 MiB, each a table of a million jumps out of a block with `results` results:
/// whoever validates it takes and gives all of them for each jump. Unless `holds`, one more function is not valid.
pub(crate) fn branches(functions: usize, results: usize, holds: bool) -> Vec<u8> {
    let block = [vec![0x60, 0], leb(results), vec![0x7f; results]].concat();
    let types = counted(&[vec![0x60, 0, 0], block]);
    let targets = (1 << 20) - results * 3 - 64;
    let mut code = vec![0x02, 1];
    // i32.const 0, for each result and for the table.
    (0..=results).for_each(|_| code.extend([0x41, 0]));
    code.push(0x0e);
    code.extend(leb(targets));
    code.resize(code.len() + targets + 1, 0);
    code.push(0x0b);
    // drop
    code.resize(code.len() + results, 0x1a);
    let mut bodies = vec![sized(&body(0, &code)); functions];
    if !holds {
        bodies.push(sized(&body(0, &[0x1a])));
    }
    let module = with_section(&with_section(CORE, 1, &types), 3, &counted(&vec![vec![0]; bodies.len()]));
    with_section(COMPONENT, 1, &with_section(&module, 10, &counted(&bodies)))
}
