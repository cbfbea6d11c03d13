//! Publishes an event, and waits for JetStream's acknowledgement before it counts as stored.

use super::{Bus, answers};
use async_nats::{
    HeaderMap, HeaderName, HeaderValue, header,
    jetstream::{
        self, ErrorCode,
        context::{self, PublishErrorKind},
    },
};
use bytes::Bytes;
use nerve_core::{Event, Identity, Origin, Subject};
use std::borrow::Cow;

/// The stored position of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its sequence in the stream; for a duplicate, that of the original.
    pub sequence: u64,
    /// Whether the stream had it already.
    pub duplicate: bool,
}

/// The reason why an event was not stored, or may not be stored.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker did not acknowledge: publish it again, under the same id.
    #[error("JetStream did not acknowledge the event")]
    Unavailable(#[source] async_nats::Error),
    /// The event is invalid.
    #[error("the event cannot be published: {0}")]
    Invalid(String),
}

impl Bus {
    /// Validates an event's data against its type, and converts it to a message with its message id.
    pub(super) async fn to_checked_message(
        &self,
        event: &Event,
        id: Identity,
    ) -> Result<(HeaderMap, Bytes), PublishError> {
        nerve_events::check(event).map_err(PublishError::Invalid)?;
        let (mut headers, body) = self.to_message(event).await?;
        headers.insert(header::NATS_MESSAGE_ID, id.to_string());
        Ok((headers, body))
    }

    /// Publishes an event made by Nerve, which its `source` and `id` identify.
    pub async fn publish_own(&self, event: &Event) -> Result<Published, PublishError> {
        self.publish(event, Origin::nerve().identify(event)).await
    }

    /// Publishes an event to `events.<type>`, and parts of an answer to their answer. An identity is stored once within the dedupe
    /// window.
    pub async fn publish(&self, event: &Event, id: Identity) -> Result<Published, PublishError> {
        nerve_events::check(event).map_err(PublishError::Invalid)?;
        if let Some(published) = self.legacy_publication(event) {
            return Ok(published);
        }
        let (headers, body) = self.to_message(event).await?;
        let Some(answer) = answers::answer_subject(event)? else {
            return self.publish_message(&event.ty.subject(), headers, body, id).await;
        };
        // The log first: no other run can replace its content.
        let logged = match answers::is_logged(event) {
            true => {
                let subject = event.ty.subject();
                Some(Box::pin(self.publish_message(&subject, headers.clone(), body.clone(), id)).await?)
            }
            false => None,
        };
        let part = Box::pin(self.publish_message(&answer, headers, body, id)).await?;
        Ok(logged.unwrap_or(part))
    }

    /// The headers and body of an event; a body over the limit is stored and referenced.
    pub(super) async fn to_message(&self, event: &Event) -> Result<(HeaderMap, Bytes), PublishError> {
        let mut headers = HeaderMap::new();
        for (name, value) in event.to_headers() {
            let value = value
                .parse::<HeaderValue>()
                .map_err(|_| PublishError::Invalid(format!("its attribute `{name}` holds a line break")))?;
            match name {
                Cow::Borrowed(name) => headers.insert(HeaderName::from_static(name), value),
                Cow::Owned(name) => headers.insert(name.as_str(), value),
            }
        }
        if event.data.len() <= self.max_body_bytes() {
            return Ok((headers, event.data.clone()));
        }
        // Boxed: rare, and far larger than the rest of this future, which is moved for every event.
        let reference = Box::pin(self.store_body(&event.data)).await?;
        headers.insert(super::large_body::DATAREF_HEADER, reference.as_str());
        Ok((headers, Bytes::new()))
    }

    pub(super) async fn publish_message(
        &self,
        subject: &Subject,
        mut headers: HeaderMap,
        body: Bytes,
        id: Identity,
    ) -> Result<Published, PublishError> {
        // While disconnected the client would buffer, and the caller would wait in vain.
        if !self.connected() {
            return Err(PublishError::Unavailable("not connected to NATS".into()));
        }
        headers.insert(header::NATS_MESSAGE_ID, id.to_string());
        let mut reconnects = self.reconnects();
        let sent = self.jetstream.publish_with_headers(subject.as_str().to_owned(), headers, body).await;
        let acknowledged = match sent {
            Ok(acknowledgement) => tokio::select! {
                biased;
                acknowledged = acknowledgement.into_future() => acknowledged,
                // An acknowledgement for the old connection does not arrive on the new one: retry now
                // instead of waiting for the timeout.
                Ok(()) = reconnects.changed() => {
                    return Err(PublishError::Unavailable("the connection was lost before the acknowledgement".into()));
                }
            },
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(ack) => {
                self.space().stored();
                Ok(Published { sequence: ack.sequence, duplicate: ack.duplicate })
            }
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(PublishError::Invalid("its attributes are larger than the broker's payload limit".to_owned()))
            }
            Err(error) if is_too_large(&error) => {
                Err(PublishError::Invalid("it exceeds max_msg_size of its stream".to_owned()))
            }
            Err(error) => Err(self.refusal(subject, error)),
        }
    }
}

/// Returns whether an event goes to another stream too, or only there.
pub(super) fn has_other_destination(event: &Event) -> bool {
    !matches!(answers::answer_subject(event), Ok(None))
}

/// Returns whether the stream can never store the message.
fn is_too_large(error: &context::PublishError) -> bool {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    let too_large = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
    refused.is_some_and(|refused| too_large.contains(&refused.error_code()))
}
