//! API authentication: by key, or without configured keys only the server's user on this machine.

use crate::http::{
    forwarded,
    local_user::Owner,
    problem::{HttpResult, Problem, ProblemType},
};
use http::{HeaderMap, HeaderValue, Uri, header};
use nerve_config::Keys;
use nerve_core::Origin;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use subtle::ConstantTimeEq;

/// The API keys, as hashes of equal length, so that comparing them reveals nothing.
#[derive(Clone)]
pub(crate) struct Access {
    keys: Vec<([u8; 32], Caller)>,
}

/// Fetch Metadata: the relation of the requesting page to the target.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// A caller with access to everything, by the name of its key; empty for keys without a name and if there are no keys.
    Any(String),
    /// A caller with access to the documents, answers and conversations of one collection.
    Collection(String),
}

impl Caller {
    /// The origin of this caller's events.
    pub(crate) fn origin(&self) -> Origin {
        match self {
            Self::Any(name) => Origin::key(name),
            Self::Collection(collection) => Origin::collection(collection),
        }
    }

    /// Whether it may see resources of this collection, or of none.
    pub(crate) fn may_see(&self, collection: Option<&str>) -> bool {
        match self {
            Self::Any(_) => true,
            Self::Collection(own) => collection == Some(own),
        }
    }

    /// The collection of a request: the named one or the caller's own.
    ///
    /// # Errors
    /// 403 for a collection that is not the caller's.
    pub(crate) fn collection(&self, named: Option<String>, default: &str) -> HttpResult<String> {
        match (self, named) {
            (Self::Any(_), named) => Ok(named.unwrap_or_else(|| default.to_owned())),
            (Self::Collection(own), None) => Ok(own.clone()),
            (Self::Collection(own), Some(named)) if named == *own => Ok(named),
            (Self::Collection(own), Some(named)) => {
                let detail = format!("this key is for the collection `{own}` only, not for `{named}`");
                Err(Problem::new(ProblemType::Forbidden, detail))
            }
        }
    }

    /// Whether it may use this path.
    fn may_use(&self, path: &str) -> bool {
        const OF_COLLECTIONS: [&str; 4] = ["/v1/answers", "/v1/chat/completions", "/v1/documents", "/v1/feedback"];
        let is_at =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        matches!(self, Self::Any(_)) || OF_COLLECTIONS.into_iter().any(is_at)
    }
}

/// The address is reachable by others and there is no API key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "refusing to listen on {0} without a key: every client that reaches it could publish and run functions. \
     Set gateway.keys (NERVE_GATEWAY_KEYS), or listen on 127.0.0.1"
)]
pub struct OpenToAll(SocketAddr);

/// Checks that an address that others can reach is protected by a key.
///
/// # Errors
/// When it is not.
pub fn check_bind(addr: SocketAddr, keys: &Keys) -> Result<(), OpenToAll> {
    if keys.values().all(Vec::is_empty) && !is_loopback(addr.ip()) { Err(OpenToAll(addr)) } else { Ok(()) }
}

impl Access {
    /// Authentication by these keys.
    pub(crate) fn new(keys: &Keys, of_collections: &Keys) -> Self {
        let hashed = |keys: &Keys, caller: fn(String) -> Caller| {
            let keys = keys.iter().flat_map(|(name, keys)| keys.iter().map(move |key| (name, key)));
            let hashed = keys.map(|(name, key)| (Sha256::digest(key.expose()).into(), caller(name.clone())));
            hashed.collect::<Vec<_>>()
        };
        let [any, collections] = [hashed(keys, Caller::Any), hashed(of_collections, Caller::Collection)];
        Self { keys: [any, collections].concat() }
    }

    /// The caller of each key.
    pub(crate) fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.keys.iter().map(|(_, caller)| caller)
    }

    /// Whether no key is configured.
    pub(crate) fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Authenticates a request.
    ///
    /// # Errors
    /// 401 or 403.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap, origin: &forwarded::Origin) -> HttpResult<Caller> {
        if self.is_open() {
            self.check_page(uri, headers)?;
            if origin.client.is_some_and(|client| !is_loopback(client)) {
                return Err(elsewhere("the proxy reports another client address"));
            }
            return match origin.owner {
                None | Some(Owner::Own) => Ok(Caller::Any(String::new())),
                Some(Owner::Other(user)) => Err(of_another_user(&format!("the request is of user {user}"))),
                Some(Owner::Gone) => {
                    Err(of_another_user("the user of the request is unknown: the connection may be closed"))
                }
            };
        }
        let caller = self.check_key(headers)?;
        if caller.may_use(uri.path()) {
            return Ok(caller);
        }
        Err(Problem::new(ProblemType::Forbidden, "this key is for one collection, and this path is not"))
    }

    /// Without keys: refuses requests that a foreign web page makes a browser on this machine send, on every route.
    ///
    /// Without a key every client is on loopback, and so is a browser that acts for a foreign page. Such a page is recognized by the header
    /// Host (DNS rebinding), Origin (a form, `fetch`) or Sec-Fetch-Site (an image, a script, a link). Webhooks may arrive through a tunnel
    /// with another Host, and their senders are not browsers. Health checks are public.
    ///
    /// # Errors
    /// 403 for a request of a foreign page.
    pub(crate) fn check_page(&self, uri: &Uri, headers: &HeaderMap) -> HttpResult<()> {
        if !self.is_open() || matches!(uri.path(), "/healthz" | "/readyz") && !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let is_hook = uri.path().starts_with("/hooks/");
        let host =
            headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| Some(uri.authority()?.as_str()));
        if !is_hook && !host.is_some_and(is_local_authority) {
            return Err(elsewhere("the header Host names another host"));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let authority = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
            return match authority.is_some_and(is_local_authority) {
                true => Ok(()),
                false => Err(elsewhere("the header Origin names another host")),
            };
        }
        match headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
            None | Some(b"none" | b"same-origin" | b"same-site") => Ok(()),
            Some(_) => Err(elsewhere("the header Sec-Fetch-Site reports a page of another site")),
        }
    }

    fn check_key(&self, headers: &HeaderMap) -> HttpResult<Caller> {
        let detail = match bearer(headers) {
            None => "missing `Authorization: Bearer KEY` with a key of gateway.keys",
            Some(key) => {
                let presented: [u8; 32] = Sha256::digest(key).into();
                // Every key is compared, so that the time reveals nothing.
                let same = |(known, _): &&([u8; 32], Caller)| known.ct_eq(&presented).into();
                let found: Vec<_> = self.keys.iter().filter(same).collect();
                if let Some((_, caller)) = found.first() {
                    return Ok(caller.clone());
                }
                "the key in `Authorization` is not in gateway.keys"
            }
        };
        let challenge = HeaderValue::from_static("Bearer");
        Err(Problem::new(ProblemType::Unauthenticated, detail).with(header::WWW_AUTHENTICATE, challenge))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

fn of_another_user(what: &str) -> Problem {
    let detail = format!(
        "without gateway.keys the API answers the user of this server only, and {what}; configure a key, or let all users of this \
         machine use the API (gateway.local_users = \"all\")"
    );
    Problem::new(ProblemType::LocalCallersOnly, detail)
}

fn elsewhere(what: &str) -> Problem {
    let detail = format!("without gateway.keys the API answers this machine only, and {what}; configure a key");
    Problem::new(ProblemType::LocalCallersOnly, detail)
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
    use nerve_core::function::Secret;
    use std::collections::BTreeMap;

    fn unnamed(keys: &[&str]) -> Keys {
        BTreeMap::from([(String::new(), keys.iter().map(|key| Secret::new(*key)).collect())])
    }

    fn check(keys: &[&str], headers: &[(&'static str, &str)]) -> Result<(), u16> {
        let headers = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        let checked = Access::new(&unnamed(keys), &Keys::new()).check(
            &Uri::from_static("/v1/events"),
            &headers.collect(),
            &Default::default(),
        );
        checked.map(drop).map_err(|problem| problem.status().as_u16())
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
    fn a_key_of_a_collection_opens_what_is_about_it() {
        let of_collections = Keys::from([("manuals".to_owned(), vec![Secret::new("theirs")])]);
        let access = Access::new(&unnamed(&["all"]), &of_collections);
        let check = |key: &str, path: &'static str| {
            let headers = [(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap())];
            let checked = access.check(&Uri::from_static(path), &headers.into_iter().collect(), &Default::default());
            checked.map_err(|problem| problem.status().as_u16())
        };
        let own = Caller::Collection("manuals".into());
        assert_eq!(check("all", "/v1/events"), Ok(Caller::Any(String::new())));
        for path in ["/v1/answers", "/v1/answers/1", "/v1/documents", "/v1/feedback", "/v1/chat/completions"] {
            assert_eq!(check("theirs", path), Ok(own.clone()), "{path}");
        }
        for path in ["/v1/events", "/v1/functions", "/v1/answersx", "/metrics", "/v1/traces/1", "/v1/embeddings"] {
            assert_eq!(check("theirs", path), Err(403), "{path}");
        }
        assert_eq!(check("nobody", "/v1/answers"), Err(401));
        assert!(own.may_see(Some("manuals")) && !own.may_see(Some("other")) && !own.may_see(None));
    }

    #[test]
    fn origin_is_the_name_of_a_key_and_not_its_value() {
        let origin = |name: &str, values: &[&str], value: &str| {
            let keys = Keys::from([(name.to_owned(), values.iter().map(|value| Secret::new(*value)).collect())]);
            let headers = [(header::AUTHORIZATION, format!("Bearer {value}").parse().unwrap())];
            let uri = Uri::from_static("/v1/events");
            let headers = headers.into_iter().collect();
            Access::new(&keys, &Keys::new()).check(&uri, &headers, &Default::default()).unwrap().origin()
        };
        let before = origin("ci", &["old"], "old");
        assert_eq!(before, Origin::key("ci"));
        assert_eq!(
            (origin("ci", &["old", "new"], "new"), origin("ci", &["old", "new"], "old")),
            (before.clone(), before.clone())
        );
        assert_ne!(before, origin("", &["old"], "old"));
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
    fn without_keys_what_a_proxy_here_passes_on_is_refused() {
        let (access, uri) = (Access::new(&Keys::new(), &Keys::new()), Uri::from_static("http://localhost/v1/events"));
        let from = |client: &str| {
            let origin = forwarded::Origin { client: Some(client.parse().unwrap()), ..Default::default() };
            access.check(&uri, &HeaderMap::new(), &origin).is_ok()
        };
        assert!(from("127.0.0.1") && from("::1") && !from("192.0.2.1"));
    }

    #[test]
    fn without_keys_other_users_of_the_machine_are_refused() {
        let uri = Uri::from_static("http://localhost/v1/events");
        let checked = |keys: &[&str], owner| {
            let headers = [(header::AUTHORIZATION, "Bearer a-key".parse().unwrap())].into_iter().collect();
            let origin = forwarded::Origin { owner: Some(owner), ..Default::default() };
            let checked = Access::new(&unnamed(keys), &Keys::new()).check(&uri, &headers, &origin);
            checked.map(drop).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(checked(&[], Owner::Own), Ok(()));
        assert_eq!([checked(&[], Owner::Other(7)), checked(&[], Owner::Gone)], [Err(403), Err(403)]);
        assert_eq!(checked(&["a-key"], Owner::Other(7)), Ok(()));
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
    fn without_keys_a_page_of_another_site_is_refused_on_every_route() {
        let access = Access::new(&Keys::new(), &Keys::new());
        let check = |path: &str, headers: &[(&'static str, &str)]| {
            let headers =
                headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
            access.check_page(&path.parse().unwrap(), &headers.collect()).is_ok()
        };
        let (local, foreign, rebound) =
            (("host", "localhost:8080"), ("origin", "https://evil.example"), ("host", "evil.example"));
        for path in ["/", "/v1/events", "/metrics", "/mcp", "/console/x", "/nowhere"] {
            assert!(check(path, &[local]) && check(path, &[local, (SEC_FETCH_SITE, "same-origin")]), "{path}");
            assert!(!check(path, &[local, foreign]) && !check(path, &[rebound]), "{path}");
            assert!(!check(path, &[local, (SEC_FETCH_SITE, "cross-site")]), "{path}");
            assert!(
                check(path, &[local, ("origin", "http://127.0.0.1:3000"), (SEC_FETCH_SITE, "cross-site")]),
                "{path}"
            );
        }
        // A sender behind a tunnel is no browser.
        assert!(check("/hooks/github", &[("host", "abc.tunnel.example")]));
        assert!(!check(
            "/hooks/github",
            &[rebound, ("origin", "http://evil.example"), (SEC_FETCH_SITE, "same-origin")]
        ));
        assert!(!check("/hooks/github", &[local, (SEC_FETCH_SITE, "cross-site")]));
        assert!(check("/readyz", &[rebound]) && !check("/readyz", &[local, foreign]));
        // A key does all this: no page has it.
        let access = Access::new(&unnamed(&["k"]), &Keys::new());
        assert!(access.check_page(&Uri::from_static("/"), &HeaderMap::new()).is_ok());
    }

    #[test]
    fn an_address_that_others_reach_needs_a_key() {
        let open: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        assert!(check_bind(open, &unnamed(&[])).unwrap_err().to_string().contains("gateway.keys"));
        assert!(check_bind(open, &unnamed(&["k"])).is_ok());
        for local in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            assert!(check_bind(local.parse().unwrap(), &Keys::new()).is_ok(), "{local}");
        }
        assert!(check_bind("[::]:0".parse().unwrap(), &Keys::new()).is_err());
    }
}
