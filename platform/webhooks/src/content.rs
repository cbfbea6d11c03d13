//! The payload of a delivery and values in it.

use super::{
    Delivery, Refusal,
    form::form_fields,
    pointer,
    scheme::{Scheme, ValueLocation},
    single_header,
};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use nerve_core::event::is_json;

/// The payload of a delivery.
pub(crate) struct Content<'a> {
    pub(super) content_type: Option<String>,
    pub(super) data: Bytes,
    /// Whether the content type is JSON.
    declared_json: bool,
    is_json: bool,
    /// The values at the scheme's pointers, read while the JSON was validated.
    scalars: Vec<(&'a str, Option<String>)>,
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
            let (is_json, scalars) = read_json(&json, scheme);
            let content_type = Some("application/json".to_owned());
            return Self { content_type, data: Bytes::from(json), declared_json: true, is_json, scalars, is_form };
        }
        // SNS declares its JSON as plain text.
        let declared_json = is_json(essence);
        let maybe_json = declared_json || essence.is_empty() || scheme.ignores_media_type();
        let text = std::str::from_utf8(delivery.body).ok().filter(|_| maybe_json);
        let (is_json, scalars) = text.map_or_else(Default::default, |text| read_json(text, scheme));
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
            scalars,
            is_form,
        }
    }

    pub(super) fn malformed(&self) -> bool {
        self.declared_json && !self.is_json
    }

    /// Returns the payload if it is JSON.
    pub(super) fn json(&self) -> Option<&str> {
        std::str::from_utf8(&self.data).ok().filter(|_| self.is_json)
    }

    /// Returns the string, number or boolean at a pointer, as text.
    pub(super) fn scalar(&self, pointer: &str) -> Option<String> {
        match self.scalars.iter().find(|(at, _)| *at == pointer) {
            Some((_, value)) => value.clone(),
            None => self.json().and_then(|text| pointer::scalar(text, pointer)),
        }
    }

    /// Whether the pointer has this value.
    pub(super) fn has(&self, (pointer, value): (&str, &str)) -> bool {
        self.scalar(pointer).is_some_and(|found| found == value)
    }

    /// Returns the value at `location`, unless it is empty or repeated.
    pub(super) fn get(&self, location: &ValueLocation<'_>, delivery: Delivery<'_>) -> Option<String> {
        self.require(location, delivery).ok()
    }

    /// Returns the value at `location`.
    ///
    /// # Errors
    /// [`Refusal::Missing`] and [`Refusal::Repeated`].
    pub(super) fn require(&self, location: &ValueLocation<'_>, delivery: Delivery<'_>) -> Result<String, Refusal> {
        match location {
            ValueLocation::Header(name) => single_header(delivery.headers, name).map(str::to_owned),
            ValueLocation::HeaderParameter(name, part) => {
                single_header(delivery.headers, name).and_then(|header| header_parameter(header, name, part))
            }
            ValueLocation::NumberedHeaders(start) => Err(Refusal::Missing((*start).to_owned())),
            ValueLocation::Pointer(pointer) => {
                let found = self.scalar(pointer).filter(|value| !value.is_empty());
                found.ok_or_else(|| Refusal::Missing((*pointer).to_owned()))
            }
        }
    }
}

/// Returns whether `text` is JSON, and the values at the scheme's pointers. One pass, unless the text has valid JSON that
/// cannot be read as values, such as a number out of range.
fn read_json<'a>(text: &str, scheme: &Scheme<'a>) -> (bool, Vec<(&'a str, Option<String>)>) {
    let pointers: Vec<&str> = scheme.pointers().collect();
    match pointer::scalars(text, &pointers) {
        Some(values) => (true, pointers.into_iter().zip(values).collect()),
        None => (pointer::is_json(text), Vec::new()),
    }
}

/// Returns the value of `part` in a header such as `t=…,v1=…`.
fn header_parameter(header: &str, name: &str, part: &str) -> Result<String, Refusal> {
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
    fn header_parameter_must_occur_exactly_once() {
        let read = |header| header_parameter(header, "h", "t").ok();
        assert_eq!(read("t=1,v1=a").as_deref(), Some("1"));
        assert_eq!(read("v1=a; t=1").as_deref(), Some("1"));
        for header in ["", "t", "t=", "tt=1", "t=1,t=2", "t=1,t=1"] {
            assert_eq!(read(header), None, "{header}");
        }
    }
}
