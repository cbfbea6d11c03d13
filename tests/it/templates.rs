//! Templates of sinks are programs, as those of language models are ([`crate::writer`]): what they do costs one event.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Receiver, Streams, eventually, seconds};
use serde_json::{Value, json};

/// Nests a list so deeply that the end of it fills a stack of any size.
pub(crate) const NEST: &str = "{% set ns = namespace(list=[]) %}{% for a in range(300) %}{% for b in range(300) %}\
                    {% set ns.list = [ns.list] %}{% endfor %}{% endfor %}";
/// Writes a value that contains itself.
pub(crate) const CONTAIN_ITSELF: &str = "{% set ns = namespace(it=0) %}{% set ns.it = ns %}{{ ns }}";
/// Adds up lists of lists that are longer than any time.
const DOUBLE: &str = "{% set ns = namespace(list=[1]) %}{% for a in range(60) %}{% set ns.list = ns.list + ns.list %}{% endfor %}\
     {{ ns.list | length }}";

/// A table of a sink for events of the type `TYPE.asked`.
fn sink(name: &str, url: &str, template: &str) -> String {
    format!(
        "[sink.{name}]\nurl = \"{url}\"\non = [\"events.{name}.asked\"]\nallow = [\"127.0.0.0/8\"]\ncontent_type = \"text/plain\"\n\
         template = \"\"\"{template}\"\"\"\n"
    )
}

#[tokio::test]
async fn sink_template_that_does_not_end_costs_its_own_event() {
    let hostile = [
        ("nest", format!("{NEST}done"), "nested too deeply"),
        ("itself", CONTAIN_ITSELF.to_owned(), "nested too deeply"),
        ("double", DOUBLE.to_owned(), "`template` cannot be rendered: it "),
    ];
    let (nerve, endpoint) = (Nerve::up().await, Receiver::start([]).await);
    let (server, streams) = (nerve.server(), Streams::connect(&nerve.nats).await);
    let mut manifest = sink("good", &endpoint.url, "{{ data.n }}");
    for (name, template, _) in &hostile {
        manifest += &sink(name, &endpoint.url, template);
    }
    nerve.cli().deploy(Folder::new(&manifest).path()).await;
    // One that cannot be read at all is not deployed.
    let chain = Folder::new(&sink("chain", &endpoint.url, &format!("{{{{ data{} }}}}", ".a".repeat(100_000))));
    let refused = nerve.cli().run(&["deploy", &chain.path().display().to_string()]).await.failed(1);
    assert!(refused.stderr.contains("nested too deeply"), "{refused:?}");
    for (name, ..) in &hostile {
        post_event(&nerve, &format!("{name}.asked"), name, "{}").await;
        post_event(&nerve, "good.asked", &format!("good-{name}"), &json!({"n": name}).to_string()).await;
    }
    endpoint.reaches(hostile.len(), seconds(30)).await;
    let listed: Value = eventually("each is told", seconds(60), || async {
        let listed = nerve.cli().run(&["list", "--output", "json"]).await.ok().json();
        let dead = streams.count("DEAD", ">").await;
        (dead == 3).then_some(listed)
    })
    .await;
    let letters = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().stdout;
    for (name, _, told) in &hostile {
        assert!(format!("{letters}{listed}{}", nerve.daemon.stderr()).contains(told), "{name}: {letters} {listed}");
    }
    assert_eq!(nerve.server(), server, "the server process is the same");
}
