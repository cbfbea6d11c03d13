//! A request out of arbitrary bytes: a line of the target's own, a query, headers, an empty line and a body.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// A request.
pub struct Request<'d> {
    /// The first line, which says where the request comes from or goes to.
    pub line: &'d str,
    /// The query of its URL.
    pub query: Option<&'d str>,
    /// The headers; those that no HTTP server would pass on are left out.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl<'d> Request<'d> {
    /// Reads a request.
    pub fn read(data: &'d [u8]) -> Option<Self> {
        let (head, body) = match data.windows(2).position(|pair| pair == b"\n\n") {
            Some(at) => (data.get(..at)?, data.get(at + 2..)?),
            None => (data, &b""[..]),
        };
        let mut lines = head.split(|byte| *byte == b'\n');
        let line = std::str::from_utf8(lines.next()?).ok()?;
        let query = lines.next().and_then(|line| std::str::from_utf8(line).ok()).filter(|query| !query.is_empty());
        let mut headers = HeaderMap::new();
        for line in lines {
            let mut halves = line.splitn(2, |byte| *byte == b':');
            let name = halves.next().and_then(|name| HeaderName::from_bytes(name).ok());
            let value = halves.next().and_then(|value| HeaderValue::from_bytes(value.trim_ascii()).ok());
            if let (Some(name), Some(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        Some(Self { line, query, headers, body: Bytes::copy_from_slice(body) })
    }
}
