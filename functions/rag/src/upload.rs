//! Parses uploaded documents.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use nerve_core::Event;
use nerve_events::documents::{DEFAULT_COLLECTION, Document, DocumentUploaded};

/// An uploaded document, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UploadedDocument {
    /// Identity and metadata; `version` and `digest` are empty.
    pub(crate) document: Document,
    /// Name given by the sender; empty if none.
    pub(crate) name: String,
    /// Media type given by the sender.
    pub(crate) media_type: Option<String>,
    /// Content in bytes.
    pub(crate) content: Bytes,
    /// Whether the sender sent it as text.
    pub(crate) sent_as_text: bool,
}

impl UploadedDocument {
    /// Reads an event: JSON with `text` or `data`, or the document itself as the body.
    ///
    /// # Errors
    /// Tells the sender which part of the event is invalid.
    pub(crate) fn read(event: &Event) -> Result<Self, String> {
        let mut bytes = None;
        let upload: DocumentUploaded = if event.is_json() {
            serde_json::from_slice(&event.data).map_err(|error| format!("its data is not a document: {error}"))?
        } else {
            bytes = Some(event.data.clone());
            DocumentUploaded { media_type: event.content_type.clone(), ..DocumentUploaded::default() }
        };
        if let Some(data) = &upload.data {
            let decoded = BASE64_STANDARD.decode(data).map_err(|error| format!("its `data` is not Base64: {error}"))?;
            bytes = Some(decoded.into());
        }
        let name = upload.name.or_else(|| event.subject.clone()).unwrap_or_default();
        let (content, sent_as_text) = match (upload.text, bytes) {
            (Some(text), _) => (text.into(), true),
            (None, Some(bytes)) => (bytes, false),
            (None, None) => return Err("its data has neither `text` nor `data`".to_owned()),
        };
        let named = (!name.is_empty()).then(|| name.clone());
        let document = upload.document.or_else(|| event.subject.clone()).or(named).unwrap_or_else(|| event.id.clone());
        let nanoseconds = event.time.map(|time| time.unix_timestamp_nanos()).unwrap_or_default();
        Ok(Self {
            document: Document {
                collection: upload.collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned()),
                name: if name.is_empty() { document.clone() } else { name.clone() },
                document,
                version: String::new(),
                digest: String::new(),
                uploaded_at: i64::try_from(nanoseconds).unwrap_or_default(),
                metadata: upload.metadata,
            },
            name,
            media_type: upload.media_type,
            content,
            sent_as_text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::{Value, json};

    fn event(media: &str, data: impl AsRef<[u8]>) -> Event {
        let event = Event::new("e1", "/test", EventType::parse("document.uploaded").unwrap());
        event.with_data(media, data.as_ref().to_vec())
    }

    fn json_event(data: &Value) -> Event {
        event("application/json", serde_json::to_vec(data).unwrap())
    }

    #[test]
    fn upload_is_json_or_a_plain_body() {
        let data = json!({"name": "guide.md", "text": "# A\n\nb", "metadata": {"team": "x"}});
        let uploaded = UploadedDocument::read(&json_event(&data)).unwrap();
        assert_eq!((uploaded.document.document.as_str(), uploaded.sent_as_text), ("guide.md", true));
        assert_eq!(
            (uploaded.document.collection.as_str(), &uploaded.document.metadata["team"]),
            ("default", &json!("x"))
        );
        let plain = UploadedDocument::read(&event("text/plain", "a text")).unwrap();
        assert_eq!((plain.document.document.as_str(), &plain.content[..]), ("e1", &b"a text"[..]));
        let data = json!({"document": "d", "data": BASE64_STANDARD.encode("a text"), "name": "a.txt"});
        assert_eq!(UploadedDocument::read(&json_event(&data)).unwrap().content, "a text");
    }

    #[test]
    fn invalid_upload_is_rejected_with_its_reason() {
        for (event, expected) in [
            (json_event(&json!({"name": "a"})), "neither `text` nor `data`"),
            (json_event(&json!([1])), "not a document"),
            (json_event(&json!({"data": "%"})), "not Base64"),
        ] {
            let why = UploadedDocument::read(&event).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }
}
