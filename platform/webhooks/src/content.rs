//! The payload of a delivery, and values in it.

use super::{
    Delivery, Refusal, once,
    pieces::form_fields,
    pointer,
    scheme::{Place, Scheme},
};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use nerve_core::event::is_json;

/// The payload of a delivery.
pub(crate) struct Content<'a> {
    pub(super) content_type: Option<String>,
    pub(super) data: Bytes,
    /// Whether the content type says JSON.
    declared_json: bool,
    is_json: bool,
    /// What most deliveries are asked for, read when it was found to be JSON.
    known: Vec<(&'a str, Option<String>)>,
    /// Whether it was posted as a form.
    pub(super) is_form: bool,
}

impl<'a> Content<'a> {
    pub(super) fn read(scheme: &Scheme<'a>, delivery: Delivery<'_>) -> Self {
        let declared = delivery.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = declared.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let is_form = essence.eq_ignore_ascii_case("application/x-www-form-urlencoded");
        let in_form = scheme.form_field.filter(|_| is_form);
        let field = in_form.and_then(|field| form_fields(delivery.body).find(|(name, _)| name == field));
        if let Some((_, json)) = field {
            let (is_json, known) = read_json(&json, scheme);
            let content_type = Some("application/json".to_owned());
            return Self { content_type, data: Bytes::from(json), declared_json: true, is_json, known, is_form };
        }
        // SNS calls its JSON a plain text.
        let declared_json = is_json(essence);
        let maybe_json = declared_json || essence.is_empty() || scheme.reads_text();
        let text = std::str::from_utf8(delivery.body).ok().filter(|_| maybe_json);
        let (is_json, known) = text.map_or_else(Default::default, |text| read_json(text, scheme));
        let content_type = match declared.filter(|_| !essence.is_empty()) {
            _ if is_json && !declared_json => "application/json",
            Some(declared) => declared,
            None => "application/octet-stream",
        };
        Self {
            content_type: Some(content_type.to_owned()),
            data: delivery.body.clone(),
            declared_json,
            is_json,
            known,
            is_form,
        }
    }

    pub(super) fn malformed(&self) -> bool {
        self.declared_json && !self.is_json
    }

    /// The JSON, if it is JSON.
    pub(super) fn json(&self) -> Option<&str> {
        std::str::from_utf8(&self.data).ok().filter(|_| self.is_json)
    }

    /// The text, number or boolean at this pointer, as text.
    pub(super) fn scalar(&self, pointer: &str) -> Option<String> {
        match self.known.iter().find(|(known, _)| *known == pointer) {
            Some((_, value)) => value.clone(),
            None => self.json().and_then(|text| pointer::scalar(text, pointer)),
        }
    }

    /// Whether the value at this pointer is this one.
    pub(super) fn is(&self, (pointer, value): (&str, &str)) -> bool {
        self.scalar(pointer).is_some_and(|found| found == value)
    }

    /// The value at `place`, unless it is empty or stands twice.
    pub(super) fn at(&self, place: &Place<'_>, delivery: Delivery<'_>) -> Option<String> {
        self.require(place, delivery).ok()
    }

    /// The value at `place`.
    pub(super) fn require(&self, place: &Place<'_>, delivery: Delivery<'_>) -> Result<String, Refusal> {
        match place {
            Place::Header(name) => once(delivery.headers, name).map(str::to_owned),
            Place::Part(name, part) => once(delivery.headers, name).and_then(|header| part_of(header, name, part)),
            Place::Numbered(start) => Err(Refusal::Missing((*start).to_owned())),
            Place::Pointer(pointer) => {
                let found = self.scalar(pointer).filter(|value| !value.is_empty());
                found.ok_or_else(|| Refusal::Missing((*pointer).to_owned()))
            }
        }
    }
}

/// Whether `text` is JSON, and what the scheme's pointers lead to in it: both in one reading, unless it holds what JSON
/// allows and no reader of values does, such as a number without bounds.
fn read_json<'a>(text: &str, scheme: &Scheme<'a>) -> (bool, Vec<(&'a str, Option<String>)>) {
    let pointers: Vec<&str> = scheme.pointers().collect();
    match pointer::scalars(text, &pointers) {
        Some(values) => (true, pointers.into_iter().zip(values).collect()),
        None => (pointer::is_json(text), Vec::new()),
    }
}

/// The value of `part` in a header such as `t=…,v1=…`.
fn part_of(header: &str, name: &str, part: &str) -> Result<String, Refusal> {
    let pairs = header.split([',', ';']).filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(key, _)| *key == part).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => Err(Refusal::Repeated(format!("{name}: {part}"))),
        (Some(value), None) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(Refusal::Missing(format!("{name}: {part}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_header_stands_once_or_counts_for_nothing() {
        let read = |header| part_of(header, "h", "t").ok();
        assert_eq!(read("t=1,v1=a").as_deref(), Some("1"));
        assert_eq!(read("v1=a; t=1").as_deref(), Some("1"));
        for header in ["", "t", "t=", "tt=1", "t=1,t=2", "t=1,t=1"] {
            assert_eq!(read(header), None, "{header}");
        }
    }
}
