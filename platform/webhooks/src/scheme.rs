//! Webhook schemes, as data: one description for the built-in providers and for `custom`.

use super::template::Template;
use nerve_core::manifest::{Algorithm, Encoding, KeyForm, Locator, TimestampUnit};

/// The webhook scheme of a sender.
#[derive(Debug, Clone, Copy)]
pub struct Scheme<'a> {
    /// The accepted signature schemes. A delivery may also have signatures of other schemes, which are ignored.
    pub signature_schemes: [Option<SignatureScheme<'a>>; 2],
    /// Locations of the delivery's id; the first that has a value is used. The first location is `{id}` in the signed content.
    pub id: [Option<ValueLocation<'a>>; 3],
    /// Locations of the event's type. The values of a row are joined by dots; a row without its first value is skipped.
    pub ty: [[Option<ValueLocation<'a>>; 2]; 2],
    /// The location of the event's subject.
    pub subject: Option<ValueLocation<'a>>,
    /// The form field with the JSON body, if the sender posts forms.
    pub form_field: Option<&'a str>,
    /// The query parameter with the hex SHA-256 of a body that is no form.
    pub body_digest: Option<&'a str>,
    /// The form of the signed URL.
    pub url: UrlForm,
    /// The array of events in a body.
    pub items: Option<Items<'a>>,
    /// The handshake of the sender.
    pub handshake: Option<Handshake<'a>>,
}

/// One signature scheme.
#[derive(Debug, Clone, Copy)]
pub struct SignatureScheme<'a> {
    /// The location of the signatures. Several in one header are separated by commas, semicolons or spaces.
    pub signature: ValueLocation<'a>,
    /// The prefix of each signature value.
    pub prefix: &'a str,
    pub algorithm: Algorithm,
    pub encoding: Encoding,
    pub key: KeyForm,
    /// The prefix of secrets of this scheme.
    pub key_prefix: KeyPrefix,
    /// The signed content: a template over `{body}`, `{timestamp}`, `{id}`, `{url}`, `{method}`, `{form}` and `{sns}`.
    pub signed: &'a str,
    /// The time of signing.
    pub timestamp: Option<(ValueLocation<'a>, TimestampUnit)>,
    /// The pointer and value that the body must have for this scheme to apply.
    pub guard_field: Option<(&'a str, &'a str)>,
}

/// The secrets of a signature scheme, selected by their prefix (`whsec_`, `whpk_`).
///
/// A public key must never be used as an HMAC key: it is public, so anybody could sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPrefix {
    /// Any secret.
    Any,
    /// Secrets with this prefix, or with none.
    Optional(&'static str),
    /// Secrets with this prefix only.
    Required(&'static str),
    /// Secrets without this prefix.
    Without(&'static str),
    /// No secret: the AWS certificate that the body refers to.
    Certificate,
}

/// The location of a value in a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueLocation<'a> {
    /// A header.
    Header(&'a str),
    /// A parameter of a header: `t` of `t=…,v1=…`.
    HeaderParameter(&'a str, &'a str),
    /// All headers with this prefix and a number.
    NumberedHeaders(&'a str),
    /// A JSON pointer into the body.
    Pointer(&'a str),
}

/// The form of a signed URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlForm {
    /// The configured URL.
    Plain,
    /// With or without the standard port.
    AnyPort,
    /// With the characters decoded that HubSpot decodes.
    Decoded,
}

/// An array of events in a body.
#[derive(Debug, Clone, Copy)]
pub struct Items<'a> {
    /// The JSON pointer of the array; empty if the body is the array.
    pub at: &'a str,
    /// The pointers, relative to an item, of the values that are joined to its id.
    pub id: [Option<&'a str>; 3],
    /// The pointer, relative to an item, of its type.
    pub ty: Option<&'a str>,
}

/// The handshake of a sender: a request that verifies or probes the URL and is no event.
#[derive(Debug, Clone, Copy)]
pub enum Handshake<'a> {
    /// The reply to a verified body with a text at `at` (and the value of `when`) is `{"<last token of at>": text}`.
    Echo {
        /// The pointer and value that identify such a body, if any.
        when: Option<(&'a str, &'a str)>,
        /// The pointer to the text.
        at: &'a str,
    },
    /// A verified interaction of type 1, or a webhook event of type 0.
    Discord,
    /// The reply to a verified body with the value of `when` is the text at `at` and its HMAC in hex.
    Zoom {
        /// The pointer and value that identify such a body.
        when: (&'a str, &'a str),
        /// The pointer to the text.
        at: &'a str,
    },
    /// An unsigned body announces the secret at this pointer.
    Notion {
        /// The pointer to the secret.
        at: &'a str,
    },
    /// The reply to a GET with `hub.verify_token` is its `hub.challenge`.
    Meta,
    /// A verified body requests to fetch a URL, which confirms the subscription.
    Sns,
    /// An OPTIONS request asks for permission to post.
    CloudEvents,
}

impl<'a> Scheme<'a> {
    /// Returns the JSON pointers of an event's id, type and subject.
    pub fn pointers(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let locations = self.id.into_iter().chain(self.ty.into_iter().flatten()).chain([self.subject]);
        locations.flatten().filter_map(|location| match location {
            ValueLocation::Pointer(pointer) => Some(pointer),
            _ => None,
        })
    }

    /// Whether JSON is accepted under any media type.
    pub fn ignores_media_type(&self) -> bool {
        matches!(self.handshake, Some(Handshake::Sns))
    }
}

impl<'a> SignatureScheme<'a> {
    /// Returns the segments of the signed content.
    pub fn template(&self) -> Template<'a> {
        Template::new(self.signed)
    }
}

impl<'a> ValueLocation<'a> {
    /// Converts a locator of a declared scheme.
    pub(super) fn of(locator: &'a Locator) -> Self {
        match locator {
            Locator::Header(name) => Self::Header(name),
            Locator::Pointer(pointer) => Self::Pointer(pointer),
        }
    }

    /// Parses `signature` of a declared scheme.
    pub(super) fn signatures(text: &'a str) -> Self {
        match text.strip_suffix('*') {
            Some(start) => Self::NumberedHeaders(start),
            None => Self::time(text),
        }
    }

    /// Parses `timestamp` of a declared scheme.
    pub(super) fn time(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text.starts_with('/') => Self::Pointer(text),
            Some((header, part)) => Self::HeaderParameter(header, part),
            None => Self::Header(text),
        }
    }
}
