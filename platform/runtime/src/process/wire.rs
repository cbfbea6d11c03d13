//! The lines of the protocol.

use base64::{Engine, prelude::BASE64_STANDARD};
use nerve_core::{Emission, EventType, Fault, FunctionError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest line: an event of 25 MB as base64, with room.
pub(super) const MAX_LINE: usize = 40 << 20;

/// One event to run.
#[derive(Serialize)]
pub(super) struct Call<'e> {
    pub(super) id: u64,
    pub(super) event: &'e RawValue,
}

/// One line of stdout.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) id: u64,
    pub(super) emit: Option<Emitted>,
    pub(super) error: Option<Failure>,
    pub(super) events: Option<Vec<Emitted>>,
}

/// What a function wants published.
#[derive(Deserialize)]
pub(super) struct Emitted {
    #[serde(rename = "type")]
    ty: String,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
    datacontenttype: Option<String>,
    subject: Option<String>,
    partitionkey: Option<String>,
}

/// How a function says that it failed.
#[derive(Deserialize)]
pub(super) struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Invalid,
    Retry,
}

impl From<Failure> for FunctionError {
    fn from(failure: Failure) -> Self {
        let fault = match failure.kind {
            Kind::Invalid => Fault::Invalid,
            Kind::Retry => Fault::Retry { after: None },
        };
        Self::new(fault, failure.message)
    }
}

impl Emitted {
    /// As the JSON event format has it: `data_base64` is bytes, a string of another media type is its text, and
    /// anything else is the JSON as written.
    pub(super) fn emission(self) -> Result<Emission, FunctionError> {
        let invalid = |why: String| {
            FunctionError::new(Fault::Invalid, format!("the function emitted an event that cannot be published: {why}"))
        };
        let ty = EventType::parse(self.ty).map_err(|error| invalid(error.to_string()))?;
        let json = self.datacontenttype.as_deref().is_none_or(|declared| declared.contains("json"));
        let data = match (self.data, self.data_base64) {
            (_, Some(text)) => BASE64_STANDARD
                .decode(text)
                .map_err(|error| invalid(format!("its data_base64 is not base64: {error}")))?,
            (Some(raw), None) => match serde_json::from_str::<String>(raw.get()) {
                Ok(text) if !json => text.into_bytes(),
                _ => raw.get().as_bytes().to_vec(),
            },
            (None, None) => Vec::new(),
        };
        Ok(Emission {
            ty,
            data: data.into(),
            content_type: self.datacontenttype,
            subject: self.subject,
            partition_key: self.partitionkey,
        })
    }
}
