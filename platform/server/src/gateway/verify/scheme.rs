//! What a webhook scheme is, as data: one description serves the built-in providers and `custom` alike.

use nerve_core::manifest::{Algorithm, CustomScheme, Encoding, KeyForm, Locator, Provider, TimestampUnit};

/// Everything the verifier knows about a sender.
#[derive(Debug, Clone)]
pub(super) struct Scheme<'a> {
    /// The header that holds the signatures, separated by commas or spaces.
    pub(super) signature: &'a str,
    /// The kinds of signature that count; a header may mix them with kinds that do not.
    pub(super) kinds: [Option<Kind<'a>>; 2],
    /// What is signed: a template over `{body}`, `{timestamp}`, `{id}` and `{url}`.
    pub(super) signed: &'a str,
    /// The header that holds the time of signing.
    pub(super) timestamp: Option<(&'a str, TimestampUnit)>,
    /// Where the delivery's id is.
    pub(super) id: Option<Place<'a>>,
    /// Where the event's type is: the values found are joined by dots; without the first there is no type.
    pub(super) ty: [Option<Place<'a>>; 2],
    /// Where the thing that the event is about is named.
    pub(super) subject: Option<Place<'a>>,
    /// The form field that holds the JSON body when the sender posts a form.
    pub(super) form_field: Option<&'a str>,
}

/// One kind of signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind<'a> {
    /// What stands before it in the header.
    pub(super) mark: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) encoding: Encoding,
    pub(super) key: KeyForm,
    /// The prefix of the secrets that make it.
    pub(super) key_prefix: KeyPrefix,
}

/// Which secrets a kind of signature takes, told by their prefix (`whsec_`, `whpk_`).
///
/// A public key must never be taken for an HMAC key: everybody knows it, so anybody could sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyPrefix {
    /// Any secret.
    Any,
    /// Secrets with this prefix, or with none.
    Optional(&'static str),
    /// Secrets with this prefix only.
    Required(&'static str),
}

/// Where in a delivery a value is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// In this header.
    Header(&'a str),
    /// At this JSON pointer of the body.
    Pointer(&'a str),
}

const GITHUB: Scheme<'static> = Scheme {
    signature: "x-hub-signature-256",
    kinds: [
        Some(Kind {
            mark: "sha256=",
            algorithm: Algorithm::Sha256,
            encoding: Encoding::Hex,
            key: KeyForm::Text,
            key_prefix: KeyPrefix::Any,
        }),
        None,
    ],
    signed: "{body}",
    timestamp: None,
    id: Some(Place::Header("x-github-delivery")),
    ty: [Some(Place::Header("x-github-event")), Some(Place::Pointer("/action"))],
    subject: Some(Place::Pointer("/repository/full_name")),
    form_field: Some("payload"),
};

const STANDARD_WEBHOOKS: Scheme<'static> = Scheme {
    signature: "webhook-signature",
    kinds: [
        Some(Kind {
            mark: "v1,",
            algorithm: Algorithm::Sha256,
            encoding: Encoding::Base64,
            key: KeyForm::Base64,
            key_prefix: KeyPrefix::Optional("whsec_"),
        }),
        Some(Kind {
            mark: "v1a,",
            algorithm: Algorithm::Ed25519,
            encoding: Encoding::Base64,
            key: KeyForm::Base64,
            key_prefix: KeyPrefix::Required("whpk_"),
        }),
    ],
    signed: "{id}.{timestamp}.{body}",
    timestamp: Some(("webhook-timestamp", TimestampUnit::Seconds)),
    id: Some(Place::Header("webhook-id")),
    ty: [Some(Place::Pointer("/type")), None],
    subject: None,
    form_field: None,
};

const SVIX: Scheme<'static> = Scheme {
    signature: "svix-signature",
    timestamp: Some(("svix-timestamp", TimestampUnit::Seconds)),
    id: Some(Place::Header("svix-id")),
    ..STANDARD_WEBHOOKS
};

impl<'a> Scheme<'a> {
    /// The scheme of a provider.
    pub(super) fn of(provider: &'a Provider) -> Self {
        match provider {
            Provider::Github => GITHUB,
            Provider::StandardWebhooks => STANDARD_WEBHOOKS,
            Provider::Svix => SVIX,
            Provider::Custom(custom) => Self::custom(custom),
        }
    }

    fn custom(custom: &'a CustomScheme) -> Self {
        Self {
            signature: &custom.signature,
            kinds: [
                Some(Kind {
                    mark: &custom.prefix,
                    algorithm: custom.algorithm,
                    encoding: custom.encoding,
                    key: custom.key,
                    key_prefix: KeyPrefix::Any,
                }),
                None,
            ],
            signed: &custom.signed,
            timestamp: custom.timestamp.as_deref().map(|header| (header, custom.timestamp_unit)),
            id: custom.id.as_ref().map(Place::of),
            ty: [custom.ty.as_ref().map(Place::of), None],
            subject: None,
            form_field: None,
        }
    }

    /// The template, cut into literals and fields.
    pub(super) fn template(&self) -> Template<'a> {
        Template(self.signed)
    }
}

impl<'a> Place<'a> {
    fn of(locator: &'a Locator) -> Self {
        match locator {
            Locator::Header(name) => Self::Header(name),
            Locator::Pointer(pointer) => Self::Pointer(pointer),
        }
    }
}

/// One piece of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Literal(&'a str),
    Body,
    Timestamp,
    Id,
    Url,
}

/// Iterates over the pieces of a template; braces around anything but a field stand for themselves.
pub(super) struct Template<'a>(&'a str);

const FIELDS: [(&str, Piece<'static>); 4] =
    [("{body}", Piece::Body), ("{timestamp}", Piece::Timestamp), ("{id}", Piece::Id), ("{url}", Piece::Url)];

impl<'a> Iterator for Template<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let first = FIELDS.iter().filter_map(|field| Some((self.0.find(field.0)?, field))).min_by_key(|(at, _)| *at);
        let (literal, field) = match first {
            Some((0, (text, piece))) => {
                self.0 = self.0.get(text.len()..).unwrap_or_default();
                return Some(*piece);
            }
            Some((at, _)) => self.0.split_at(at),
            None => (self.0, ""),
        };
        self.0 = field;
        Some(Piece::Literal(literal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_cut_at_its_fields() {
        let pieces: Vec<_> = Template("v0:{timestamp}:{body}").collect();
        assert_eq!(pieces, [Piece::Literal("v0:"), Piece::Timestamp, Piece::Literal(":"), Piece::Body]);
        assert_eq!(Template("{url}{id}").collect::<Vec<_>>(), [Piece::Url, Piece::Id]);
        assert_eq!(Template("{x}").collect::<Vec<_>>(), [Piece::Literal("{x}")]);
        assert_eq!(Template("").count(), 0);
    }
}
