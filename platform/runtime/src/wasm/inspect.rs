//! Checks whether a file is a component that Nerve can run, without compiling it.

use wasmparser::{Encoding, Parser, Payload, Validator};

/// The reason why a file cannot be deployed as a component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// It has no WebAssembly header.
    #[error("this is not WebAssembly; build a component and name its .wasm file as `source`")]
    NotWasm,
    /// A core module, which has no interface types.
    #[error(
        "this is a core module, not a component; make one with `wasm-tools component new FILE.wasm -o OUT.wasm`, \
         or build for wasm32-wasip2"
    )]
    CoreModule,
    /// It is damaged after a valid header.
    #[error("this component is not valid: {0}; build it again")]
    Broken(String),
    /// A component of another world.
    #[error(
        "this component does not export the function `handle` (it exports {0}); build it for the world `function` \
         of nerve:function@0.1.0"
    )]
    OtherWorld(String),
}

/// Checks that `bytes` is a valid component that exports a function `handle`.
///
/// The types of `handle` and all imports are checked at load.
pub fn inspect(bytes: &[u8]) -> Result<(), InspectError> {
    if !bytes.starts_with(b"\0asm") {
        return Err(InspectError::NotWasm);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(InspectError::CoreModule);
    }
    let broken = |error: wasmparser::BinaryReaderError| InspectError::Broken(error.to_string());
    let mut depth = 0_usize;
    let mut exports = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(broken)? {
            Payload::Version { encoding: Encoding::Module | Encoding::Component, .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            // Only the outermost component's exports are those of its world.
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export.map_err(broken)?;
                    if export.name.name == "handle" && export.kind == wasmparser::ComponentExternalKind::Func {
                        return Validator::new().validate_all(bytes).map(drop).map_err(broken);
                    }
                    exports.push(format!("`{}`", export.name.name));
                }
            }
            _ => {}
        }
    }
    exports.truncate(8);
    let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
    Err(InspectError::OtherWorld(exports))
}
