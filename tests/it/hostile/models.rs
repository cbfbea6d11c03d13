//! Models that cannot be run, or that try what loads them.

use super::Faults;
use nerve_tests::{
    Nerve,
    models::{copy_folder, fixture},
};
use std::fs;

/// Adds each, checks that it is refused, and says how many they were.
pub(super) async fn add(nerve: &Nerve, faults: &mut Faults) -> usize {
    let text = |text: String| text.into_bytes();
    let graph = fs::read(fixture("cross-encoder").join("model.onnx")).unwrap();
    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    // A field of the length 2^62 where a graph would be.
    let endless = [&[0x3a][..], &[0x80; 8], &[0x40]].concat();
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("a graph of nothing", "model.onnx", Vec::new()),
        ("a graph of noise", "model.onnx", vec![0xa5; 1 << 20]),
        ("half a graph", "model.onnx", graph[..graph.len() / 2].to_vec()),
        ("a graph of 2^62 bytes", "model.onnx", endless),
        ("a graph within graphs", "model.onnx", messages_in_messages(5_000)),
        ("a tokenizer of nested arrays", "tokenizer.json", text(nested.clone())),
        ("a tokenizer of nothing", "tokenizer.json", text("{}".to_owned())),
        ("a description of nested arrays", "config.json", text(nested)),
        ("a description that is not UTF-8", "config.json", vec![0xff; 100]),
    ];
    for (name, file, bytes) in &cases {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixture("cross-encoder"), folder.path());
        fs::write(folder.path().join(file), bytes).unwrap();
        let output =
            nerve.cli().run(&["models", "add", &folder.path().display().to_string(), "--name", "hostile"]).await;
        faults.check_refused(name, &output, "as a model");
    }
    let listed = nerve.cli().run(&["models", "list", "--output", "json"]).await.ok();
    assert!(!listed.stdout.contains("hostile"), "{listed:?}");
    cases.len()
}

/// A graph's field with a node's attribute that has a graph, and so on.
fn messages_in_messages(depth: usize) -> Vec<u8> {
    let wrapped = |tag: u8, inner: &[u8]| {
        let (mut head, mut length) = (vec![tag], inner.len());
        // LEB128.
        while length >= 0x80 {
            head.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        head.push(u8::try_from(length).unwrap());
        [&head, inner].concat()
    };
    let mut inner = Vec::new();
    for _ in 0..depth {
        // GraphProto.node, NodeProto.attribute, AttributeProto.g.
        inner = wrapped(0x0a, &wrapped(0x2a, &wrapped(0x32, &inner)));
    }
    // ModelProto.graph.
    wrapped(0x3a, &inner)
}
