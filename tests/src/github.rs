//! GitHub's webhooks without node: any body, signed right or wrong.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The secret that the tests' GitHub source has.
pub const SECRET: &str = "a secret that only GitHub and this test know";

/// The manifest's table for it.
pub const SOURCE: &str = "[source.github]\nprovider = \"github\"\nsecrets = [\"GITHUB_WEBHOOK_SECRET\"]\n";

/// `X-Hub-Signature-256` of a body.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes any key");
    mac.update(body);
    format!("sha256={}", HEXLOWER.encode(&mac.finalize().into_bytes()))
}

/// A delivery of `event` that is signed with [`SECRET`].
pub fn delivery(url: &str, event: &str, id: &str, body: impl Into<Bytes>) -> reqwest::RequestBuilder {
    let body = body.into();
    unsigned(url, event, id).header("X-Hub-Signature-256", signature(SECRET, &body)).body(body)
}

/// A delivery without body and signature.
pub fn unsigned(url: &str, event: &str, id: &str) -> reqwest::RequestBuilder {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json");
    request.header("X-GitHub-Event", event).header("X-GitHub-Delivery", id)
}
