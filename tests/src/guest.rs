//! Components made from WAT by the contract in `functions/wit`, and folders to deploy them from.
//!
//! The guests are written by hand against the canonical ABI, so that they do not depend on any language's
//! bindings: `handle` takes a pointer to the `event` record and returns a pointer to the result.

use crate::checkout;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Where in the `event` record the body's pointer and length are, in bytes.
const DATA: (u32, u32) = (68, 72);

/// Memory, an allocator that never frees (an instance lives for one call), and the two ways to answer.
///
/// Addresses: 16 the emitted type, 512 messages, 1024 the result, 1100 the emission, from 4096 the heap.
fn prelude(ty: &str) -> String {
    let (length, bytes) = (ty.len(), ty);
    format!(
        r#"
  (memory (export "memory") 1)
  (data (i32.const 16) "{bytes}")
  (data (i32.const 512) "said no")
  (global $top (mut i32) (i32.const 4096))
  (func $alloc (export "cabi_realloc") (param $old i32) (param $size i32) (param $align i32) (param $new i32)
    (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
    (global.set $top (i32.add (local.get $at) (local.get $new)))
    (if (i32.gt_u (global.get $top) (i32.shl (memory.size) (i32.const 16)))
      (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1)
          (i32.shr_u (i32.sub (global.get $top) (i32.shl (memory.size) (i32.const 16))) (i32.const 16)))))
        (then unreachable))))
    (local.get $at))
  (func $one (param $data i32) (param $length i32) (result i32)
    (i32.store (i32.const 1100) (i32.const 16))
    (i32.store (i32.const 1104) (i32.const {length}))
    (i32.store (i32.const 1108) (local.get $data))
    (i32.store (i32.const 1112) (local.get $length))
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store (i32.const 1028) (i32.const 1100))
    (i32.store (i32.const 1032) (i32.const 1))
    (i32.const 1024))
  (func $no (param $kind i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store8 (i32.const 1028) (local.get $kind))
    (i32.store (i32.const 1032) (i32.const 512))
    (i32.store (i32.const 1036) (i32.const 7))
    (i32.const 1024))"#
    )
}

/// Emits one event of type `ty` with the input's body.
pub fn echo(ty: &str) -> Vec<u8> {
    let (data, length) = DATA;
    component(&format!(
        r#"(module {prelude}
  (func (export "handle") (param $event i32) (result i32)
    (call $one (i32.load offset={data} (local.get $event)) (i32.load offset={length} (local.get $event)))))"#,
        prelude = prelude(ty)
    ))
}

/// Emits two events of type `ty`, each with the input's body.
pub fn twice(ty: &str) -> Vec<u8> {
    let (data, length) = DATA;
    // An emission is 52 bytes; the second stands behind the first.
    component(&format!(
        r#"(module {prelude}
  (func (export "handle") (param $event i32) (result i32)
    (drop (call $one (i32.load offset={data} (local.get $event)) (i32.load offset={length} (local.get $event))))
    (memory.copy (i32.const 1152) (i32.const 1100) (i32.const 52))
    (i32.store (i32.const 1032) (i32.const 2))
    (i32.const 1024)))"#,
        prelude = prelude(ty)
    ))
}

/// Does nothing well: no emission.
pub fn silent() -> Vec<u8> {
    component(&format!(
        r#"(module {prelude}
  (func (export "handle") (param $event i32) (result i32) (i32.const 1024)))"#,
        prelude = prelude("unused")
    ))
}

/// Runs this code, which has a local `$x`, and emits nothing.
pub fn padded(code: &str) -> Vec<u8> {
    component(&format!(
        r#"(module {prelude}
  (func (export "handle") (param $event i32) (result i32) (local $x i32) {code} (i32.const 1024)))"#,
        prelude = prelude("unused")
    ))
}

/// Calls itself without end.
pub fn recursive() -> Vec<u8> {
    component(&format!(
        r#"(module {prelude}
  (func $deep (param $x i32) (result i32) (i32.add (i32.const 1) (call $deep (i32.add (local.get $x) (i32.const 1)))))
  (func (export "handle") (param $event i32) (result i32) (drop (call $deep (i32.const 0))) (i32.const 1024)))"#,
        prelude = prelude("unused")
    ))
}

/// Does what the body, a JSON string, says: `"trap"`, `"loop"`, `"memory"`, `"invalid"`, `"retry"`; anything
/// else is echoed as an event of type `ty`.
pub fn moody(ty: &str) -> Vec<u8> {
    let (data, length) = DATA;
    let when = |letter: char, then: &str| {
        format!("(if (i32.eq (local.get $mood) (i32.const {})) (then {then}))", u32::from(letter))
    };
    let moods = [
        when('t', "unreachable"),
        when('l', "(loop $ever (br $ever))"),
        when('m', "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable"),
        when('i', "(return (call $no (i32.const 0)))"),
        when('r', "(return (call $no (i32.const 1)))"),
    ];
    component(&format!(
        r#"(module {prelude}
  (func (export "handle") (param $event i32) (result i32) (local $mood i32)
    (local.set $mood (i32.load8_u offset=1 (i32.load offset={data} (local.get $event))))
    {moods}
    (call $one (i32.load offset={data} (local.get $event)) (i32.load offset={length} (local.get $event)))))"#,
        prelude = prelude(ty),
        moods = moods.join("\n    ")
    ))
}

/// Emits one event of type `ty` whose body is the JSON string that [`sum`] gives of the input's body.
pub fn summing(ty: &str) -> Vec<u8> {
    let (data, length) = DATA;
    component(&format!(
        r#"(module {prelude}
  (func $hex (param $to i32) (param $value i32) (local $i i32) (local $digit i32)
    (loop $next
      (local.set $digit (i32.and (i32.shr_u (local.get $value)
        (i32.sub (i32.const 28) (i32.shl (local.get $i) (i32.const 2)))) (i32.const 15)))
      (i32.store8 (i32.add (local.get $to) (local.get $i)) (i32.add (local.get $digit)
        (select (i32.const 87) (i32.const 48) (i32.gt_u (local.get $digit) (i32.const 9)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 8)))))
  (func (export "handle") (param $event i32) (result i32)
    (local $at i32) (local $end i32) (local $hash i32)
    (local.set $at (i32.load offset={data} (local.get $event)))
    (local.set $end (i32.add (local.get $at) (i32.load offset={length} (local.get $event))))
    (local.set $hash (i32.const 0x811c9dc5))
    (call $hex (i32.const 2049) (i32.load offset={length} (local.get $event)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $hash (i32.mul (i32.xor (local.get $hash) (i32.load8_u (local.get $at))) (i32.const 0x01000193)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next)))
    (call $hex (i32.const 2057) (local.get $hash))
    (i32.store8 (i32.const 2048) (i32.const 34))
    (i32.store8 (i32.const 2065) (i32.const 34))
    (call $one (i32.const 2048) (i32.const 18))))"#,
        prelude = prelude(ty)
    ))
}

/// A body's length and FNV-1a hash in hexadecimal, as a JSON string: what [`summing`] answers.
pub fn sum(body: &[u8]) -> String {
    let hash = body.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("\"{:08x}{hash:08x}\"", body.len())
}

/// A component of the world `function` whose core module is this WAT.
pub fn component(wat: &str) -> Vec<u8> {
    let mut module = wat::parse_str(wat).unwrap_or_else(|e| panic!("{e}\n{wat}"));
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(checkout().join("functions/wit")).expect("the contract in functions/wit");
    let world = resolve.select_world(&[package], Some("function")).expect("the world `function`");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("metadata");
    let encoder = ComponentEncoder::default().validate(true).module(&module).expect("a module of that world");
    let mut encoder = encoder;
    encoder.encode().expect("a component")
}

/// A temporary folder with a manifest, to be deployed.
pub struct Folder(TempDir);

impl Folder {
    /// A folder whose `nerve.toml` is this text.
    pub fn new(manifest: &str) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        folder.with("nerve.toml", manifest)
    }

    /// The same folder with one more file (or another text in an old one).
    #[must_use]
    pub fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.0.path().join(name), content).expect("a file in a temporary folder");
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// A folder with one function that is a component.
///
/// `extra` is more lines of its table, such as `timeout = "1s"`.
pub fn wasm(name: &str, on: &str, emits: &str, extra: &str, component: &[u8]) -> Folder {
    let manifest = format!(
        "[function.{name}]\nruntime = \"wasm\"\nsource = \"{name}.wasm\"\non = [\"{on}\"]\nemits = [\"{emits}\"]\n{extra}\n"
    );
    Folder::new(&manifest).with(&format!("{name}.wasm"), component)
}

/// A folder with one function that is a Python process.
pub fn python(name: &str, on: &str, emits: &str, extra: &str, script: &str) -> Folder {
    let manifest = format!(
        "[function.{name}]\nruntime = \"process\"\ncommand = [\"python3\", \"{name}.py\"]\non = [\"{on}\"]\nemits = [\"{emits}\"]\n{extra}\n"
    );
    Folder::new(&manifest).with(&format!("{name}.py"), script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_is_a_component() {
        for component in [echo("a.b"), twice("a.b"), silent(), moody("a.b"), summing("a.b")] {
            assert_eq!(&component[..8], b"\0asm\x0d\0\x01\0");
        }
    }

    #[test]
    fn a_sum_is_length_and_fnv() {
        assert_eq!(sum(b"a"), "\"00000001e40c292c\"");
    }
}
