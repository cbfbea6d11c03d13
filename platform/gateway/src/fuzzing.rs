//! The parsers of requests that the fuzz targets in `tests/fuzz` call. Not a part of the API.

use crate::{
    api::cloudevents::{self, ParsedRequest},
    http::forwarded::{Origin, Peer},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use nerve_core::{Event, manifest::Network};
use std::net::IpAddr;

/// Parses the events of a request; `None` if it is not a CloudEvent in any mode.
///
/// # Errors
/// The status that such a request is answered with.
pub fn read_events(headers: &HeaderMap, body: &Bytes) -> Result<Option<Vec<Event>>, StatusCode> {
    match cloudevents::parse(headers, body) {
        Ok(ParsedRequest::One(event)) => Ok(Some(vec![*event])),
        Ok(ParsedRequest::Batch(events)) => Ok(Some(events)),
        Ok(ParsedRequest::Plain) => Ok(None),
        Err(problem) => Err(problem.status()),
    }
}

/// The client address and base URL of a request of `peer`; `None` if its headers contradict each other.
pub fn read_origin(
    (peer, tls): (IpAddr, bool),
    trusted: &[Network],
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<(Option<IpAddr>, Option<String>)> {
    let Origin { client, base, .. } =
        Origin::of(Peer { address: peer, tls, owner: None }, trusted, uri, headers).ok()?;
    Some((client, base))
}
