//! Deliveries with several events: one per item of an array.

use super::{IdScope, Refusal, VerifiedEvent, content::Content, is_valid_attribute, pointer, scheme::Items};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use nerve_core::manifest::Ids;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Maximum items of one delivery.
pub(super) const MAX_ITEMS: usize = 10_000;

/// Returns one event per item, or `None` if the body has no such array.
pub(super) fn events(
    items: &Items<'_>,
    content: &Content<'_>,
    ids: Ids,
) -> Result<Option<Vec<VerifiedEvent>>, Refusal> {
    let Some(found) = content.json().and_then(|text| pointer::array(text, items.at)) else { return Ok(None) };
    if found.len() > MAX_ITEMS {
        return Err(Refusal::TooManyItems);
    }
    Ok(Some(found.iter().map(|item| event(items, item, &content.data, ids)).collect()))
}

fn event(items: &Items<'_>, item: &RawValue, body: &Bytes, ids: Ids) -> VerifiedEvent {
    let text = item.get();
    let scalar = |pointer: &str| pointer::scalar(text, pointer).filter(|value| !value.is_empty());
    let first = items.id.first().copied().flatten().and_then(scalar);
    let id = first.map(|first| {
        let rest = items.id.iter().skip(1).flatten().filter_map(|pointer| scalar(pointer));
        std::iter::once(first).chain(rest).collect::<Vec<_>>().join(".")
    });
    let (id, id_scope) = match id.filter(|id| is_valid_attribute(id)) {
        Some(id) => (id, IdScope::of(ids, text.as_bytes())),
        None => (HEXLOWER.encode(&Sha256::digest(text)), IdScope::ContentHash),
    };
    VerifiedEvent {
        id,
        id_scope,
        ty: items.ty.and_then(scalar),
        subject: None,
        content_type: Some("application/json".to_owned()),
        data: body.slice_ref(text.as_bytes()),
    }
}
