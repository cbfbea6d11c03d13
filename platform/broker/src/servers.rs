//! A list of NATS servers, and the credentials in its URLs.

use nerve_core::Secret;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer};
use std::{fmt, net::IpAddr};
use url::{Host, Url};

/// URL schemes of NATS; the last two are WebSocket.
const SCHEMES: [&str; 4] = ["nats", "tls", "ws", "wss"];
/// Maximum number of servers in a list.
const MAX_SERVERS: usize = 64;

/// Servers to try, as URLs without user information; displayed as `nats://a:4222,nats://b:4222`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Servers {
    urls: Vec<Url>,
    credentials: Option<UrlCredentials>,
}

/// User information from a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UrlCredentials {
    /// `user:password@`
    User(String, Secret),
    /// `token@`
    Token(Secret),
}

/// The reason why a list of servers is invalid. It never quotes the list, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServersError {
    /// An entry is not a URL.
    #[error("server {number} of the list is not a URL of NATS: {why}")]
    Url {
        /// Its position, starting at 1.
        number: usize,
        /// The reason.
        why: String,
    },
    /// The list mixes WebSocket and NATS URLs, which the client does not support.
    #[error("ws:// and nats:// servers cannot be mixed: name servers of one kind")]
    Mixed,
    /// Two URLs carry different credentials.
    #[error("the URLs carry different credentials: all servers of a list are asked with the same")]
    Credentials,
    /// The list is too long.
    #[error("there are more than 64 servers: name some, and the client learns of the others of a cluster")]
    TooMany,
}

impl Servers {
    /// Parses a comma-separated list; a server without a scheme is `nats://`.
    ///
    /// # Errors
    /// If an entry is not a NATS URL, or the entries conflict.
    pub fn parse(list: &str) -> Result<Self, ServersError> {
        Self::of(list.split(',').map(str::trim).filter(|server| !server.is_empty()))
    }

    fn of<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, ServersError> {
        let mut servers = Self::default();
        for (at, text) in list.into_iter().enumerate() {
            let (url, credentials) = parse(text).map_err(|why| ServersError::Url { number: at + 1, why })?;
            servers.urls.push(url);
            match (&servers.credentials, credentials) {
                (None, found) => servers.credentials = found,
                (Some(known), Some(found)) if *known != found => return Err(ServersError::Credentials),
                (Some(_), _) => {}
            }
        }
        if servers.urls.len() > MAX_SERVERS {
            return Err(ServersError::TooMany);
        }
        let websockets = servers.urls.iter().filter(|url| url.scheme().starts_with("ws")).count();
        if ![0, servers.urls.len()].contains(&websockets) {
            return Err(ServersError::Mixed);
        }
        Ok(servers)
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.urls.is_empty()
    }

    /// The number of servers.
    pub fn len(&self) -> usize {
        self.urls.len()
    }

    /// Returns whether all are on this machine: by a loopback address or `localhost`.
    pub fn are_local(&self) -> bool {
        self.urls.iter().all(|url| match url.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
            None => false,
        })
    }

    pub(crate) fn urls(&self) -> &[Url] {
        &self.urls
    }

    pub(crate) fn credentials(&self) -> Option<&UrlCredentials> {
        self.credentials.as_ref()
    }
}

fn parse(text: &str) -> Result<(Url, Option<UrlCredentials>), String> {
    let parsed = if text.contains("://") { text.parse() } else { format!("nats://{text}").parse() };
    let mut url: Url = parsed.map_err(|error: url::ParseError| error.to_string())?;
    if !SCHEMES.contains(&url.scheme()) {
        return Err(format!("`{}://` is not one of nats://, tls://, ws:// and wss://", url.scheme()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it names no host".to_owned());
    }
    // For example `nats:/ada:secret@host`, which is the host `nats` with a path.
    let after_host = [Some(url.path()), url.query(), url.fragment()];
    if after_host.into_iter().flatten().any(|part| part.contains('@')) {
        let why = "an `@` comes after its host: write nats://user:password@host:4222, and a `/` in a password as %2F";
        return Err(why.to_owned());
    }
    if !url.scheme().starts_with("ws") && !["", "/"].contains(&url.path()) {
        return Err("it has a path: write nats://host:4222".to_owned());
    }
    let decoded = |part: &str| {
        let decoded = percent_decode_str(part).decode_utf8();
        decoded.map(std::borrow::Cow::into_owned).map_err(|_| "its user information is not UTF-8".to_owned())
    };
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        (user, Some(password)) => Some(UrlCredentials::User(decoded(user)?, Secret::new(decoded(password)?))),
        (token, None) => Some(UrlCredentials::Token(Secret::new(decoded(token)?))),
    };
    let bare = url.set_username("").and_then(|()| url.set_password(None));
    bare.map_err(|()| "its user information cannot be read".to_owned())?;
    Ok((url, credentials))
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, url) in self.urls.iter().enumerate() {
            write!(f, "{}{url}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Servers({self})")
    }
}

/// Deserializes a comma-separated string or a list of strings.
impl<'de> Deserialize<'de> for Servers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "nats.url must be a URL, or a list of URLs")]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        let servers = match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(list) => Self::parse(&list),
            OneOrMany::Many(list) => Self::of(list.iter().map(String::as_str)),
        };
        servers.map_err(|error| serde::de::Error::custom(format!("nats.url: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_list_has_no_credentials() {
        let servers = Servers::parse("nats://ada:p4%3Ass@a:4222, b:4223 ,tls://ada:p4%3Ass@[::1]:1").unwrap();
        assert_eq!(servers.to_string(), "nats://a:4222,nats://b:4223,tls://[::1]:1");
        assert!(!format!("{servers:?}").contains("p4"));
        assert_eq!(servers.credentials(), Some(&UrlCredentials::User("ada".to_owned(), Secret::new("p4:ss"))));
        let token = Servers::parse("ws://s3cret@h:80/path").unwrap();
        assert_eq!(token.credentials(), Some(&UrlCredentials::Token(Secret::new("s3cret"))));
        assert_eq!(Servers::parse("").unwrap(), Servers::default());
    }

    #[test]
    fn invalid_list_is_rejected_without_being_quoted() {
        for (list, said) in [
            ("nats://ada:hunter2@h:port", "server 1"),
            ("h:1,http://ada:hunter2@h", "server 2"),
            ("nats://ada:hunter2@", "server 1"),
            ("nats://ada:hun/ter2@h", "server 1"),
            ("nats:/ada:hunter2@h", "`@` comes after its host"),
            ("ws:/ada:hunter2@h", "`@` comes after its host"),
            ("ada/hunter2@h", "`@` comes after its host"),
            ("nats:/h", "it has a path"),
            ("nats://h,ws://ada:hunter2@h", "mixed"),
            ("nats://ada:hunter2@h,nats://bob:hunter2@h", "different credentials"),
        ] {
            let error = Servers::parse(list).unwrap_err();
            assert!(error.to_string().contains(said), "{list}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2") && !error.to_string().contains("ada"), "{error}");
        }
        assert_eq!(Servers::parse(&"h,".repeat(65)), Err(ServersError::TooMany));
    }
}
