//! `[nats]`: the NATS servers, and the credentials of this client.

use crate::{Servers, servers::UrlCredentials};
use nerve_core::Secret;
use serde::{Deserialize, Deserializer};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Maximum size of a file with a password, token, seed or credentials.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// `[nats]`: the servers, the credentials, TLS and the JetStream domain.
///
/// At most one kind of credentials is allowed: a user and password, a token, an nkey, or a credentials file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// The servers; empty for the nats-server that `nerve up` starts.
    pub url: Servers,
    /// The user.
    #[serde(deserialize_with = "text")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(deserialize_with = "secret")]
    pub password: Option<Secret>,
    /// A file with the password.
    #[serde(deserialize_with = "path")]
    pub password_file: Option<PathBuf>,
    /// A token.
    #[serde(deserialize_with = "secret")]
    pub token: Option<Secret>,
    /// A file with the token.
    #[serde(deserialize_with = "path")]
    pub token_file: Option<PathBuf>,
    /// The seed of a user's nkey.
    #[serde(deserialize_with = "secret")]
    pub nkey: Option<Secret>,
    /// A file with the seed.
    #[serde(deserialize_with = "path")]
    pub nkey_file: Option<PathBuf>,
    /// A credentials file: a user's JWT and the seed of its nkey.
    #[serde(deserialize_with = "path")]
    pub creds: Option<PathBuf>,
    /// Whether to require TLS, even if the server does not.
    pub tls: bool,
    /// Trusted certificates instead of the system's, in PEM.
    #[serde(deserialize_with = "path")]
    pub tls_ca: Option<PathBuf>,
    /// The client certificate (mTLS), in PEM.
    #[serde(deserialize_with = "path")]
    pub tls_client_cert: Option<PathBuf>,
    /// The private key of the client certificate, in PEM.
    #[serde(deserialize_with = "path")]
    pub tls_client_key: Option<PathBuf>,
    /// Whether the TLS handshake precedes the NATS protocol.
    pub tls_first: bool,
    /// The JetStream domain, if it is not the server's own.
    #[serde(deserialize_with = "text")]
    pub domain: Option<String>,
    /// The prefix of inbox subjects, if the server restricts it.
    #[serde(deserialize_with = "text")]
    pub inbox_prefix: Option<String>,
    /// The nats-server that `nerve up` starts.
    #[serde(deserialize_with = "path")]
    pub server: Option<PathBuf>,
    /// The certificate of the nats-server that `nerve up` starts, in PEM.
    #[serde(deserialize_with = "path")]
    pub server_tls_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM.
    #[serde(deserialize_with = "path")]
    pub server_tls_key: Option<PathBuf>,
    /// The only accepted server certificate, for any host name: that of a nats-server on this machine.
    #[serde(skip)]
    pub pinned: Option<PathBuf>,
    /// The same, as the SHA-256 of the certificate.
    #[serde(skip)]
    pub pinned_sha256: Option<[u8; 32]>,
}

/// The reason why the settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Two kinds of credentials are set, or one twice.
    #[error("{first} and {second} are both set: keep one")]
    Twice {
        /// One setting.
        first: &'static str,
        /// The other setting.
        second: &'static str,
    },
    /// A setting requires another one.
    #[error("{key} is set without {needs}: set both")]
    Alone {
        /// The setting.
        key: &'static str,
        /// The missing setting.
        needs: &'static str,
    },
    /// A value is invalid.
    #[error("{key}: {why}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// The reason, without the value.
        why: &'static str,
    },
    /// A file cannot be read.
    #[error("{key}: {} cannot be read", path.display())]
    File {
        /// The setting that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{key}: {} {why}", path.display())]
    Content {
        /// The setting that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason, without the content.
        why: &'static str,
    },
}

/// The credentials presented to a server, with their origin.
#[derive(Debug, Clone)]
pub(crate) enum Credentials {
    None,
    User { user: String, password: Value },
    Token(Value),
    Nkey(Value),
    Creds(PathBuf),
}

/// A secret, or the file that contains it.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    /// The setting.
    pub(crate) key: &'static str,
    held: Held,
}

#[derive(Debug, Clone)]
enum Held {
    Here(Secret),
    File(PathBuf),
}

impl Value {
    /// Returns the secret, read from its file if there is one.
    pub(crate) fn read(&self) -> Result<Secret, SettingsError> {
        match &self.held {
            Held::Here(secret) => Ok(secret.clone()),
            Held::File(path) => {
                let text = read_file(self.key, path)?;
                match text.trim_end_matches(['\r', '\n']) {
                    "" => Err(SettingsError::Content { key: self.key, path: path.clone(), why: "is empty" }),
                    secret => Ok(Secret::new(secret)),
                }
            }
        }
    }
}

impl NatsSettings {
    /// Checks the settings without reading files.
    ///
    /// # Errors
    /// If two settings contradict each other, or one is missing.
    pub fn check(&self) -> Result<(), SettingsError> {
        let pairs = [
            ("nats.tls_client_cert", &self.tls_client_cert, "nats.tls_client_key", &self.tls_client_key),
            ("nats.server_tls_cert", &self.server_tls_cert, "nats.server_tls_key", &self.server_tls_key),
        ];
        for (cert, cert_file, key, key_file) in pairs {
            match (cert_file, key_file) {
                (Some(_), None) => return Err(SettingsError::Alone { key: cert, needs: key }),
                (None, Some(_)) => return Err(SettingsError::Alone { key, needs: cert }),
                _ => {}
            }
        }
        let subject_token = |domain: &String| domain.contains(|c: char| c.is_whitespace() || ".*>".contains(c));
        if self.domain.as_ref().is_some_and(subject_token) {
            let why = "a JetStream domain has no spaces, no `.`, no `*` and no `>`";
            return Err(SettingsError::Invalid { key: "nats.domain", why });
        }
        let subject = |prefix: &String| {
            prefix
                .split('.')
                .all(|token| !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || "*>".contains(c)))
        };
        if !self.inbox_prefix.as_ref().is_none_or(subject) {
            let why = "it is a subject without `*` and `>`, such as _INBOX_nerve";
            return Err(SettingsError::Invalid { key: "nats.inbox_prefix", why });
        }
        self.credentials().map(drop)
    }

    /// Returns whether credentials are set.
    pub fn has_credentials(&self) -> bool {
        !matches!(self.credentials(), Ok(Credentials::None))
    }

    /// Returns the settings without credentials, except those in `url`.
    pub fn without_credentials(self) -> Self {
        Self {
            user: None,
            password: None,
            password_file: None,
            token: None,
            token_file: None,
            nkey: None,
            nkey_file: None,
            creds: None,
            ..self
        }
    }

    /// The subject prefix of the JetStream API.
    pub fn api_prefix(&self) -> String {
        match &self.domain {
            Some(domain) => format!("$JS.{domain}.API"),
            None => "$JS.API".to_owned(),
        }
    }

    pub(crate) fn credentials(&self) -> Result<Credentials, SettingsError> {
        let password = self.value(("nats.password", &self.password), ("nats.password_file", &self.password_file))?;
        let user = match (&self.user, password) {
            (Some(user), Some(password)) => Some(Credentials::User { user: user.clone(), password }),
            (Some(_), None) => return Err(SettingsError::Alone { key: "nats.user", needs: "nats.password" }),
            (None, Some(password)) => {
                return Err(SettingsError::Alone { key: password.key, needs: "nats.user" });
            }
            (None, None) => None,
        };
        let token = self.value(("nats.token", &self.token), ("nats.token_file", &self.token_file))?;
        let nkey = self.value(("nats.nkey", &self.nkey), ("nats.nkey_file", &self.nkey_file))?;
        let of_url = self.url.credentials().map(|credentials| match credentials {
            UrlCredentials::User(user, password) => {
                let password = Value { key: "nats.url", held: Held::Here(password.clone()) };
                Credentials::User { user: user.clone(), password }
            }
            UrlCredentials::Token(token) => {
                Credentials::Token(Value { key: "nats.url", held: Held::Here(token.clone()) })
            }
        });
        let mut kinds = [
            ("the user information of nats.url", of_url),
            ("nats.user", user),
            ("nats.token", token.map(Credentials::Token)),
            ("nats.nkey", nkey.map(Credentials::Nkey)),
            ("nats.creds", self.creds.clone().map(Credentials::Creds)),
        ]
        .into_iter()
        .filter_map(|(key, kind)| Some((key, kind?)));
        match (kinds.next(), kinds.next()) {
            (None, _) => Ok(Credentials::None),
            (Some((_, kind)), None) => Ok(kind),
            (Some((first, _)), Some((second, _))) => Err(SettingsError::Twice { first, second }),
        }
    }

    fn value(
        &self,
        (key, secret): (&'static str, &Option<Secret>),
        (file_key, file): (&'static str, &Option<PathBuf>),
    ) -> Result<Option<Value>, SettingsError> {
        match (secret, file) {
            (Some(_), Some(_)) => Err(SettingsError::Twice { first: key, second: file_key }),
            (Some(secret), None) => Ok(Some(Value { key, held: Held::Here(secret.clone()) })),
            (None, Some(file)) => Ok(Some(Value { key: file_key, held: Held::File(file.clone()) })),
            (None, None) => Ok(None),
        }
    }
}

/// Reads a small file that contains a secret.
pub(crate) fn read_file(key: &'static str, path: &Path) -> Result<String, SettingsError> {
    let failed = |source| SettingsError::File { key, path: path.to_owned(), source };
    nerve_files::read_to_string(path, MAX_SECRET_BYTES).map_err(failed)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(text(deserializer)?.map(PathBuf::from))
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(text(deserializer)?.map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> NatsSettings {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn one_kind_of_credentials_is_accepted_and_not_displayed() {
        for json in [
            r#"{"url": "nats://ada:hunter2@h"}"#,
            r#"{"url": ["nats://hunter2@h"]}"#,
            r#"{"user": "ada", "password": "hunter2"}"#,
            r#"{"token": "hunter2"}"#,
            r#"{"nkey": "hunter2"}"#,
        ] {
            let settings = read(json);
            settings.check().unwrap();
            assert!(settings.has_credentials(), "{json}");
            assert!(!format!("{settings:?} {}", settings.url).contains("hunter2"), "{settings:?}");
        }
        assert!(!read(r#"{"url": "nats://h", "token": "", "creds": ""}"#).has_credentials());
    }

    #[test]
    fn contradictory_settings_are_named() {
        for (json, said) in [
            (r#"{"url": "nats://ada:hunter2@h", "token": "hunter2"}"#, "nats.url and nats.token"),
            (r#"{"token": "hunter2", "token_file": "/t"}"#, "nats.token and nats.token_file"),
            (r#"{"creds": "/c", "nkey_file": "/n"}"#, "nats.nkey and nats.creds"),
            (r#"{"user": "ada"}"#, "nats.user is set without nats.password"),
            (r#"{"password_file": "/p"}"#, "nats.password_file is set without nats.user"),
            (r#"{"tls_client_cert": "/c"}"#, "without nats.tls_client_key"),
            (r#"{"domain": "a.b"}"#, "nats.domain"),
        ] {
            let error = read(json).check().unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{json}: {error}");
        }
    }

    #[test]
    fn secret_file_is_read_at_each_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let settings = NatsSettings { token_file: Some(file.clone()), ..NatsSettings::default() };
        let Credentials::Token(token) = settings.credentials().unwrap() else { panic!("{settings:?}") };
        assert!(token.read().unwrap_err().to_string().contains("cannot be read"));
        for value in ["one", "two"] {
            std::fs::write(&file, format!("{value}\n")).unwrap();
            assert_eq!(token.read().unwrap().expose(), value);
        }
    }
}
