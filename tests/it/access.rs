//! Who may call the API, and where it may listen.

use crate::problem;
use nerve_tests::{Nerve, nerve, nerve::Options};

const KEY: &str = "a-key-of-more-than-16-characters";

/// Starts `nerve up` with a listener on every address; it must end by itself.
async fn up_on_every_address(envs: &[(&str, &str)]) -> nerve::Output {
    let data = tempfile::tempdir().unwrap();
    let mut command = nerve::command(["up", "--listen", "0.0.0.0:0", "--nats-listen", "127.0.0.1:0", "--data"]);
    command.arg(data.path()).envs(envs.iter().copied());
    nerve::call(command, "").await
}

#[tokio::test]
async fn without_a_key_only_loopback_is_bound() {
    let refused = up_on_every_address(&[]).await;
    assert!(matches!(refused.code, Some(1 | 2)), "{refused:?}");
    for said in ["0.0.0.0", "key", "NERVE_GATEWAY_KEYS", "127.0.0.1"] {
        assert!(refused.stderr.contains(said), "the cause and the next step: {refused:?}");
    }
}

#[tokio::test]
async fn with_a_key_the_api_asks_for_it_and_webhooks_and_health_do_not() {
    let envs = vec![("NERVE_GATEWAY_KEYS".to_owned(), KEY.to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let client = reqwest::Client::new();
    let event = r#"{"specversion":"1.0","id":"1","source":"/s","type":"a.b"}"#;
    let post = || {
        let request = client.post(nerve.url("/v1/events")).header("content-type", "application/cloudevents+json");
        request.body(event)
    };
    let keyless = problem(post().send().await.unwrap()).await;
    assert_eq!(keyless.0, 401);
    for wrong in [format!("Bearer {KEY}x"), format!("Bearer {}", &KEY[1..]), format!("Basic {KEY}"), "Bearer".into()] {
        assert_eq!(problem(post().header("authorization", &wrong).send().await.unwrap()).await.0, 401, "{wrong}");
    }
    let response = post().bearer_auth(KEY).send().await.unwrap();
    assert!(response.status().is_success(), "{response:?}");
    for path in ["/v1/events", "/v1/functions"] {
        assert_eq!(reqwest::get(nerve.url(path)).await.unwrap().status(), 401, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(reqwest::get(nerve.url(path)).await.unwrap().status(), 200, "{path}");
    }
    let hook = client.post(nerve.url("/hooks/nobody")).body("{}").send().await.unwrap();
    assert_eq!(problem(hook).await.0, 404, "a webhook is verified by its signature, not by a key");
}

#[tokio::test]
async fn a_configuration_with_an_unknown_or_a_wrong_value_is_refused_before_anything_binds() {
    for (variable, value, said) in [
        ("NERVE_GATEWAY_COLOUR", "red", "colour"),
        ("NERVE_WORKER_ACK_WAIT", "soon", "soon"),
        ("NERVE_GATEWAY_KEYS", "short", "gateway.keys"),
    ] {
        let refused = up_on_every_address(&[(variable, value)]).await;
        assert!(matches!(refused.code, Some(1 | 2)), "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}
