//! One delivery, read as its scheme says: the time, the signatures, and what they cover.

use super::{
    Delivery, IdNames, Refusal, Unusable, Verified, check_topic,
    content::Content,
    handshake, is_sound, once,
    pieces::{self, Piece},
    scheme::{KeyPrefix, Kind, Place, Scheme},
    signature::{self, Key},
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

/// A delivery, its scheme, and its content once something asks for it.
pub(super) struct Reading<'a> {
    pub(super) scheme: Scheme<'a>,
    pub(super) source: &'a SourceSpec,
    pub(super) delivery: Delivery<'a>,
    pub(super) content: OnceCell<Content<'a>>,
}

impl<'a> Reading<'a> {
    pub(super) fn content(&self) -> &Content<'a> {
        self.content.get_or_init(|| Content::read(&self.scheme, self.delivery))
    }

    /// What is signed, once one of the keys is known to have signed it; and those that are of its kind.
    pub(super) fn checked(&self, secrets: &[Secret]) -> Result<(Vec<Key>, Signed<'a>), Refusal> {
        let kinds = self.keys(secrets)?;
        if self.source.provider == Provider::Sns {
            check_topic(self.source, self.content())?;
        }
        let mut refused = None;
        for (kind, keys) in kinds {
            if kind.only.is_some_and(|only| !self.content().is(only)) {
                continue;
            }
            match self.signed_by(&kind, &keys) {
                Ok(signed) => return Ok((keys, signed)),
                // That a kind of signature is not there says less than that one is wrong.
                Err(refusal) if matches!(refused, None | Some(Refusal::Missing(_))) => refused = Some(refusal),
                Err(_) => {}
            }
        }
        Err(refused.unwrap_or(Refusal::Wrong))
    }

    fn signed_by(&self, kind: &Kind<'a>, keys: &[Key]) -> Result<Signed<'a>, Refusal> {
        if self.source.public_url.is_none() && kind.template().any(|piece| piece == Piece::Url) {
            return Err(Refusal::Unusable(Unusable::NoPublicUrl));
        }
        if let Some((place, unit)) = kind.timestamp {
            let text = self.time_text(&place)?;
            check_time(&text, unit, self.source.tolerance, self.delivery.now)?;
        }
        let signatures = self.signatures(kind)?;
        let urls = match &self.source.public_url {
            Some(url) => pieces::urls(url, self.delivery.query, self.scheme.url),
            None => vec![String::new()],
        };
        for url in urls {
            let signed = self.lay_out(kind, &url, true)?;
            if !signatures.is_empty() && keys.iter().any(|key| key.signed(&signed.pieces, &signatures)) {
                return Ok(signed);
            }
        }
        Err(Refusal::Wrong)
    }

    /// What would be signed; what is missing is empty.
    pub(super) fn unchecked(&self) -> Result<Signed<'a>, Refusal> {
        match self.scheme.kinds.first().copied().flatten() {
            Some(kind) => self.lay_out(&kind, self.source.public_url.as_deref().unwrap_or_default(), false),
            None => Ok(Signed { pieces: vec![Cow::Borrowed(self.delivery.body)], covers_id: false, uncovered: None }),
        }
    }

    /// The keys that may have signed, by the kind of signature they make; an error when there is none at all.
    fn keys(&self, secrets: &[Secret]) -> Result<Vec<(Kind<'a>, Vec<Key>)>, Refusal> {
        let mut bad = None;
        let mut found = Vec::new();
        for kind in self.scheme.kinds.into_iter().flatten() {
            let mut keys = Vec::new();
            if kind.key_prefix == KeyPrefix::Certificate {
                let public = self.delivery.certificate.and_then(|certificate| certificate.key_at(self.delivery.now));
                keys.push(public.and_then(|key| Key::of_certificate(key, &kind)).ok_or(Refusal::Certificate)?);
            }
            for key in secrets.iter().filter_map(|secret| Key::of(secret, &kind)) {
                match key {
                    Ok(key) => keys.push(key),
                    Err(reason) => bad = Some(reason),
                }
            }
            if !keys.is_empty() {
                found.push((kind, keys));
            }
        }
        match bad {
            _ if !found.is_empty() => Ok(found),
            Some(reason) => Err(Refusal::Unusable(Unusable::BadSecret(reason))),
            None => Err(match handshake::brought(&self.scheme, self.content()) {
                Some(secret) if secrets.is_empty() => Refusal::Brings(Secret::new(secret)),
                _ => Refusal::Unusable(Unusable::NoSecret),
            }),
        }
    }

    /// The signatures of this kind.
    fn signatures(&self, kind: &Kind<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        let headers = self.delivery.headers;
        let candidates = |text: &str| signature::candidates(text, kind).ok_or(Refusal::TooManySignatures);
        let Place::Numbered(start) = kind.signature else {
            return match kind.signature {
                Place::Header(name) => candidates(once(headers, name)?),
                place => candidates(&self.content().require(&place, self.delivery)?),
            };
        };
        let numbered = |name: &str| name.strip_prefix(start).is_some_and(|n| n.parse::<u16>().is_ok());
        let mut names = headers.keys().filter(|name| numbered(name.as_str())).peekable();
        if names.peek().is_none() {
            return Err(Refusal::Missing("a signature".to_owned()));
        }
        let mut found = Vec::new();
        for name in names {
            found.extend(candidates(once(headers, name.as_str())?)?);
        }
        if found.len() > signature::MAX_SIGNATURES { Err(Refusal::TooManySignatures) } else { Ok(found) }
    }

    fn time_text(&self, place: &Place<'_>) -> Result<String, Refusal> {
        match place {
            Place::Header(name) => once(self.delivery.headers, name).map(str::to_owned),
            place => self.content().require(place, self.delivery),
        }
    }

    /// Lays out what is signed; when nothing will be checked, what is missing is empty.
    pub(super) fn lay_out(&self, kind: &Kind<'a>, url: &str, checked: bool) -> Result<Signed<'a>, Refusal> {
        let value = |place: Option<Place<'_>>| match place {
            Some(Place::Header(name)) => match once(self.delivery.headers, name) {
                Err(_) if !checked => Ok(Cow::Borrowed(&b""[..])),
                read => read.map(|text| Cow::Owned(text.as_bytes().to_vec())),
            },
            Some(place) => match self.content().require(&place, self.delivery) {
                Err(_) if !checked => Ok(Cow::Borrowed(&b""[..])),
                read => read.map(|text| Cow::Owned(text.into_bytes())),
            },
            None => Ok(Cow::Borrowed(&b""[..])),
        };
        let piece = |piece| -> Result<Cow<'a, [u8]>, Refusal> {
            Ok(match piece {
                Piece::Literal(text) => Cow::Borrowed(text.as_bytes()),
                Piece::Body => Cow::Borrowed(self.delivery.body),
                Piece::Timestamp => value(kind.timestamp.map(|(place, _)| place))?,
                Piece::Id => value(self.scheme.id.first().copied().flatten())?,
                Piece::Url => Cow::Owned(url.as_bytes().to_vec()),
                // Nothing else is routed here.
                Piece::Method => Cow::Borrowed(b"POST"),
                Piece::Form if self.content().is_form => {
                    Cow::Owned(pieces::sorted_form(self.delivery.body).into_bytes())
                }
                Piece::Form if checked => self.digest_in_url().map(|()| Cow::Borrowed(&b""[..]))?,
                Piece::Form => Cow::Borrowed(self.delivery.body),
                Piece::Sns => Cow::Owned(pieces::sns(self.content()).into_bytes()),
            })
        };
        let covers_id = kind.template().any(|piece| piece == Piece::Id);
        let pieces: Vec<_> = kind.template().map(piece).collect::<Result<_, _>>()?;
        let covers_body = kind.template().zip(&pieces).any(|(piece, bytes)| match piece {
            Piece::Body => true,
            Piece::Form => !bytes.is_empty(),
            _ => false,
        });
        let uncovered = (!covers_body).then_some(&self.delivery.body[..]);
        Ok(Signed { pieces, covers_id, uncovered })
    }

    /// A body that is no form is covered by its digest in the URL, or is empty.
    fn digest_in_url(&self) -> Result<(), Refusal> {
        let fields = pieces::form_fields(self.delivery.query.unwrap_or_default().as_bytes());
        let mut given = fields.filter(|(name, _)| Some(name.as_str()) == self.scheme.body_digest);
        let right = match (given.next(), given.next()) {
            (Some((_, digest)), None) => {
                digest.eq_ignore_ascii_case(&HEXLOWER.encode(&Sha256::digest(self.delivery.body)))
            }
            (None, _) => self.delivery.body.is_empty(),
            _ => false,
        };
        if right { Ok(()) } else { Err(Refusal::Wrong) }
    }

    /// The delivery as one event, and where its id was found; it has a hash of what is signed and of the body when that is
    /// nowhere.
    pub(super) fn event(&self, signed: &Signed<'_>) -> (Verified, Option<Place<'a>>) {
        let (scheme, content) = (&self.scheme, self.content());
        let at = |place: &Place<'_>| content.at(place, self.delivery);
        let id = scheme.id.iter().flatten().find_map(|place| Some((at(place)?, *place)));
        let id = id.filter(|(id, _)| is_sound(id));
        let joined = |row: &[Option<Place<'_>>; 2]| {
            row.iter().flatten().map_while(at).reduce(|joined, value| joined + "." + &value)
        };
        let (id, id_names, place) = match id {
            Some((id, place)) => (id, IdNames::of(self.source.ids(), &content.data), Some(place)),
            None => (signed.sha256(), IdNames::Bytes, None),
        };
        let event = Verified {
            id,
            id_names,
            ty: scheme.ty.iter().find_map(joined),
            subject: scheme.subject.and_then(|place| at(&place)),
            content_type: content.content_type.clone(),
            data: content.data.clone(),
        };
        (event, place)
    }
}

/// What the signature covers.
pub(super) struct Signed<'a> {
    pub(super) pieces: Vec<Cow<'a, [u8]>>,
    /// Whether the scheme's first id is among it.
    pub(super) covers_id: bool,
    /// The body, where it is not among it: of another body the same may be signed, or nothing at all.
    pub(super) uncovered: Option<&'a [u8]>,
}

impl Signed<'_> {
    /// The hash of what is signed, and of the body.
    pub(super) fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for piece in &self.pieces {
            hash.update(piece);
        }
        hash.update(self.uncovered.unwrap_or_default());
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
    let age = now.unix_timestamp_nanos().checked_sub(nanos.ok_or(Refusal::Time)?).ok_or(Refusal::Time)?;
    let apart = Duration::from_nanos(u64::try_from(age.unsigned_abs()).unwrap_or(u64::MAX));
    match apart <= tolerance {
        true => Ok(()),
        false if age > 0 => Err(Refusal::Old(apart)),
        false => Err(Refusal::Future(apart)),
    }
}
