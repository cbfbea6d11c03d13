//! Requests to a source of any webhook provider.

use super::request::Request;
use nerve_core::{
    SourceSpec,
    function::Secret,
    manifest::{Provider, Verify},
};
use nerve_webhooks::Sample;
use time::OffsetDateTime;

/// The moment that the corpus is signed for.
const NOW: i64 = 1_760_000_000;

/// A request to a source.
pub struct WebhookInput {
    provider: Provider,
    sample: Sample,
}

impl WebhookInput {
    /// Reads a provider's name, a query, headers, an empty line and a body.
    pub fn read(data: &[u8]) -> Option<Self> {
        let Request { line, query, headers, body } = Request::read(data)?;
        let provider = Provider::built_in(line)?;
        let sample = Sample { headers, body, query: query.map(str::to_owned) };
        Some(Self { provider, sample })
    }

    /// Posts it; panics if it is taken in, since nobody knows the secret.
    pub fn try_out(&self) {
        self.to(&self.provider);
    }

    /// Posts it to a source of another provider.
    pub fn to(&self, provider: &Provider) {
        let Ok(now) = OffsetDateTime::from_unix_timestamp(NOW) else { return };
        let spec = SourceSpec {
            secrets: vec!["S".to_owned()],
            public_url: Some("https://n.example/hooks/s".to_owned()),
            topics: vec!["arn:aws:sns:eu-west-1:123456789012:orders".to_owned()],
            ..SourceSpec::new(provider.clone())
        };
        // Of each form that a provider's key may have, one that nothing in the corpus is signed with.
        let keys = ["nobody knows this secret", "whsec_bm9ib2R5IGtub3dzIHRoaXMgc2VjcmV0", &"d7".repeat(32), PUBLIC];
        for key in keys {
            let taken = self.sample.is_accepted(&spec, &[Secret::new(key)], now);
            assert!(!taken, "{} takes what nobody signed", provider.name());
        }
        // What lies behind the signature is read, too: the payload, its items, what is asked.
        let open = SourceSpec { verify: Verify::None, ..spec };
        self.sample.is_accepted(&open, &[], now);
    }
}

/// A public key on P-256, whose private half is thrown away.
const PUBLIC: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEKfpOYDgj6smo3EZnJ0amk+QwclVpg99WBNm/IuaVrmgyghXGh0YBDlZVGB+nnBWpU/7HboQKqZDwRbrppX6h2g==";

/// Posts a request to a source of the provider that it names.
pub fn run(data: &[u8]) {
    if let Some(posted) = WebhookInput::read(data) {
        posted.try_out();
    }
}
