//! Servers on other machines: join tokens and joined machines.

use super::{
    files::{FolderLock, read_json, write_json},
    folder, members_file, revoke_users, role_of, scope_key, write_trust,
};
use anyhow::Context;
use data_encoding::HEXLOWER_PERMISSIVE;
use nerve_broker::{
    KeyPair,
    join::{ExchangeKey, Grant, Offer, Request, Response, Token, Trust, UNKNOWN_TOKEN},
    jwt,
    roles::Role,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Prefix of token names.
const TOKEN_PREFIX: &str = "token-";
/// Characters of a token's id in its name.
const TOKEN_NAME_CHARS: usize = 8;
/// Maximum stored tokens.
const MAX_TOKENS: usize = 100;
/// Maximum joined machines.
const MAX_MACHINES: usize = 1000;
/// Maximum length of a name in characters.
const MAX_NAME_CHARS: usize = 64;
/// Size of a machine's public key in bytes.
const MACHINE_KEY_BYTES: usize = 32;

/// All tokens and machines, stored in one file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Members {
    /// Tokens by their NATS user's public key.
    pub(crate) tokens: BTreeMap<String, IssuedToken>,
    /// Machines by name.
    pub(crate) machines: BTreeMap<String, JoinedMachine>,
}

/// A stored token. The token itself cannot be restored from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IssuedToken {
    /// Role of a machine that joins with it.
    pub(crate) role: String,
    /// Creation time, in seconds since the Unix epoch.
    pub(crate) issued: u64,
    /// Expiry time, in seconds since the Unix epoch.
    pub(crate) expires: u64,
    /// Encryption key of request and response.
    exchange_key: String,
    /// Certificate of the CA of the servers, in PEM.
    ca: Option<String>,
    /// Name of the machine that used it.
    pub(crate) used_by: Option<String>,
}

/// A machine that has joined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JoinedMachine {
    /// Its role.
    pub(crate) role: String,
    /// Public key of its NATS user.
    pub(crate) public: String,
    /// Public key with which secrets keys are encrypted for it.
    pub(crate) machine_key: String,
    /// Time of joining, in seconds since the Unix epoch.
    pub(crate) joined: u64,
    /// Time of the last replacement of its credentials.
    pub(crate) rotated: Option<u64>,
}

/// Parameters of a new token.
#[derive(Debug)]
pub(crate) struct TokenOffer {
    /// Role of the joining machine.
    pub(crate) role: Role,
    /// The servers, their certificate and the lifetime.
    pub(crate) offer: Offer,
    /// Certificate of the CA of the servers, in PEM.
    pub(crate) ca: Option<String>,
}

/// Data that a joining machine gets in addition to its user.
#[derive(Debug)]
pub(crate) struct JoinMaterial {
    /// The secrets keys.
    pub(crate) secrets_keys: Vec<String>,
    /// Certificate of the nats-server, in PEM.
    pub(crate) certificate: Option<String>,
}

/// Reply to a join request.
#[derive(Debug)]
pub(crate) struct JoinReply {
    /// The encrypted response.
    pub(crate) response: Vec<u8>,
    /// Name and role of a machine that has just joined.
    pub(crate) joined: Option<(String, String)>,
    /// Whether a user was revoked, so that the nats-server must reload.
    pub(crate) has_revoked: bool,
}

impl JoinReply {
    /// The reply to an unknown token.
    pub(crate) fn unknown() -> Self {
        Self { response: UNKNOWN_TOKEN.to_vec(), joined: None, has_revoked: false }
    }
}

/// Revoked machines and tokens.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Revocations {
    /// Machines, by name.
    pub(crate) machines: Vec<String>,
    /// Tokens, by name.
    pub(crate) tokens: Vec<String>,
}

/// Returns the name of a token.
pub(crate) fn token_name(id: &str) -> String {
    let short: String = id.chars().skip(1).take(TOKEN_NAME_CHARS).collect();
    format!("{TOKEN_PREFIX}{}", short.to_lowercase())
}

/// Checks the name of a machine.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(is_word) {
        return Err(format!("a machine name must have 1 to {MAX_NAME_CHARS} letters, digits, `-` and `_`"));
    }
    if name.starts_with(TOKEN_PREFIX) || Role::ALL.iter().any(|role| role.name() == name) {
        return Err(format!("the name `{name}` is reserved: choose another"));
    }
    Ok(())
}

/// Returns all members on `data`, without expired tokens.
pub(crate) fn members(data: &Path) -> anyhow::Result<Members> {
    let mut members: Members = read_json(&members_file(&folder(data)))?;
    members.remove_expired(now()?);
    Ok(members)
}

/// Creates a token and stores the data for replying to its user.
pub(crate) fn issue(data: &Path, offer: TokenOffer) -> anyhow::Result<Token> {
    let folder = folder(data);
    let account = super::join_account(&folder)?;
    let _lock = FolderLock::take(&folder)?;
    let mut members = members(data)?;
    if members.tokens.len() >= MAX_TOKENS {
        anyhow::bail!("the limit of {MAX_TOKENS} unused tokens is reached: revoke some, or wait until they expire");
    }
    let token = Token::create(&account, offer.offer)?;
    let issued = IssuedToken {
        role: offer.role.name().to_owned(),
        issued: token.issued,
        expires: token.expires,
        exchange_key: token.exchange_key()?.text(),
        ca: offer.ca,
        used_by: None,
    };
    members.tokens.insert(token.id()?, issued);
    write_json(&members_file(&folder), &members)?;
    Ok(token)
}

/// Handles the join request of the token user `id`. The new member is stored before the reply is returned.
pub(crate) fn admit(data: &Path, id: &str, request: &[u8], material: JoinMaterial) -> anyhow::Result<JoinReply> {
    let folder = folder(data);
    let _lock = FolderLock::take(&folder)?;
    let mut members: Members = read_json(&members_file(&folder))?;
    let now = now()?;
    members.remove_expired(now);
    let Some(token) = members.tokens.get(id).cloned() else { return Ok(JoinReply::unknown()) };
    let key = ExchangeKey::parse(&token.exchange_key).context("the key of a token cannot be read")?;
    let Ok(request) = key.decrypt_request(id, request) else { return Ok(JoinReply::unknown()) };
    let (response, joined, replaced) = match members.add_machine(id, &token, &request, now) {
        Err(why) => (Response::Refused(why), None, None),
        Ok(AdmittedMachine { name, replaced, is_new }) => {
            let issuer = scope_key(&folder, role_of(&token.role)?)?;
            let account = super::account(&folder)?.public_key();
            let jwt = jwt::scoped_user(&issuer, &account, &request.public, &name)?;
            if let Some(replaced) = &replaced {
                revoke_users(&folder, [replaced.as_str()], now)?;
                write_trust(&folder)?;
            }
            write_json(&members_file(&folder), &members)?;
            let trust = token.ca.clone().map(Trust::Ca).or(material.certificate.map(Trust::Certificate));
            let secrets_keys = material.secrets_keys;
            let grant = Grant { name: name.clone(), role: token.role.clone(), jwt, secrets_keys, trust };
            (Response::Joined(grant), is_new.then_some((name, token.role)), replaced)
        }
    };
    Ok(JoinReply { response: key.encrypt_response(id, &response)?, joined, has_revoked: replaced.is_some() })
}

/// Revokes machines and tokens. Returns an unknown name, in which case nothing is revoked.
pub(crate) fn revoke(data: &Path, names: &[String]) -> anyhow::Result<Result<Revocations, String>> {
    let folder = folder(data);
    let _lock = FolderLock::take(&folder)?;
    let now = now()?;
    let mut members: Members = read_json(&members_file(&folder))?;
    members.remove_expired(now);
    let (mut revoked, mut users) = (Revocations::default(), Vec::new());
    for name in names {
        let token = members.tokens.keys().find(|id| token_name(id) == *name).cloned();
        if let Some(machine) = members.machines.remove(name) {
            users.push(machine.public);
            revoked.machines.push(name.clone());
        } else if let Some(id) = token {
            members.tokens.remove(&id);
            revoked.tokens.push(name.clone());
        } else {
            return Ok(Err(name.clone()));
        }
    }
    // Revoke first: a removed machine that is not revoked would keep its access unnoticed.
    revoke_users(&folder, users.iter().map(String::as_str), now)?;
    write_trust(&folder)?;
    write_json(&members_file(&folder), &members)?;
    Ok(Ok(revoked))
}

/// An admitted machine.
struct AdmittedMachine {
    name: String,
    /// Public key of its previous user.
    replaced: Option<String>,
    /// Whether this is its first reply.
    is_new: bool,
}

impl Members {
    fn remove_expired(&mut self, now: u64) {
        self.tokens.retain(|_, token| token.expires > now);
    }

    /// Adds the requesting machine, or returns the reason of a refusal.
    fn add_machine(
        &mut self,
        id: &str,
        token: &IssuedToken,
        request: &Request,
        now: u64,
    ) -> Result<AdmittedMachine, String> {
        let Request { name, public, machine_key, replaces } = request;
        check_name(name)?;
        if let Some(user) = &token.used_by {
            // The previous reply may have been lost.
            let is_the_same = self.machines.get(user).is_some_and(|machine| machine.public == *public);
            return match is_the_same {
                true => Ok(AdmittedMachine { name: user.clone(), replaced: None, is_new: false }),
                false => Err(format!("`{user}` has used this token: a token is valid for one machine")),
            };
        }
        if !public.starts_with('U') || KeyPair::from_public_key(public).is_err() {
            return Err("the public key is not that of a NATS user".to_owned());
        }
        let is_key = HEXLOWER_PERMISSIVE.decode(machine_key.as_bytes()).is_ok_and(|key| key.len() == MACHINE_KEY_BYTES);
        if !is_key {
            return Err("the machine key is invalid".to_owned());
        }
        let before = replaces.as_ref().filter(|replaced| replaced.is_proven(id, public));
        let before = before.and_then(|replaced| self.name_of(&replaced.public));
        if self.machines.contains_key(name) && before.as_ref() != Some(name) {
            return Err(format!(
                "a machine with the name `{name}` has already joined: choose another with --name, or revoke that one \
                 (nerve access revoke {name})"
            ));
        }
        if self.machines.len() >= MAX_MACHINES {
            return Err(format!(
                "the limit of {MAX_MACHINES} machines is reached: revoke those that are no longer used"
            ));
        }
        let before = before.and_then(|before| self.machines.remove(&before));
        let (joined, rotated) = before.as_ref().map_or((now, None), |before| (before.joined, Some(now)));
        let (role, public, machine_key) = (token.role.clone(), public.clone(), machine_key.clone());
        self.machines.insert(name.clone(), JoinedMachine { role, public, machine_key, joined, rotated });
        if let Some(token) = self.tokens.get_mut(id) {
            token.used_by = Some(name.clone());
        }
        Ok(AdmittedMachine { name: name.clone(), replaced: before.map(|before| before.public), is_new: true })
    }

    fn name_of(&self, public: &str) -> Option<String> {
        self.machines.iter().find(|(_, machine)| machine.public == public).map(|(name, _)| name.clone())
    }
}

fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

#[cfg(test)]
mod tests;
