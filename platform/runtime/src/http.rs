//! Runs a function that is an HTTP service.
//!
//! # The exchange
//! Each event is posted to the manifest's `url` as a CloudEvent in HTTP binary mode: attributes in `ce-*` headers,
//! the body unchanged. The response determines the outcome of the event:
//!
//! | response | outcome |
//! |---|---|
//! | 2xx, no body and no `ce-` header | finished, nothing to publish |
//! | 2xx, a CloudEvent (binary, structured or batch mode) | publish it; id, source and time are set by Nerve |
//! | 408, 425, 429, 5xx, or no connection | retry by the schedule, or after `Retry-After`, a day at most |
//! | anything else | the event can never succeed: it is dead-lettered |
//! | nothing within `timeout` | a timeout: retry by the schedule |
//!
//! Redirects are not followed. The events of a batch are posted concurrently. `memory`, `env` and `secrets` do not
//! apply to a service, which has its own.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use nerve_core::{
    Context, Deployment, Emission, Event, Fault, Function, FunctionError, Host, LoadError, Outcome,
    event::{BATCH_MEDIA_TYPE, PARTITION_KEY, STRUCTURED_MEDIA_TYPE},
    limits,
    manifest::RuntimeSpec,
    redact,
};
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Maximum size of a response.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Maximum length of an error response quoted in a message.
const MAX_QUOTED_BYTES: usize = 200;

/// Posts events to services; connections are pooled.
pub struct HttpHost {
    client: Client,
}

impl HttpHost {
    /// A host with its own connection pool.
    pub fn new() -> Result<Self, LoadError> {
        // The first caller installs the provider; a second installation is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().redirect(Policy::none()).build();
        Ok(Self { client: client.map_err(|error| LoadError::failed("making an HTTP client", error))? })
    }
}

#[async_trait]
impl Host for HttpHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let RuntimeSpec::Http { url } = &deployment.spec.run else {
            let message = format!("`{}` is not an HTTP service; this host runs http", deployment.name);
            return Err(LoadError::Invalid(message));
        };
        let (client, shown) = (self.client.clone(), redact::urls(url).into_owned());
        let service = Service { client, url: url.clone(), shown, timeout: deployment.spec.timeout };
        Ok(Arc::new(service))
    }
}

struct Service {
    client: Client,
    url: String,
    /// The URL without credentials, for messages.
    shown: String,
    timeout: Duration,
}

#[async_trait]
impl Function for Service {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.call(event))).await
    }
}

impl Service {
    async fn call(&self, event: &Event) -> Outcome {
        match tokio::time::timeout(self.timeout, self.exchange(event)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let message =
                    format!("{} did not answer within {:?} (`timeout` in nerve.toml)", self.shown, self.timeout);
                Err(FunctionError::new(Fault::Timeout, message))
            }
        }
    }

    async fn exchange(&self, event: &Event) -> Outcome {
        let mut request = self.client.post(&self.url).body(event.data.clone());
        for (name, value) in event.to_headers() {
            request = request.header(name.as_ref(), value.as_ref());
        }
        let answer = request.send().await.map_err(|error| self.unreachable(error))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = self.read(answer).await?;
        if !status.is_success() {
            return Err(self.refusal(status, &headers, &body));
        }
        if body.is_empty() && !announces_event(&headers) {
            return Ok(Vec::new());
        }
        emissions(&headers, body).map_err(|why| {
            let message = format!("{} answered {status} with a body that is no CloudEvent: {why}", self.shown);
            FunctionError::new(Fault::Invalid, message)
        })
    }

    async fn read(&self, mut answer: Response) -> Result<Bytes, FunctionError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(error))? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                let message = format!("{} answered more than {} MiB", self.shown, MAX_RESPONSE_BYTES >> 20);
                return Err(FunctionError::new(Fault::Invalid, message));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn unreachable(&self, error: reqwest::Error) -> FunctionError {
        let error = error.without_url();
        let mut message = format!("{} could not be asked: {error}", self.shown);
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            message.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        FunctionError::new(Fault::Retry { after: None }, message)
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> FunctionError {
        let told = String::from_utf8_lossy(body.get(..MAX_QUOTED_BYTES.min(body.len())).unwrap_or_default());
        let message = format!("{} answered {status}: {told}", self.shown);
        let later = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
        let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = asked.and_then(|value| limits::retry_after(value, SystemTime::now()));
        FunctionError::new(if later { Fault::Retry { after } } else { Fault::Invalid }, message)
    }
}

/// Returns whether a response without a body is intended as a CloudEvent: one without `ce-type` is an error, not an empty
/// result.
fn announces_event(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    headers.keys().any(|name| name.as_str().starts_with("ce-")) || media.starts_with(b"application/cloudevents")
}

/// The output events of a response. Only type, body, media type, subject and partition key count, so a response in
/// binary mode requires neither id nor source.
fn emissions(headers: &HeaderMap, body: Bytes) -> Result<Vec<Emission>, String> {
    let unreadable = |(name, value): (&HeaderName, &HeaderValue)| {
        let is_attribute = name.as_str().starts_with("ce-") || name == CONTENT_TYPE;
        (is_attribute && value.to_str().is_err()).then(|| format!("the header {name} is not ASCII: percent-encode it"))
    };
    if let Some(why) = headers.iter().find_map(unreadable) {
        return Err(why);
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with(BATCH_MEDIA_TYPE) {
        let events = Event::batch_from_json(&body).map_err(|error| error.to_string())?;
        return Ok(events.into_iter().map(emission).collect());
    }
    if content_type.starts_with(STRUCTURED_MEDIA_TYPE) {
        return Ok(vec![emission(Event::from_json(&body).map_err(|error| error.to_string())?)]);
    }
    let set_by_nerve = [("ce-specversion", "1.0"), ("ce-id", "-"), ("ce-source", "-")];
    let absent = set_by_nerve.into_iter().filter(|(name, _)| !headers.contains_key(*name));
    let sent = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let event = Event::from_headers(sent.chain(absent), body).map_err(|error| error.to_string())?;
    Ok(vec![emission(event)])
}

fn emission(mut event: Event) -> Emission {
    let partition_key = event.extensions.remove(PARTITION_KEY);
    Emission { ty: event.ty, data: event.data, content_type: event.content_type, subject: event.subject, partition_key }
}

#[cfg(test)]
mod tests;
