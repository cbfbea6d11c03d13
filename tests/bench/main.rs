//! What Nerve costs and what it saves, as ratios: against the same work done by hand and against peers, on the same
//! machine, in the same run.
//!
//! 1. A no-op component through a worker, against a bare async-nats loop: pull, publish with ack, ack.
//! 2. Verified GitHub webhooks of 1 KiB to JetStream's ack, against a bare axum handler that publishes the body with ack, and
//!    against one that publishes the same message as the gateway does.
//!
//! 3. Embeddings: events through `onnx/embed` against a raw loop in Python, requests against Python's servers.
//!
//! 4. The index of documents: the time of a search, and its recall against an exact one.
//!
//! 5. Answers by the whole pipeline: the time to the first token.
//!
//! Each pair is alternated (A B A B …), and the ratio is the median of those of the rounds: a machine that is slow for a
//! while spoils both sides of a round alike. Only the ratios travel between machines. Run it by `make bench`.
//!
//! # Layout
//! - [`functions`]: the first pair.
//! - [`webhooks`]: the second pair, with its bare handler, which runs as a child (`bench bare URL`).
//! - [`embeddings`]: the third, with its peers in `python/`.
//! - [`index`]: the fourth.
//! - [`answers`]: the fifth.
//! - [`load`]: the HTTP client, which is written by hand so as to take little of what is measured.

mod answers;
mod embeddings;
mod functions;
mod index;
mod load;
mod webhooks;

use nerve_tests::Nats;

/// Rounds of each side.
const ROUNDS: usize = 5;

/// What each round of a side gave, a second.
#[derive(Default)]
struct Side {
    rates: Vec<f64>,
}

impl Side {
    fn median(&self) -> f64 {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    fn show(&self, name: &str, unit: &str) {
        let rounds: Vec<String> = self.rates.iter().map(|rate| format!("{rate:.0}")).collect();
        println!("  {name:<28} {:>8.0} {unit} (rounds: {})", self.median(), rounds.join(" "));
    }
}

/// Prints a pair and its ratio.
fn compare(title: &str, unit: &str, nerve: (&str, &Side), bare: (&str, &Side)) {
    println!("{title}");
    nerve.1.show(nerve.0, unit);
    bare.1.show(bare.0, unit);
    let ratios = nerve.1.rates.iter().zip(&bare.1.rates).map(|(nerve, bare)| nerve / bare);
    let ratios = Side { rates: ratios.collect() };
    let rounds: Vec<String> = ratios.rates.iter().map(|ratio| format!("{ratio:.2}")).collect();
    println!("  ratio                        {:>8.2} (rounds: {})\n", ratios.median(), rounds.join(" "));
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let all = ["functions", "webhooks", "embeddings", "index", "answers"];
    let chosen = match args.as_slice() {
        ["bare", url] => return webhooks::serve_bare(url).await,
        [] => all.to_vec(),
        some => some.to_vec(),
    };
    if let Some(other) = chosen.iter().find(|other| !all.contains(other)) {
        panic!("`{other}` is none of {}; all are run when nothing is said", all.join(", "));
    }
    let nats = Nats::start().await;
    if chosen.contains(&"functions") {
        functions::compare_with_raw_loop(&nats).await;
    }
    if chosen.contains(&"webhooks") {
        webhooks::compare_with_bare_handler(&nats).await;
    }
    if chosen.contains(&"embeddings") {
        embeddings::compare_embeddings(&nats).await;
    }
    if chosen.contains(&"index") {
        index::measure();
    }
    if chosen.contains(&"answers") {
        answers::measure().await;
    }
}
