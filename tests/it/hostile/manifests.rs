//! Manifests that are wrong on purpose.

use super::Faults;
use nerve_tests::{Folder, Nerve, guest};

/// Deploys each, checks that it is refused and why, and says how many they were.
pub(super) async fn deploy(nerve: &Nerve, faults: &mut Faults) -> usize {
    let function = "[function.hostile]\nruntime = \"wasm\"\nsource = \"hostile.wasm\"\n";
    let bound = format!("{function}on = [\"events.a\"]\n");
    let nested = |text: &str| text.repeat(100_000);
    let cases: Vec<(&str, String, &str)> = vec![
        ("nested arrays", format!("{bound}emits = {}{}", nested("["), nested("]")), "nerve.toml"),
        ("nested tables", format!("[function{}]\n", nested(".a")), "nerve.toml"),
        ("nested inline tables", format!("a = {}1{}", nested("{a="), nested("}")), "nerve.toml"),
        ("a text of 64 MB", format!("# {}\n{bound}", "x".repeat(64 << 20)), "nerve.toml"),
        (
            "a source outside of the folder",
            function.replace("hostile.wasm", "../../etc/passwd") + "on = [\"events.a\"]\n",
            "source",
        ),
        (
            "a source that is absolute",
            function.replace("hostile.wasm", "/etc/passwd") + "on = [\"events.a\"]\n",
            "source",
        ),
        ("a timeout of 10^30 years", format!("{bound}timeout = \"1000000000000000000000000000000y\"\n"), "timeout"),
        ("a concurrency of 2^63", format!("{bound}concurrency = 9223372036854775807\n"), "concurrency"),
        ("a memory of 2^63", format!("{bound}memory = \"9223372036854775807GiB\"\n"), "memory"),
        ("a memory below zero", format!("{bound}memory = -1\n"), "memory"),
        ("ten million attempts", format!("{bound}retry = {{ attempts = 10000000000 }}\n"), "attempts"),
        ("Nerve's own subjects", format!("{function}on = [\"events.a\", \"$KV.secrets.>\"]\n"), "on"),
        ("a name with a line break", bound.replace("function.hostile", "function.\"a\\nb\""), "name"),
        ("a name with an escape", bound.replace("function.hostile", "function.\"\\u001b[2J\""), "name"),
        (
            "a name of a megabyte",
            bound.replace("function.hostile", &format!("function.{}", "a".repeat(1 << 20))),
            "more bytes",
        ),
        ("a variable with a zero", format!("{bound}env = {{ A = \"a\\u0000b\" }}\n"), "env"),
        (
            "a schedule of nine fields",
            "[schedule.s]\ncron = \"* * * * * * * * *\"\nemit = \"a\"\n".to_owned(),
            "schedule.s",
        ),
        ("a sink to a file", "[sink.s]\non = [\"events.a\"]\nurl = \"file:///etc/passwd\"\n".to_owned(), "url"),
    ];
    let component = guest::silent();
    for (name, manifest, said) in &cases {
        let folder = Folder::new(manifest).with("hostile.wasm", &component);
        let output = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await;
        faults.check_refused(name, &output, said);
    }
    let listed = nerve.cli().run(&["list", "--output", "json"]).await.ok();
    assert!(!listed.stdout.contains("hostile"), "nothing is deployed: {listed:?}");
    cases.len()
}
