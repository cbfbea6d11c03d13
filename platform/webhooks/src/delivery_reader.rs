//! One delivery, read by its scheme: the time, the signatures and the signed content.

use super::{
    Delivery, IdScope, Refusal, Unusable, VerifiedEvent, check_topic,
    content::Content,
    form, handshake, is_valid_attribute,
    scheme::{KeyPrefix, Scheme, SignatureScheme, ValueLocation},
    signature::{self, Key},
    single_header,
    template::{self, Segment},
};
use data_encoding::HEXLOWER;
use nerve_core::{
    SourceSpec,
    function::Secret,
    manifest::{Provider, TimestampUnit},
};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, cell::OnceCell, time::Duration};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A delivery and its scheme. Its content is parsed on first use.
pub(super) struct DeliveryReader<'a> {
    pub(super) scheme: Scheme<'a>,
    pub(super) source: &'a SourceSpec,
    pub(super) delivery: Delivery<'a>,
    pub(super) content: OnceCell<Content<'a>>,
}

impl<'a> DeliveryReader<'a> {
    pub(super) fn content(&self) -> &Content<'a> {
        self.content.get_or_init(|| Content::read(&self.scheme, self.delivery))
    }

    /// Verifies the delivery. Returns its signed content, and the keys of the signature scheme that matched.
    ///
    /// # Errors
    /// The reason why the delivery is refused.
    pub(super) fn verified(&self, secrets: &[Secret]) -> Result<(Vec<Key>, SignedContent<'a>), Refusal> {
        let signature_schemes = self.keys(secrets)?;
        if self.source.provider == Provider::Sns {
            check_topic(self.source, self.content())?;
        }
        let mut refused = None;
        for (signature_scheme, keys) in signature_schemes {
            if signature_scheme.guard_field.is_some_and(|field| !self.content().has(field)) {
                continue;
            }
            match self.signed_by(&signature_scheme, &keys) {
                Ok(signed) => return Ok((keys, signed)),
                // A wrong signature is more specific than a missing one of another scheme.
                Err(refusal) if matches!(refused, None | Some(Refusal::Missing(_))) => refused = Some(refusal),
                Err(_) => {}
            }
        }
        Err(refused.unwrap_or(Refusal::InvalidSignature))
    }

    fn signed_by(&self, signature_scheme: &SignatureScheme<'a>, keys: &[Key]) -> Result<SignedContent<'a>, Refusal> {
        if self.source.public_url.is_none() && signature_scheme.template().any(|segment| segment == Segment::Url) {
            return Err(Refusal::Unusable(Unusable::NoPublicUrl));
        }
        if let Some((location, unit)) = signature_scheme.timestamp {
            let text = self.time_text(&location)?;
            check_time(&text, unit, self.source.tolerance, self.delivery.now)?;
        }
        let signatures = self.signatures(signature_scheme)?;
        let urls = match &self.source.public_url {
            Some(url) => form::urls(url, self.delivery.query, self.scheme.url),
            None => vec![String::new()],
        };
        for url in urls {
            let signed = self.signed_content(signature_scheme, &url, true)?;
            if !signatures.is_empty() && keys.iter().any(|key| key.has_signed(&signed.segments, &signatures)) {
                return Ok(signed);
            }
        }
        Err(Refusal::InvalidSignature)
    }

    /// Returns the signed content without verification. Missing values are empty.
    pub(super) fn unverified(&self) -> Result<SignedContent<'a>, Refusal> {
        match self.scheme.signature_schemes.first().copied().flatten() {
            Some(signature_scheme) => {
                self.signed_content(&signature_scheme, self.source.public_url.as_deref().unwrap_or_default(), false)
            }
            None => Ok(SignedContent {
                segments: vec![Cow::Borrowed(self.delivery.body)],
                covers_id: false,
                unsigned_body: None,
            }),
        }
    }

    /// Returns the keys of each signature scheme. An error if no scheme has a key.
    fn keys(&self, secrets: &[Secret]) -> Result<Vec<(SignatureScheme<'a>, Vec<Key>)>, Refusal> {
        let mut bad = None;
        let mut found = Vec::new();
        for signature_scheme in self.scheme.signature_schemes.into_iter().flatten() {
            let mut keys = Vec::new();
            if signature_scheme.key_prefix == KeyPrefix::Certificate {
                let public = self.delivery.certificate.and_then(|certificate| certificate.key_at(self.delivery.now));
                keys.push(
                    public
                        .and_then(|key| Key::of_certificate(key, &signature_scheme))
                        .ok_or(Refusal::InvalidCertificate)?,
                );
            }
            for key in secrets.iter().filter_map(|secret| Key::of(secret, &signature_scheme)) {
                match key {
                    Ok(key) => keys.push(key),
                    Err(reason) => bad = Some(reason),
                }
            }
            if !keys.is_empty() {
                found.push((signature_scheme, keys));
            }
        }
        match bad {
            _ if !found.is_empty() => Ok(found),
            Some(reason) => Err(Refusal::Unusable(Unusable::InvalidSecret(reason))),
            None => Err(match handshake::announced_secret(&self.scheme, self.content()) {
                Some(secret) if secrets.is_empty() => Refusal::AnnouncesSecret(Secret::new(secret)),
                _ => Refusal::Unusable(Unusable::NoSecret),
            }),
        }
    }

    /// Returns the signatures of this scheme.
    fn signatures(&self, signature_scheme: &SignatureScheme<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        let headers = self.delivery.headers;
        let candidates = |text: &str| signature::candidates(text, signature_scheme).ok_or(Refusal::TooManySignatures);
        let ValueLocation::NumberedHeaders(start) = signature_scheme.signature else {
            return match signature_scheme.signature {
                ValueLocation::Header(name) => candidates(single_header(headers, name)?),
                location => candidates(&self.content().require(&location, self.delivery)?),
            };
        };
        let numbered = |name: &str| name.strip_prefix(start).is_some_and(|n| n.parse::<u16>().is_ok());
        let mut names = headers.keys().filter(|name| numbered(name.as_str())).peekable();
        if names.peek().is_none() {
            return Err(Refusal::Missing("a signature".to_owned()));
        }
        let mut found = Vec::new();
        for name in names {
            found.extend(candidates(single_header(headers, name.as_str())?)?);
        }
        if found.len() > signature::MAX_SIGNATURES { Err(Refusal::TooManySignatures) } else { Ok(found) }
    }

    fn time_text(&self, location: &ValueLocation<'_>) -> Result<String, Refusal> {
        match location {
            ValueLocation::Header(name) => single_header(self.delivery.headers, name).map(str::to_owned),
            location => self.content().require(location, self.delivery),
        }
    }

    /// Builds the signed content. If it is not verified, missing values are empty.
    pub(super) fn signed_content(
        &self,
        signature_scheme: &SignatureScheme<'a>,
        url: &str,
        verified: bool,
    ) -> Result<SignedContent<'a>, Refusal> {
        let value = |location: Option<ValueLocation<'_>>| match location {
            Some(ValueLocation::Header(name)) => match single_header(self.delivery.headers, name) {
                Err(_) if !verified => Ok(Cow::Borrowed(&b""[..])),
                read => read.map(|text| Cow::Owned(text.as_bytes().to_vec())),
            },
            Some(location) => match self.content().require(&location, self.delivery) {
                Err(_) if !verified => Ok(Cow::Borrowed(&b""[..])),
                read => read.map(|text| Cow::Owned(text.into_bytes())),
            },
            None => Ok(Cow::Borrowed(&b""[..])),
        };
        let segment = |segment| -> Result<Cow<'a, [u8]>, Refusal> {
            Ok(match segment {
                Segment::Literal(text) => Cow::Borrowed(text.as_bytes()),
                Segment::Body => Cow::Borrowed(self.delivery.body),
                Segment::Timestamp => value(signature_scheme.timestamp.map(|(location, _)| location))?,
                Segment::Id => value(self.scheme.id.first().copied().flatten())?,
                Segment::Url => Cow::Owned(url.as_bytes().to_vec()),
                // Only POST requests are routed here.
                Segment::Method => Cow::Borrowed(b"POST"),
                Segment::Form if self.content().is_form => {
                    Cow::Owned(form::sorted_form(self.delivery.body).into_bytes())
                }
                Segment::Form if verified => self.check_url_digest().map(|()| Cow::Borrowed(&b""[..]))?,
                Segment::Form => Cow::Borrowed(self.delivery.body),
                Segment::Sns => Cow::Owned(template::sns(self.content()).into_bytes()),
            })
        };
        let covers_id = signature_scheme.template().any(|segment| segment == Segment::Id);
        let segments: Vec<_> = signature_scheme.template().map(segment).collect::<Result<_, _>>()?;
        let covers_body = signature_scheme.template().zip(&segments).any(|(segment, bytes)| match segment {
            Segment::Body => true,
            Segment::Form => !bytes.is_empty(),
            _ => false,
        });
        let unsigned_body = (!covers_body).then_some(&self.delivery.body[..]);
        Ok(SignedContent { segments, covers_id, unsigned_body })
    }

    /// Checks the digest in the URL of a body that is no form. Without a digest the body must be empty.
    fn check_url_digest(&self) -> Result<(), Refusal> {
        let fields = form::form_fields(self.delivery.query.unwrap_or_default().as_bytes());
        let mut given = fields.filter(|(name, _)| Some(name.as_str()) == self.scheme.body_digest);
        let right = match (given.next(), given.next()) {
            (Some((_, digest)), None) => {
                digest.eq_ignore_ascii_case(&HEXLOWER.encode(&Sha256::digest(self.delivery.body)))
            }
            (None, _) => self.delivery.body.is_empty(),
            _ => false,
        };
        if right { Ok(()) } else { Err(Refusal::InvalidSignature) }
    }

    /// Returns the delivery as one event, and the location of its id. Without an id of the sender, the id is a hash of the signed
    /// content and the body.
    pub(super) fn event(&self, signed: &SignedContent<'_>) -> (VerifiedEvent, Option<ValueLocation<'a>>) {
        let (scheme, content) = (&self.scheme, self.content());
        let at = |location: &ValueLocation<'_>| content.get(location, self.delivery);
        let id = scheme.id.iter().flatten().find_map(|location| Some((at(location)?, *location)));
        let id = id.filter(|(id, _)| is_valid_attribute(id));
        let joined = |row: &[Option<ValueLocation<'_>>; 2]| {
            row.iter().flatten().map_while(at).reduce(|joined, value| joined + "." + &value)
        };
        let (id, id_scope, location) = match id {
            Some((id, location)) => (id, IdScope::of(self.source.ids(), &content.data), Some(location)),
            None => (signed.sha256(), IdScope::ContentHash, None),
        };
        let event = VerifiedEvent {
            id,
            id_scope,
            ty: scheme.ty.iter().find_map(joined),
            subject: scheme.subject.and_then(|location| at(&location)),
            content_type: content.content_type.clone(),
            data: content.data.clone(),
        };
        (event, location)
    }
}

/// The content that the signature covers.
pub(super) struct SignedContent<'a> {
    pub(super) segments: Vec<Cow<'a, [u8]>>,
    /// Whether it contains the scheme's first id.
    pub(super) covers_id: bool,
    /// The body, if the signature does not cover it: two bodies may then have the same signed content.
    pub(super) unsigned_body: Option<&'a [u8]>,
}

impl SignedContent<'_> {
    /// Returns SHA-256 in hex of the signed content and the body.
    pub(super) fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for segment in &self.segments {
            hash.update(segment);
        }
        hash.update(self.unsigned_body.unwrap_or_default());
        HEXLOWER.encode(&hash.finalize())
    }
}

fn check_time(text: &str, unit: TimestampUnit, tolerance: Duration, now: OffsetDateTime) -> Result<(), Refusal> {
    let whole = || {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i128>().ok().filter(|_| digits)
    };
    let nanos = match unit {
        TimestampUnit::Seconds => whole().and_then(|given| given.checked_mul(1_000_000_000)),
        TimestampUnit::Milliseconds => whole().and_then(|given| given.checked_mul(1_000_000)),
        TimestampUnit::Rfc3339 => OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp_nanos),
    };
    let age = now.unix_timestamp_nanos().checked_sub(nanos.ok_or(Refusal::InvalidTime)?).ok_or(Refusal::InvalidTime)?;
    let difference = Duration::from_nanos(u64::try_from(age.unsigned_abs()).unwrap_or(u64::MAX));
    match difference <= tolerance {
        true => Ok(()),
        false if age > 0 => Err(Refusal::Expired(difference)),
        false => Err(Refusal::Future(difference)),
    }
}
