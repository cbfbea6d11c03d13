//! NATS JWTs (version 2) for a nats-server with accounts in its configuration: an operator signs accounts, an account
//! signs its users.

use crate::roles::Permissions;
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Maximum bytes that a joining user may send.
const MAX_JOIN_BYTES: u32 = 4096;

/// The reason why a JWT cannot be signed: a key without a private half, or a clock before 1970.
#[derive(Debug, thiserror::Error)]
#[error("a JWT cannot be signed: {0}")]
pub struct JwtError(String);

impl JwtError {
    pub(crate) fn new(why: &impl ToString) -> Self {
        Self(why.to_string())
    }
}

/// The self-signed JWT of a server's operator.
///
/// # Errors
/// If `operator` cannot sign.
pub fn operator(operator: &KeyPair, name: &str, system_account: &str) -> Result<String, JwtError> {
    let claims = json!({"type": "operator", "version": 2, "system_account": system_account});
    sign(operator, (&operator.public_key(), name), claims, None)
}

/// A signing key of an account, with the permissions of all users that it signs.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The public key.
    pub key: String,
    /// Its name.
    pub role: &'static str,
    /// The permissions of its users.
    pub permissions: Permissions,
}

/// An account, without limits.
#[derive(Debug, Clone, Default)]
pub struct Account<'a> {
    /// Its public key.
    pub public: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Whether JetStream is enabled.
    pub jetstream: bool,
    /// Additional keys that sign its users.
    pub scopes: Vec<Scope>,
    /// Revoked users by public key, with the time (seconds since 1970) up to which their JWTs are invalid.
    pub revoked: BTreeMap<String, u64>,
}

/// The JWT of an account, signed by `operator`.
///
/// # Errors
/// If `operator` cannot sign.
pub fn account(operator: &KeyPair, account: &Account<'_>) -> Result<String, JwtError> {
    let stored = if account.jetstream { -1 } else { 0 };
    let scopes = account.scopes.iter().map(|Scope { key, role, permissions }| {
        let template = json!({
            "pub": permissions.publish, "sub": permissions.subscribe,
            "subs": -1, "data": -1, "payload": -1,
        });
        json!({"kind": "user_scope", "key": key, "role": role, "template": template})
    });
    let scopes: Vec<Value> = scopes.collect();
    let claims = json!({
        "type": "account", "version": 2,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": stored, "disk_storage": stored, "streams": stored, "consumer": stored,
        },
        "signing_keys": scopes,
        "revocations": account.revoked,
        "default_permissions": {"pub": {}, "sub": {}},
    });
    sign(operator, (account.public, account.name), claims, None)
}

/// The JWT of a user of `account` with all permissions in it, for `lifetime` if given.
///
/// # Errors
/// If `account` cannot sign.
pub fn user(account: &KeyPair, public: &str, name: &str, lifetime: Option<Duration>) -> Result<String, JwtError> {
    let claims = json!({
        "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
    });
    sign(account, (public, name), claims, lifetime)
}

/// The JWT of a user of `account` with the permissions of `scope`. They are in the account's JWT, so the user's JWT stays
/// short, and a role's permissions change without new credentials.
///
/// # Errors
/// If `scope` cannot sign.
pub fn scoped_user(scope: &KeyPair, account: &str, public: &str, name: &str) -> Result<String, JwtError> {
    sign(scope, (public, name), json!({"type": "user", "version": 2, "issuer_account": account}), None)
}

/// The subject of join requests, by the user's public key.
pub fn join_subject(public: &str) -> String {
    format!("join.{public}")
}

/// The inbox prefix of that user.
pub fn join_inbox(public: &str) -> String {
    format!("_INBOX.{public}")
}

/// The signed part of the JWT of a user that may only request to join, until `expires` (seconds since 1970).
///
/// A token carries only the signature, and its reader rebuilds this text. So it depends on these values only.
pub(crate) fn join_claims(account: &str, public: &str, issued: u64, expires: u64) -> String {
    let (subject, inbox) = (join_subject(public), join_inbox(public));
    let body = format!(
        r#"{{"exp":{expires},"iat":{issued},"iss":"{account}","name":"join","nats":{{"data":-1,"payload":{MAX_JOIN_BYTES},"pub":{{"allow":["{subject}"]}},"sub":{{"allow":["{inbox}.>"]}},"subs":4,"type":"user","version":2}},"sub":"{public}"}}"#
    );
    let header = r#"{"alg":"ed25519-nkey","typ":"JWT"}"#;
    format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(body.as_bytes()))
}

/// A credentials file in the format of the NATS clients.
pub fn credentials(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         The seed below signs as this user: keep it secret.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// The JWT and the seed of a credentials file: each is on the line after a line of dashes.
pub fn parse_credentials(text: &str) -> Option<(&str, &str)> {
    let mut lines = text.lines().map(str::trim);
    let mut part = |title: &str| {
        lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(title))?;
        lines.next().filter(|line| !line.is_empty() && !line.starts_with('-'))
    };
    Some((part("JWT")?, part("SEED")?))
}

fn sign(
    issuer: &KeyPair,
    (subject, name): (&str, &str),
    claims: Value,
    lifetime: Option<Duration>,
) -> Result<String, JwtError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| JwtError(error.to_string()))?.as_secs();
    let mut body = json!({"iat": now, "iss": issuer.public_key(), "name": name, "sub": subject, "nats": claims});
    let id = BASE32_NOPAD.encode(&Sha256::digest(body.to_string()));
    if let Some(fields) = body.as_object_mut() {
        if let Some(lifetime) = lifetime {
            fields.insert("exp".to_owned(), now.saturating_add(lifetime.as_secs()).into());
        }
        fields.insert("jti".to_owned(), id.into());
    }
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&body));
    let signature = issuer.sign(signed.as_bytes()).map_err(|error| JwtError(error.to_string()))?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::Role;

    #[test]
    fn user_jwt_is_signed_by_its_account() {
        let (issuer, subject) = (KeyPair::new_account(), KeyPair::new_user());
        let jwt = scoped_user(&issuer, "ANERVE", &subject.public_key(), "app").unwrap();
        let parts: Vec<&str> = jwt.split('.').collect();
        let signature = BASE64URL_NOPAD.decode(parts[2].as_bytes()).unwrap();
        issuer.verify(format!("{}.{}", parts[0], parts[1]).as_bytes(), &signature).unwrap();
        let body: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(parts[1].as_bytes()).unwrap()).unwrap();
        assert_eq!((&body["iss"], &body["sub"]), (&json!(issuer.public_key()), &json!(subject.public_key())));
        assert_eq!(body["nats"], json!({"type": "user", "version": 2, "issuer_account": "ANERVE"}));
        assert!(credentials(&jwt, &subject.seed().unwrap()).contains(&jwt));
        assert!(jwt.len() < 2048, "nats-server reads 4 KiB of what a client shows");
    }

    #[test]
    fn account_jwt_holds_the_permissions_of_its_scopes() {
        let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account().public_key());
        let scope = Scope { key: account.clone(), role: "app", permissions: Role::App.permissions() };
        let revoked = BTreeMap::from([("UOLD".to_owned(), 7)]);
        let account = Account { public: &account, name: "nerve", jetstream: true, scopes: vec![scope], revoked };
        let jwt = super::account(&operator, &account).unwrap();
        let body = BASE64URL_NOPAD.decode(jwt.split('.').nth(1).unwrap().as_bytes()).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let denied = &body["nats"]["signing_keys"][0]["template"]["pub"]["deny"];
        assert!(denied.as_array().is_some_and(|deny| deny.contains(&json!("nerve.>"))), "{body}");
        assert_eq!(body["nats"]["revocations"], json!({"UOLD": 7}));
    }
}
