//! The client's address and base URL, from the connection or from the headers of a trusted proxy.
//!
//! Any client can send `X-Forwarded-For`. It is read only on connections from `gateway.trusted_proxies`, and from the right: each proxy
//! appends the address that it saw, so the right-most address outside the trusted networks is the client's, and the client may have forged
//! everything left of it. A proxy writes one of the two kinds of headers and forwards the other, so if both are present and differ, the
//! client forged one: such a request is refused.

use crate::{
    Gateway,
    http::{
        local_user::Owner,
        problem::{HttpResult, Problem},
    },
};
use axum::extract::FromRequestParts;
use http::{HeaderMap, Uri, header, request::Parts};
use nerve_core::manifest::Network;
use std::net::{IpAddr, SocketAddr};

/// The peer of a connection, in the extensions of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// Whether the connection uses TLS.
    pub(crate) tls: bool,
    /// The local user of the connection, if access depends on it.
    pub(crate) owner: Option<Owner>,
}

/// The origin of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The client's address; `None` for a request without a connection.
    pub(crate) client: Option<IpAddr>,
    /// Scheme and authority of the request URL, such as `https://n.example`; `None` if unknown.
    pub(crate) base: Option<String>,
    /// The local user of the client, if access depends on it.
    pub(crate) owner: Option<Owner>,
}

/// `Forwarded` and `X-Forwarded-*` contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the headers Forwarded and X-Forwarded-* contradict each other: a proxy must remove those that it does not write"
)]
pub(crate) struct ConflictingHeaders;

impl Origin {
    pub(crate) fn of(
        peer: Peer,
        trusted: &[Network],
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Self, ConflictingHeaders> {
        let address = peer.address.to_canonical();
        let host = values(headers, header::HOST.as_str())
            .next()
            .or_else(|| uri.authority().map(|authority| authority.as_str()));
        let base = |proto: &str, host: &str| {
            let proto = proto.to_ascii_lowercase();
            let good = matches!(proto.as_str(), "http" | "https") && host.parse::<http::uri::Authority>().is_ok();
            good.then(|| format!("{proto}://{host}"))
        };
        if !is_trusted(trusted, address) {
            let base = host.filter(|_| peer.tls).and_then(|host| base("https", host));
            return Ok(Self { client: Some(address), base, owner: peer.owner });
        }
        let forwarded = ForwardedHeaders::agreed(headers, trusted)?;
        let proto = forwarded.proto.or_else(|| peer.tls.then(|| "https".to_owned()));
        let host = forwarded.host.or_else(|| host.map(str::to_owned));
        let base = proto.zip(host).and_then(|(proto, host)| base(&proto, &host));
        Ok(Self { client: Some(forwarded.client.unwrap_or(address)), base, owner: peer.owner })
    }

    /// The URL of `path` as the client sees it, without a query.
    pub(crate) fn url(&self, path: &str) -> Option<String> {
        self.base.as_ref().map(|base| format!("{base}{path}"))
    }
}

impl FromRequestParts<Gateway> for Origin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        match parts.extensions.get::<Peer>() {
            Some(peer) => peer.origin(gateway, parts),
            None => Ok(Self::default()),
        }
    }
}

impl Peer {
    /// The origin of a request on this connection.
    ///
    /// # Errors
    /// 400 if the headers contradict each other.
    pub(crate) fn origin(self, gateway: &Gateway, request: &Parts) -> HttpResult<Origin> {
        Origin::of(self, &gateway.config().trusted_proxies, &request.uri, &request.headers)
            .map_err(|error| Problem::invalid_request(error.to_string()))
    }
}

/// The values of one kind of headers.
#[derive(Debug, Default, PartialEq, Eq)]
struct ForwardedHeaders {
    client: Option<IpAddr>,
    proto: Option<String>,
    host: Option<String>,
}

impl ForwardedHeaders {
    fn agreed(headers: &HeaderMap, trusted: &[Network]) -> Result<Self, ConflictingHeaders> {
        let (common, standard) = (Self::x_forwarded(headers, trusted), Self::forwarded(headers, trusted));
        Ok(Self {
            client: agree(common.client, standard.client)?,
            proto: agree(common.proto, standard.proto)?,
            host: agree(common.host, standard.host)?,
        })
    }

    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    fn x_forwarded(headers: &HeaderMap, trusted: &[Network]) -> Self {
        // The first is what the outermost proxy was asked for.
        let first = |name: &'static str| {
            let list = headers.get(name).and_then(|value| value.to_str().ok())?;
            list.split(',').next().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let hops = values(headers, "x-forwarded-for");
        let hops: Vec<_> = hops.flat_map(|line| line.split(',')).map(address_in).collect();
        let client = sender(hops.iter().copied(), trusted).map(|(_, client)| client);
        Self { client, proto: first("x-forwarded-proto"), host: first("x-forwarded-host") }
    }

    /// `Forwarded` (RFC 7239): the element that names the sender has the scheme and the host of the outermost proxy.
    fn forwarded(headers: &HeaderMap, trusted: &[Network]) -> Self {
        let lines: Vec<&str> = values(headers, header::FORWARDED.as_str()).collect();
        let elements: Vec<Vec<(String, String)>> =
            lines.iter().flat_map(|line| split_quoted(line, ',')).map(pairs_in).collect();
        let value = |element: &[(String, String)], name: &str| {
            element.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        let hops = elements.iter().map(|element| value(element, "for").as_deref().and_then(address_in));
        let Some((at, client)) = sender(hops, trusted) else { return Self::default() };
        let element = elements.get(at).map(Vec::as_slice).unwrap_or_default();
        Self { client: Some(client), proto: value(element, "proto"), host: value(element, "host") }
    }
}

fn agree<T: PartialEq>(one: Option<T>, other: Option<T>) -> Result<Option<T>, ConflictingHeaders> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => Err(ConflictingHeaders),
        (one, other) => Ok(one.or(other)),
    }
}

/// The right-most hop that is not a trusted proxy, or the left-most one if all are. An unreadable hop ends the search.
fn sender(
    hops: impl DoubleEndedIterator<Item = Option<IpAddr>> + ExactSizeIterator,
    trusted: &[Network],
) -> Option<(usize, IpAddr)> {
    let mut found = None;
    for (at, hop) in hops.enumerate().rev() {
        let Some(address) = hop else { break };
        found = Some((at, address));
        if !is_trusted(trusted, address) {
            break;
        }
    }
    found
}

fn is_trusted(trusted: &[Network], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

fn values<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default())
}

/// An address, with a port or without: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address_in(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    parsed.ok().map(|address: IpAddr| address.to_canonical())
}

/// `for=192.0.2.1;proto=https`: names in lower case, values without their quotes.
fn pairs_in(element: &str) -> Vec<(String, String)> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
        Some((name.trim().to_ascii_lowercase(), value.to_owned()))
    };
    split_quoted(element, ';').filter_map(pair).collect()
}

/// Splits at `separator` outside of quotes.
fn split_quoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, tls: bool, headers: &[(&'static str, &str)]) -> Result<Origin, ConflictingHeaders> {
        let trusted: Vec<Network> = ["10.0.0.0/8", "2001:db8:aaaa::/48"].iter().map(|n| n.parse().unwrap()).collect();
        let mut map = HeaderMap::new();
        map.insert(header::HOST, "inner:8080".parse().unwrap());
        for (name, value) in headers {
            map.append(http::HeaderName::from_static(name), value.parse().unwrap());
        }
        let peer = Peer { address: peer.parse().unwrap(), tls, owner: None };
        Origin::of(peer, &trusted, &Uri::from_static("/hooks/x"), &map)
    }

    fn client(peer: &str, headers: &[(&'static str, &str)]) -> String {
        of(peer, false, headers).unwrap().client.unwrap().to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let spoofed =
            [("x-forwarded-for", "198.51.100.7"), ("x-forwarded-proto", "https"), ("forwarded", "for=1.1.1.1")];
        let origin = of("192.0.2.1", false, &spoofed).unwrap();
        assert_eq!((origin.client.unwrap().to_string().as_str(), origin.base), ("192.0.2.1", None));
        assert_eq!(client("10.1.1.1", &[("x-forwarded-for", "198.51.100.7")]), "198.51.100.7");
        assert_eq!(client("::ffff:10.1.1.1", &[("x-forwarded-for", "198.51.100.7")]), "198.51.100.7");
        assert_eq!(client("10.1.1.1", &[]), "10.1.1.1", "the proxy itself asks");
    }

    #[test]
    fn client_is_the_right_most_untrusted_address() {
        for (forwarded, expected) in [
            ("1.1.1.1, 198.51.100.7", "198.51.100.7"),
            ("1.1.1.1, 198.51.100.7, 10.2.2.2", "198.51.100.7"),
            ("198.51.100.7:4711", "198.51.100.7"),
            ("2001:db8::7, [2001:db8:aaaa::1]:443", "2001:db8::7"),
            ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("198.51.100.7, unknown", "10.1.1.1"),
            ("198.51.100.7, unknown, 10.2.2.2", "10.2.2.2"),
            ("", "10.1.1.1"),
        ] {
            assert_eq!(client("10.1.1.1", &[("x-forwarded-for", forwarded)]), expected, "{forwarded}");
        }
        let two_lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "198.51.100.7")];
        assert_eq!(client("10.1.1.1", &two_lines), "198.51.100.7");
    }

    #[test]
    fn forwarded_header_follows_rfc_7239() {
        let forwarded = "for=1.1.1.1;host=evil.example, For=\"[2001:db8::7]:47\";Proto=HTTPS;host=\"n.example:8443\";by=_x, for=10.2.2.2";
        let origin = of("10.1.1.1", false, &[("forwarded", forwarded)]).unwrap();
        assert_eq!(origin.client.unwrap().to_string(), "2001:db8::7");
        assert_eq!(origin.url("/hooks/x").unwrap(), "https://n.example:8443/hooks/x");
        assert_eq!(client("10.1.1.1", &[("forwarded", "for=198.51.100.7, for=_hidden")]), "10.1.1.1");
        assert_eq!(client("10.1.1.1", &[("forwarded", "for=\"a,b;c\", for=198.51.100.7")]), "198.51.100.7");
    }

    #[test]
    fn contradicting_headers_are_refused() {
        let agreed = [("x-forwarded-for", "198.51.100.7"), ("forwarded", "for=198.51.100.7;proto=https")];
        assert_eq!(of("10.1.1.1", false, &agreed).unwrap().url("/").unwrap(), "https://inner:8080/");
        let spoofed = [("x-forwarded-for", "198.51.100.7"), ("forwarded", "for=10.9.9.9")];
        assert_eq!(of("10.1.1.1", false, &spoofed), Err(ConflictingHeaders));
    }

    #[test]
    fn url_is_known_over_tls_and_behind_a_proxy() {
        let base = |peer, tls, headers: &[(&'static str, &str)]| of(peer, tls, headers).unwrap().base;
        assert_eq!(base("192.0.2.1", true, &[]).unwrap(), "https://inner:8080");
        assert_eq!(base("192.0.2.1", false, &[]), None, "something before us may speak TLS");
        assert_eq!(base("10.1.1.1", false, &[]), None);
        let forwarded = [("x-forwarded-proto", "https"), ("x-forwarded-host", "n.example")];
        assert_eq!(base("10.1.1.1", false, &forwarded).unwrap(), "https://n.example");
        assert_eq!(base("10.1.1.1", false, &forwarded[..1]).unwrap(), "https://inner:8080", "a proxy that keeps Host");
        for bad in ["a b", "n.example/x", ""] {
            assert_eq!(
                base("10.1.1.1", false, &[forwarded[0], ("x-forwarded-host", bad)]).is_some(),
                bad.is_empty(),
                "{bad}"
            );
        }
        assert_eq!(base("10.1.1.1", false, &[("x-forwarded-proto", "gopher")]), None);
    }
}
