//! Who may use the API: the holders of a key, or, where there is no key, whoever is on this machine.

use super::problem::{Answer, Problem};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use nerve_core::function::Secret;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use subtle::{Choice, ConstantTimeEq};

/// The keys, as hashes: of one length, so that a comparison tells nothing about them.
#[derive(Clone)]
pub(crate) struct Access {
    keys: Vec<[u8; 32]>,
}

/// Why an address may not be listened on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "refusing to listen on {0} without a key: anybody who reaches it could publish and run functions. \
     Set gateway.keys (NERVE_GATEWAY_KEYS), or listen on 127.0.0.1"
)]
pub struct OpenToAll(SocketAddr);

/// Refuses an address that others can reach when no key protects the API.
pub fn check_bind(addr: SocketAddr, keys: &[Secret]) -> Result<(), OpenToAll> {
    if keys.is_empty() && !is_loopback(addr.ip()) { Err(OpenToAll(addr)) } else { Ok(()) }
}

impl Access {
    pub(crate) fn new(keys: &[Secret]) -> Self {
        Self { keys: keys.iter().map(|key| Sha256::digest(key.expose()).into()).collect() }
    }

    /// Lets the request through to the API, or says why not.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Answer<()> {
        if self.keys.is_empty() { local_only(uri, headers) } else { self.check_key(headers) }
    }

    fn check_key(&self, headers: &HeaderMap) -> Answer<()> {
        let detail = match bearer(headers) {
            None => "this needs `Authorization: Bearer KEY`, with a key of gateway.keys",
            Some(key) => {
                let presented: [u8; 32] = Sha256::digest(key).into();
                let same = |known: &[u8; 32]| known.ct_eq(&presented);
                if self.keys.iter().fold(Choice::from(0), |found, known| found | same(known)).into() {
                    return Ok(());
                }
                "the key in `Authorization` is not one of gateway.keys"
            }
        };
        let challenge = HeaderValue::from_static("Bearer");
        Err(Problem::new(StatusCode::UNAUTHORIZED, detail).with(header::WWW_AUTHENTICATE, challenge))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// Without a key the socket is on loopback, and so is every caller; but a browser here may act for a page from elsewhere.
///
/// Such a page is known by its host name (DNS rebinding) or by its origin (a plain form post).
fn local_only(uri: &Uri, headers: &HeaderMap) -> Answer<()> {
    let refuse = |what: &str| {
        let detail = format!("without gateway.keys the API answers this machine only, and {what}; configure a key");
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    };
    let host =
        headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| Some(uri.authority()?.as_str()));
    if !host.is_some_and(is_local_authority) {
        return refuse("the header Host names another");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let authority = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    if authority.is_some_and(is_local_authority) { Ok(()) } else { refuse("the header Origin names another") }
}

/// Whether `host` or `host:port` names this machine.
fn is_local_authority(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(is_loopback)
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[&str], headers: &[(&'static str, &str)]) -> Result<(), u16> {
        let keys: Vec<_> = keys.iter().map(|key| Secret::new(*key)).collect();
        let headers = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        let checked = Access::new(&keys).check(&Uri::from_static("/v1/events"), &headers.collect());
        checked.map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn with_keys_one_of_them_is_needed() {
        let keys = ["first-key", "second-key"];
        for right in ["Bearer first-key", "bearer second-key"] {
            assert_eq!(check(&keys, &[("authorization", right), ("host", "nerve.example")]), Ok(()), "{right}");
        }
        for wrong in ["Bearer third-key", "Bearer ", "Bearer first-keyy", "Basic first-key", "first-key"] {
            assert_eq!(check(&keys, &[("authorization", wrong), ("host", "localhost")]), Err(401), "{wrong}");
        }
        assert_eq!(check(&keys, &[("host", "localhost")]), Err(401));
    }

    #[test]
    fn without_keys_only_this_machine_is_answered() {
        for host in
            ["localhost", "localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "a.localhost", "LOCALHOST."]
        {
            assert_eq!(check(&[], &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "10.0.0.1", "0.0.0.0", "", "[::2]"]
        {
            assert_eq!(check(&[], &[("host", host)]), Err(403), "{host}");
        }
        assert_eq!(check(&[], &[]), Err(403));
    }

    #[test]
    fn without_keys_a_page_from_elsewhere_is_refused() {
        let with_origin = |origin| check(&[], &[("host", "127.0.0.1:8080"), ("origin", origin)]);
        assert_eq!(with_origin("http://localhost:3000"), Ok(()));
        for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
            assert_eq!(with_origin(origin), Err(403), "{origin}");
        }
    }

    #[test]
    fn an_address_that_others_reach_needs_a_key() {
        let open: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        assert!(check_bind(open, &[]).unwrap_err().to_string().contains("gateway.keys"));
        assert!(check_bind(open, &[Secret::new("k")]).is_ok());
        for local in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            assert!(check_bind(local.parse().unwrap(), &[]).is_ok(), "{local}");
        }
        assert!(check_bind("[::]:0".parse().unwrap(), &[]).is_err());
    }
}
