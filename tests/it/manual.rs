//! The manuals: every link leads somewhere, and every command does what its page says.

use nerve_tests::{
    checkout,
    manual::{Note, Page, Shell},
};
use std::collections::BTreeSet;

/// The pages whose commands the tests below run.
const RUN_PAGES: [&str; 19] = [
    "README.md",
    "deploy/guides/own-nats.md",
    "deploy/guides/systemd.md",
    "deploy/guides/three-machines.md",
    "functions/examples/agentic/README.md",
    "functions/examples/pipeline/README.md",
    "functions/examples/reactive/README.md",
    "functions/examples/streaming/README.md",
    "functions/guides/failed-events.md",
    "functions/guides/outbound-webhooks.md",
    "functions/guides/own-model.md",
    "functions/guides/pipeline.md",
    "functions/guides/replace-a-step.md",
    "functions/guides/stripe.md",
    "functions/onnx/README.md",
    "functions/tutorial.md",
    "platform/guides/http-keys.md",
    "platform/guides/rotate.md",
    "platform/guides/tenants.md",
];
/// Other pages with commands, and what runs them.
const OTHER_PAGES: [(&str, &str); 9] = [
    ("CONTRIBUTING.md", "CI runs them before and around this test"),
    ("platform/cli/templates/process-python/README.md", "the tutorial"),
    ("platform/cli/templates/wasm-js/README.md", "deploy.rs makes it, and guests.sh builds such components"),
    ("platform/cli/templates/wasm-python/README.md", "deploy.rs makes it, and guests.sh builds such components"),
    ("platform/cli/templates/wasm-rust/README.md", "deploy.rs makes it, and guests.sh builds such components"),
    ("platform/reference/settings.md", "the test of reference pages"),
    ("tests/README.md", "hours of the checker"),
    ("tests/fixtures/before/README.md", "upgrade.rs uses what they made"),
    ("tests/fuzz/README.md", "hours of fuzzing"),
];
/// Blocks that no test can run.
const MAX_BLOCKS_NOT_RUN: usize = 8;

async fn run(path: &str) {
    assert!(
        RUN_PAGES.contains(&path) || OTHER_PAGES.iter().any(|(elsewhere, _)| *elsewhere == path),
        "{path}: add it to RUN_PAGES"
    );
    Shell::new().run(&Page::read(path)).await;
}

/// The same with a `nerve up` that the page takes for granted.
async fn run_with_server(path: &str) {
    assert!(RUN_PAGES.contains(&path), "{path}: add it to RUN_PAGES");
    let mut shell = Shell::new();
    shell.serve("nerve up").await;
    shell.run(&Page::read(path)).await;
}

#[test]
fn links_lead_to_a_file_and_a_heading() {
    let pages = Page::all();
    assert!(pages.len() > 60, "{} pages", pages.len());
    let mut broken = Vec::new();
    for page in &pages {
        let folder = checkout().join(&page.path);
        let folder = folder.parent().expect("a page is in a folder");
        for (line, link) in page.links() {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { checkout().join(&page.path) } else { folder.join(path) };
            let is_there = target.exists();
            let has_anchor = || {
                let text = std::fs::read_to_string(&target).unwrap_or_default();
                Page { path: link.to_owned(), text }.anchors().iter().any(|known| known == anchor)
            };
            if !is_there || !anchor.is_empty() && !has_anchor() {
                broken.push(format!("{}:{line}: {link}", page.path));
            }
        }
    }
    assert!(broken.is_empty(), "{} links lead nowhere:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn commands_of_every_page_are_run_or_say_why_not() {
    let mut not_run = Vec::new();
    let mut with_commands = BTreeSet::new();
    for page in Page::all() {
        for block in page.blocks().into_iter().filter(|block| block.language == "sh") {
            match block.note {
                Some(Note::NotRun(why)) => not_run.push(format!("{}:{}: {why}", page.path, block.line)),
                _ => with_commands.extend([page.path.clone()]),
            }
        }
    }
    let known: BTreeSet<String> =
        RUN_PAGES.into_iter().chain(OTHER_PAGES.map(|(path, _)| path)).map(str::to_owned).collect();
    let missing: Vec<_> = with_commands.difference(&known).collect();
    assert!(missing.is_empty(), "no test runs the commands of {missing:?}");
    let stale: Vec<_> = known.difference(&with_commands).collect();
    assert!(stale.is_empty(), "no commands in {stale:?}");
    assert!(not_run.len() <= MAX_BLOCKS_NOT_RUN, "{} blocks are not run:\n{}", not_run.len(), not_run.join("\n"));
}

#[test]
fn tables_on_the_pages_are_valid_manifests() {
    let mut tables = 0;
    for page in Page::all() {
        let blocks = page.blocks().into_iter().filter(|block| block.language == "toml");
        for block in blocks.filter(|block| !block.text.starts_with("[gateway.")) {
            if let Err(error) = nerve_core::Manifest::parse(&block.text) {
                panic!("{}:{}: {error}", page.path, block.line);
            }
            tables += 1;
        }
    }
    assert!(tables > 15, "{tables} tables");
}

#[tokio::test]
async fn readme_runs_as_written() {
    run("README.md").await;
}

#[tokio::test]
async fn tutorial_runs_as_written() {
    run("functions/tutorial.md").await;
}

#[tokio::test]
async fn guide_to_a_pipeline_runs_as_written() {
    run("functions/guides/pipeline.md").await;
}

#[tokio::test]
async fn guide_to_stripe_runs_as_written() {
    run("functions/guides/stripe.md").await;
}

#[tokio::test]
async fn guide_to_outbound_webhooks_runs_as_written() {
    run("functions/guides/outbound-webhooks.md").await;
}

#[tokio::test]
async fn guide_to_failed_events_runs_as_written() {
    run("functions/guides/failed-events.md").await;
}

#[tokio::test]
async fn guide_to_replacing_a_step_runs_as_written() {
    run("functions/guides/replace-a-step.md").await;
}

#[tokio::test]
async fn guide_to_an_own_model_runs_as_written() {
    run("functions/guides/own-model.md").await;
}

#[tokio::test]
async fn guide_to_http_and_keys_runs_as_written() {
    run("platform/guides/http-keys.md").await;
}

#[tokio::test]
async fn guide_to_tenants_runs_as_written() {
    run("platform/guides/tenants.md").await;
}

#[tokio::test]
async fn guide_to_rotation_runs_as_written() {
    run("platform/guides/rotate.md").await;
}

#[tokio::test]
async fn guide_to_an_own_nats_runs_as_written() {
    run("deploy/guides/own-nats.md").await;
}

#[tokio::test]
async fn guide_to_three_machines_runs_as_written() {
    run("deploy/guides/three-machines.md").await;
}

#[tokio::test]
async fn guide_to_systemd_runs_as_written() {
    run("deploy/guides/systemd.md").await;
}

#[tokio::test]
async fn reference_pages_run_as_written() {
    run("platform/reference/settings.md").await;
    run("functions/onnx/README.md").await;
}

#[tokio::test]
async fn pages_of_examples_run_as_written() {
    for name in ["agentic", "pipeline", "reactive", "streaming"] {
        run_with_server(&format!("functions/examples/{name}/README.md")).await;
    }
}
