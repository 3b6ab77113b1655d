use super::*;

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const CORE: &[u8] = b"\0asm\x01\0\0\0";
const BYTES_MAX: usize = 64 << 20;

fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

/// What `begins` and one section.
fn with_section(begins: &[u8], id: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = begins.to_vec();
    bytes.push(id);
    bytes.extend(leb(content.len()));
    bytes.extend(content);
    bytes
}

fn look(bytes: &[u8]) -> Result<Surface, LoadError> {
    inspect(bytes, BYTES_MAX)
}

fn bound(bytes: &[u8]) -> &'static str {
    match look(bytes) {
        Err(LoadError::Bound { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_component_is_refused_with_advice() {
    assert_eq!(look(CORE), Err(LoadError::CoreModule));
    assert!(LoadError::CoreModule.to_string().contains("postern plugin build"));
    assert!(matches!(look(b"hello"), Err(LoadError::NotAComponent(_))));
    assert!(matches!(look(b""), Err(LoadError::NotAComponent(_))));
    assert!(matches!(look(b"\0asm\x0d\0\x01\0\xff"), Err(LoadError::NotAComponent(_))));
    assert_eq!(look(COMPONENT), Ok(Surface::default()));
    let large = inspect(COMPONENT, 4).unwrap_err().to_string();
    assert!(large.contains("8 bytes") && large.contains("plugins.component_bytes_max = 4"), "{large}");
}

#[test]
fn a_component_with_code_inside_another_component_is_composed() {
    let nest = |inside: &[u8], section: u8| with_section(COMPONENT, section, inside);
    assert!(look(&nest(CORE, 1)).is_ok());
    assert_eq!(look(&nest(&nest(CORE, 1), 4)), Err(LoadError::Composed));
    assert!(look(&nest(&nest(COMPONENT, 4), 4)).is_ok());
    let deep = (0..20).fold(COMPONENT.to_vec(), |inside, _| nest(&inside, 4));
    assert_eq!(bound(&deep), "components in each other");
}

#[test]
fn types_that_are_nested_to_break_the_parser_s_stack_are_never_parsed() {
    // An instance type that holds an instance type, and so on: three bytes a level.
    for kind in [0x41, 0x42] {
        let levels = 2_000_000;
        let mut section = vec![1];
        for _ in 0..levels {
            section.extend([kind, 1, 1]);
        }
        assert_eq!(bound(&with_section(COMPONENT, 7, &section)), "types in each other in one section");
    }
    let few: Vec<u8> = std::iter::once(1).chain((0..50).flat_map(|_| [0x42, 1, 1])).chain([0x42, 0]).collect();
    assert!(look(&with_section(COMPONENT, 7, &few)).is_ok());
}

#[test]
fn custom_sections_are_bounded_in_number_and_size() {
    let large = with_section(COMPONENT, 0, &[&[1, b'x'][..], &vec![0; CUSTOM_BYTES_MAX]].concat());
    assert_eq!(bound(&large), "bytes of custom sections");
    let many = (0..=CUSTOM_SECTIONS_MAX).fold(COMPONENT.to_vec(), |bytes, _| with_section(&bytes, 0, &[1, b'x']));
    assert_eq!(bound(&many), "custom sections");
    let text = look(&large).unwrap_err().to_string();
    assert!(text.contains("at most 16777216") && text.contains("wasm-tools strip"), "{text}");
}

#[test]
fn huge_modules_are_refused_before_they_are_validated() {
    let functions = [leb(FUNCTIONS_MAX + 1), vec![0; FUNCTIONS_MAX + 1]].concat();
    let module = with_section(CORE, 3, &functions);
    assert_eq!(bound(&with_section(COMPONENT, 1, &module)), "functions");

    let body = vec![0x01; FUNCTION_BYTES_MAX + 1];
    let code = [vec![1], leb(body.len()), body].concat();
    let module = with_section(&with_section(CORE, 3, &[1, 0]), 10, &code);
    assert_eq!(bound(&with_section(COMPONENT, 1, &module)), "bytes in one function");

    let modules = (0..=MODULES_MAX).fold(COMPONENT.to_vec(), |bytes, _| with_section(&bytes, 1, CORE));
    assert_eq!(bound(&modules), "core modules");
}

#[test]
fn a_feature_that_is_switched_off_is_named() {
    // (memory i64 1): a 64-bit memory.
    let module = with_section(CORE, 5, &[1, 4, 1]);
    let error = look(&with_section(COMPONENT, 1, &module)).unwrap_err();
    assert!(matches!(&error, LoadError::Feature(text) if text.contains("memory64")), "{error}");
    // (memory 1 1 shared).
    let module = with_section(CORE, 5, &[1, 3, 1, 1]);
    let error = look(&with_section(COMPONENT, 1, &module)).unwrap_err();
    assert!(matches!(&error, LoadError::Feature(text) if text.contains("threads")), "{error}");
}

#[test]
fn only_the_contracts_interfaces_may_be_imported_and_of_a_version_that_fits() {
    assert_eq!(in_contract("postern:plugin/state@0.1.0", &IMPORTABLE), Ok(true));
    assert_eq!(in_contract("postern:plugin/state@0.1.7", &IMPORTABLE), Ok(true));
    assert_eq!(in_contract("wasi:cli/environment@0.2.0", &IMPORTABLE), Ok(false));
    assert_eq!(in_contract("postern:plugin/events@0.1.0", &IMPORTABLE), Ok(false));
    assert_eq!(in_contract("evil:postern:plugin/state@0.1.0", &IMPORTABLE), Ok(false));
    for future in ["0.9.0", "0.10.0", "1.0.0", "", "x"] {
        let error = in_contract(&format!("postern:plugin/state@{future}"), &IMPORTABLE).unwrap_err();
        let LoadError::Version { spoken, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*spoken, "0.1");
    }
    let future = in_contract("postern:plugin/events@0.9.0", &EXPORTABLE).unwrap_err().to_string();
    assert!(future.contains("postern:plugin@0.9.0") && future.contains("this gateway speaks 0.1"), "{future}");
}

#[test]
fn a_survey_passes_over_code_and_bounds_what_functions_take_and_give() {
    // A function whose code is nonsense: found by whoever validates.
    let module = with_section(&with_section(CORE, 1, &[1, 0x60, 0, 0]), 3, &[1, 0]);
    let component = with_section(COMPONENT, 1, &with_section(&module, 10, &[1, 4, 0, 0xff, 0xff, 0xff]));
    assert!(survey(&component, BYTES_MAX).is_ok());
    assert!(matches!(look(&component), Err(LoadError::NotAComponent(_))));

    let function = |given: usize| [vec![1, 0x60, 0], leb(given), vec![0x7f; given]].concat();
    let component = |given| with_section(COMPONENT, 1, &with_section(CORE, 1, &function(given)));
    assert!(survey(&component(ARITY_MAX), BYTES_MAX).is_ok());
    assert_eq!(bound(&component(ARITY_MAX + 1)), "parameters or results of one function");
}
