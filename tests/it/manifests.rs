//! Manifests with mistakes: refused before anything changes, with line, key and the nearest right key.

use nerve_tests::{Folder, Nerve};

#[tokio::test]
async fn a_broken_manifest_shows_the_line_the_key_and_the_nearest_right_key() {
    let nerve = Nerve::up().await;
    let good = "[function.good]\nruntime = \"process\"\ncommand = [\"python3\", \"good.py\"]\non = [\"events.a\"]\n";
    let cases = [
        ("timeot = \"3s\"", vec!["nerve.toml:5:", "function.good.timeot", "timeout"]),
        ("timeout = \"soon\"", vec!["nerve.toml:5:", "function.good.timeout", "soon"]),
        ("concurrency = 0", vec!["nerve.toml:5:", "function.good.concurrency"]),
        ("[function.good.retry]\natempts = 3", vec!["nerve.toml:6:", "atempts", "attempts"]),
        ("[sorce.github]\nprovider = \"github\"", vec!["nerve.toml:5:", "sorce", "source"]),
        ("order_by = \"partitionkey\"", vec!["nerve.toml:5:", "order_by", "not yet supported"]),
        ("[source.x]\nprovider = \"github\"", vec!["nerve.toml:5:", "source.x", "secret"]),
        ("= 3", vec!["nerve.toml:5:"]),
    ];
    for (broken, expected) in cases {
        let folder = Folder::new(&format!("{good}{broken}\n")).with("good.py", "");
        let refused = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await;
        assert!(matches!(refused.code, Some(1 | 2)), "{broken}: {refused:?}");
        for part in expected {
            assert!(refused.stderr.contains(part), "{broken}: no `{part}` in {}", refused.stderr);
        }
    }
    let listed = nerve.cli().run(&["list", "--output", "json"]).await.ok();
    assert!(!listed.stdout.contains("good"), "{listed:?}");
}

#[tokio::test]
async fn a_folder_without_a_manifest_says_what_is_missing() {
    let nerve = Nerve::up().await;
    let folder = tempfile::tempdir().unwrap();
    let refused = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await;
    assert!(matches!(refused.code, Some(1 | 2)), "{refused:?}");
    assert!(refused.stderr.contains("nerve.toml"), "{refused:?}");
}
