//! An event out, acknowledged by JetStream before anybody is told that it is stored.

use super::{Bus, answers};
use crate::event_types;
use async_nats::{
    HeaderMap, HeaderName, HeaderValue, header,
    jetstream::{
        self, ErrorCode,
        context::{self, PublishErrorKind},
    },
};
use bytes::Bytes;
use nerve_core::{Event, Subject, event::encode_value};
use std::borrow::Cow;

/// Where an event was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its sequence in the stream; for a duplicate, that of the first one.
    pub sequence: u64,
    /// Whether the stream already had it.
    pub duplicate: bool,
}

/// Why an event was not stored, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker did not acknowledge: publish it again, under the same id.
    #[error("JetStream did not acknowledge the event")]
    Unavailable(#[source] async_nats::Error),
    /// This event cannot be published as it is.
    #[error("the event cannot be published: {0}")]
    Invalid(String),
}

impl Bus {
    /// Publishes an event from outside to `events.<type>`, once an id within the dedupe window.
    pub async fn publish(&self, event: &Event) -> Result<Published, PublishError> {
        self.publish_as(event, &message_id_of(event)).await
    }

    /// What carries an event from outside, which may be published as it is; with its message id.
    pub(super) async fn to_checked_message(&self, event: &Event) -> Result<(HeaderMap, Bytes), PublishError> {
        event_types::check(event).map_err(PublishError::Invalid)?;
        let (mut headers, body) = self.to_message(event).await?;
        headers.insert(header::NATS_MESSAGE_ID, encode_value(&message_id_of(event)).as_ref());
        Ok((headers, body))
    }

    /// Publishes an event to `events.<type>` under a message id of the caller's; a part of an answer to the answer.
    pub async fn publish_as(&self, event: &Event, message_id: &str) -> Result<Published, PublishError> {
        event_types::check(event).map_err(PublishError::Invalid)?;
        let (headers, body) = self.to_message(event).await?;
        if let Some((answer, logged)) = answers::place_of(event)? {
            // First, so that no part that this event leads to can stand before it.
            let part = self.publish_message(&answer, headers.clone(), body.clone(), message_id);
            let published = Box::pin(part).await?;
            if !logged {
                return Ok(published);
            }
        }
        self.publish_message(&event.ty.subject(), headers, body, message_id).await
    }

    /// The headers and body that carry `event`; a body over the limit is stored and referred to.
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
        if event.data.len() <= self.largest_body() {
            return Ok((headers, event.data.clone()));
        }
        // Boxed, since it is rare and far larger than the rest of this future, which is moved for every event.
        let reference = Box::pin(self.store_body(&event.data)).await?;
        headers.insert(super::body::HEADER, reference.as_str());
        Ok((headers, Bytes::new()))
    }

    pub(super) async fn publish_message(
        &self,
        subject: &Subject,
        mut headers: HeaderMap,
        body: Bytes,
        message_id: &str,
    ) -> Result<Published, PublishError> {
        // While the connection is down the client would buffer, and the caller wait for nothing.
        if !self.connected() {
            return Err(PublishError::Unavailable("there is no connection to NATS".into()));
        }
        headers.insert(header::NATS_MESSAGE_ID, encode_value(message_id).as_ref());
        let mut reconnects = self.reconnects();
        let sent = self.jetstream.publish_with_headers(subject.as_str().to_owned(), headers, body).await;
        let acknowledged = match sent {
            Ok(acknowledgement) => tokio::select! {
                biased;
                acknowledged = acknowledgement.into_future() => acknowledged,
                // An acknowledgement over the old connection does not come over the new one: better try again now
                // than wait it out.
                Ok(()) = reconnects.changed() => {
                    return Err(PublishError::Unavailable("the connection was lost before the acknowledgement".into()));
                }
            },
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(ack) => Ok(Published { sequence: ack.sequence, duplicate: ack.duplicate }),
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Err(PublishError::Invalid("its attributes are larger than the broker's payload limit".to_owned()))
            }
            Err(error) if is_too_large(&error) => {
                Err(PublishError::Invalid("it is larger than its stream takes: max_msg_size bounds that".to_owned()))
            }
            Err(error) => Err(self.refusal(subject, error)),
        }
    }
}

/// Whether an event goes elsewhere too, or only elsewhere.
pub(super) fn has_other_place(event: &Event) -> bool {
    !matches!(answers::place_of(event), Ok(None))
}

/// Both parts are of any length and content, and an id is unique within its source only.
fn message_id_of(event: &Event) -> String {
    [event.source.as_str(), "#", event.id.as_str()].concat()
}

/// Whether the stream will never take it, however often it is tried.
fn is_too_large(error: &context::PublishError) -> bool {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    let too_large = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
    refused.is_some_and(|refused| too_large.contains(&refused.error_code()))
}
