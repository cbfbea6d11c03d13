//! An event out, acknowledged by JetStream before anybody is told that it is stored.

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
use nerve_events as event_types;
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
    /// The message of an event whose data fits its type, with its message id.
    pub(super) async fn to_checked_message(
        &self,
        event: &Event,
        id: Identity,
    ) -> Result<(HeaderMap, Bytes), PublishError> {
        event_types::check(event).map_err(PublishError::Invalid)?;
        let (mut headers, body) = self.to_message(event).await?;
        headers.insert(header::NATS_MESSAGE_ID, id.to_string());
        Ok((headers, body))
    }

    /// Publishes an event that Nerve itself makes; its `source` and `id` identify it.
    pub async fn publish_own(&self, event: &Event) -> Result<Published, PublishError> {
        self.publish(event, Origin::nerve().identify(event)).await
    }

    /// Publishes an event to `events.<type>`; a part of an answer to its answer. One identity is stored once within the dedupe
    /// window.
    pub async fn publish(&self, event: &Event, id: Identity) -> Result<Published, PublishError> {
        event_types::check(event).map_err(PublishError::Invalid)?;
        if let Some(published) = self.stored_by_older(event) {
            return Ok(published);
        }
        let (headers, body) = self.to_message(event).await?;
        let Some(answer) = answers::answer_subject(event)? else {
            return self.publish_message(&event.ty.subject(), headers, body, id).await;
        };
        // The log first: what it has, no other run can replace.
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
        id: Identity,
    ) -> Result<Published, PublishError> {
        // While the connection is down the client would buffer, and the caller wait for nothing.
        if !self.connected() {
            return Err(PublishError::Unavailable("there is no connection to NATS".into()));
        }
        headers.insert(header::NATS_MESSAGE_ID, id.to_string());
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
            Ok(ack) => {
                self.space().stored();
                Ok(Published { sequence: ack.sequence, duplicate: ack.duplicate })
            }
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
    !matches!(answers::answer_subject(event), Ok(None))
}

/// Whether the stream will never take it, however often it is tried.
fn is_too_large(error: &context::PublishError) -> bool {
    let refused = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    let too_large = [ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM];
    refused.is_some_and(|refused| too_large.contains(&refused.error_code()))
}
