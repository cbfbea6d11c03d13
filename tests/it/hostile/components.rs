//! Components that are none, and components that do what no honest one does.

use super::Faults;
use nerve_tests::{Folder, Nerve, guest};

/// What became of them.
pub(super) struct Components {
    /// Those that could not be deployed.
    pub(super) refused: usize,
    /// The ids of events that those which could be deployed were given, and what their dead letters say.
    pub(super) dead: Vec<(String, &'static str)>,
}

/// Deploys each, and gives an event to those that can be deployed.
pub(super) async fn run(nerve: &Nerve, faults: &mut Faults) -> Components {
    let whole = guest::echo("b");
    let module = |text: &str| wat::parse_str(text).unwrap();
    let refused = [
        ("no component", b"hello".to_vec()),
        ("nothing", Vec::new()),
        ("a head and nothing more", whole[..8].to_vec()),
        ("half a component", whole[..whole.len() / 2].to_vec()),
        ("a module that is no component", module("(module (memory 1))")),
        ("a component without the function", module("(component)")),
        ("a section of 4 GB", [&whole[..8], &[1, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat()),
        ("types within types", [&whole[..8], &nested_components(1_000)].concat()),
    ];
    for (name, bytes) in &refused {
        let folder = guest::wasm("hostile", "events.hostile", "b", "", bytes);
        let output = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await;
        faults.check_refused(name, &output, "hostile.wasm");
    }
    let acts = [
        ("trap", "\"trap\"", "unreachable"),
        ("loop", "\"loop\"", "did not answer within 2s"),
        ("memory", "\"memory\"", "memory"),
        ("depth", "1", "stack"),
        ("undeclared", "1", "emits"),
    ];
    let mut manifest = String::new();
    for (name, ..) in &acts {
        manifest.push_str(&format!(
            "[function.hostile-{name}]\nruntime = \"wasm\"\nsource = \"{name}.wasm\"\non = [\"events.hostile.{name}\"]\n\
             emits = [\"b\"]\ntimeout = \"2s\"\nmemory = \"32MiB\"\nretry = {{ attempts = 1 }}\n"
        ));
    }
    let mut folder = Folder::new(&manifest);
    for (name, ..) in &acts {
        let component = match *name {
            "depth" => guest::recursive(),
            "undeclared" => guest::echo("not.declared"),
            _ => guest::moody("b"),
        };
        folder = folder.with(&format!("{name}.wasm"), component);
    }
    nerve.cli().deploy(folder.path()).await;
    let mut dead = Vec::new();
    for (name, body, said) in acts {
        let id = format!("hostile-{name}");
        assert!(crate::post_event(nerve, &format!("hostile.{name}"), &id, body).await < 300);
        dead.push((id, said));
    }
    Components { refused: refused.len(), dead }
}

/// Components, each in the one before.
fn nested_components(depth: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    for _ in 0..depth {
        let whole = [&b"\0asm\x0d\0\x01\0"[..], &inner].concat();
        inner = vec![4];
        let mut length = whole.len();
        // LEB128.
        while length >= 0x80 {
            inner.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        inner.push(u8::try_from(length).unwrap());
        inner.extend(whole);
    }
    inner
}
