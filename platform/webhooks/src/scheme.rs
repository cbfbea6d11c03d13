//! What a webhook scheme is, as data: one description serves the built-in providers and `custom` alike.

use super::pieces::Template;
use nerve_core::manifest::{Algorithm, Encoding, KeyForm, Locator, TimestampUnit};

/// Everything the verifier knows about a sender.
#[derive(Debug, Clone, Copy)]
pub struct Scheme<'a> {
    /// The kinds of signature that count; a delivery may mix them with kinds that do not.
    pub kinds: [Option<Kind<'a>>; 2],
    /// Where the delivery's id is: the first that is there. The first is what `{id}` stands for in what is signed.
    pub id: [Option<Place<'a>>; 3],
    /// Where the event's type is: the values found in a row are joined by dots; without its first value, the next row.
    pub ty: [[Option<Place<'a>>; 2]; 2],
    /// Where the thing that the event is about is named.
    pub subject: Option<Place<'a>>,
    /// The form field that holds the JSON body when the sender posts a form.
    pub form_field: Option<&'a str>,
    /// The parameter of the URL's query that holds the hex SHA-256 of a body that is no form.
    pub body_digest: Option<&'a str>,
    /// How the sender writes the URL that it signs.
    pub url: UrlForm,
    /// The array whose items are one event each.
    pub items: Option<Items<'a>>,
    /// What is answered instead of published.
    pub handshake: Option<Handshake<'a>>,
}

/// One kind of signature.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// Where the signatures are: of a header, several are separated by commas, semicolons or spaces.
    pub signature: Place<'a>,
    /// What stands before each.
    pub mark: &'a str,
    pub algorithm: Algorithm,
    pub encoding: Encoding,
    pub key: KeyForm,
    /// Which secrets make it.
    pub key_prefix: KeyPrefix,
    /// What is signed: a template over `{body}`, `{timestamp}`, `{id}`, `{url}`, `{method}`, `{form}` and `{sns}`.
    pub signed: &'a str,
    /// The time of signing.
    pub timestamp: Option<(Place<'a>, TimestampUnit)>,
    /// The value that the body must hold for this kind to count.
    pub only: Option<(&'a str, &'a str)>,
}

/// Which secrets a kind of signature takes, told by their prefix (`whsec_`, `whpk_`).
///
/// A public key must never be taken for an HMAC key: everybody knows it, so anybody could sign.
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
    /// No secret: AWS' certificate, which the body refers to.
    Certificate,
}

/// Where in a delivery a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// In this header.
    Header(&'a str),
    /// In this part of a header: `t` of `t=…,v1=…`.
    Part(&'a str, &'a str),
    /// In every header whose name begins so.
    Numbered(&'a str),
    /// At this JSON pointer of the body.
    Pointer(&'a str),
}

/// How the sender writes the URL that it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlForm {
    /// As it is configured there.
    Plain,
    /// With the standard port or without it.
    AnyPort,
    /// With what HubSpot decodes decoded.
    Decoded,
}

/// An array whose items are one event each.
#[derive(Debug, Clone, Copy)]
pub struct Items<'a> {
    /// The array's JSON pointer; empty: the body is the array.
    pub at: &'a str,
    /// The pointers, from the item, of the values that make its id.
    pub id: [Option<&'a str>; 3],
    /// The pointer, from the item, of its type.
    pub ty: Option<&'a str>,
}

/// What a sender asks before it sends events, or to see whether we are there.
#[derive(Debug, Clone, Copy)]
pub enum Handshake<'a> {
    /// A verified body with a text at `at` (and this value at `when`) is answered `{"<last token of at>": text}`.
    Echo {
        /// The pointer and the value that mark such a body, if it has such a mark.
        when: Option<(&'a str, &'a str)>,
        /// The pointer to the text.
        at: &'a str,
    },
    /// A verified interaction of type 1, or webhook event of type 0.
    Discord,
    /// A verified body with this value at this pointer is answered with the text at `at` and its HMAC in hex.
    Zoom {
        /// The pointer and the value that mark such a body.
        when: (&'a str, &'a str),
        /// The pointer to the text.
        at: &'a str,
    },
    /// A body that nothing signs yet brings the secret, at this pointer.
    Notion {
        /// The pointer to the secret.
        at: &'a str,
    },
    /// A GET with `hub.verify_token` is answered with its `hub.challenge`.
    Meta,
    /// A verified body of this type asks to fetch a URL.
    Sns,
    /// An OPTIONS asks whether it may post.
    CloudEvents,
}

impl<'a> Scheme<'a> {
    /// The JSON pointers of what an event is made of.
    pub fn pointers(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let places = self.id.into_iter().chain(self.ty.into_iter().flatten()).chain([self.subject]);
        places.flatten().filter_map(|place| match place {
            Place::Pointer(pointer) => Some(pointer),
            _ => None,
        })
    }

    /// Whether its JSON comes under whatever media type.
    pub fn reads_text(&self) -> bool {
        matches!(self.handshake, Some(Handshake::Sns))
    }
}

impl<'a> Kind<'a> {
    /// The template, cut into literals and fields.
    pub fn template(&self) -> Template<'a> {
        Template::new(self.signed)
    }
}

impl<'a> Place<'a> {
    /// What a locator of a declared scheme says.
    pub(super) fn of(locator: &'a Locator) -> Self {
        match locator {
            Locator::Header(name) => Self::Header(name),
            Locator::Pointer(pointer) => Self::Pointer(pointer),
        }
    }

    /// What `signature` of a declared scheme says.
    pub(super) fn signatures(text: &'a str) -> Self {
        match text.strip_suffix('*') {
            Some(start) => Self::Numbered(start),
            None => Self::time(text),
        }
    }

    /// What `timestamp` of a declared scheme says.
    pub(super) fn time(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text.starts_with('/') => Self::Pointer(text),
            Some((header, part)) => Self::Part(header, part),
            None => Self::Header(text),
        }
    }
}
