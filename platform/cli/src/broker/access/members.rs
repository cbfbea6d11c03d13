//! Servers on other machines: the tokens with which they join, and those that have joined.

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

/// What the names of tokens begin with.
const TOKEN_PREFIX: &str = "token-";
/// Characters of a token's id that are its name.
const TOKEN_NAME_CHARS: usize = 8;
/// Limits of what is kept.
const MAX_TOKENS: usize = 100;
const MAX_MACHINES: usize = 1000;
/// The longest name, in characters.
const MAX_NAME_CHARS: usize = 64;
/// The length of a machine's public key, in bytes.
const MACHINE_KEY_BYTES: usize = 32;

/// All of them, as one file keeps them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Members {
    /// Tokens by their NATS user's public key.
    pub(crate) tokens: BTreeMap<String, IssuedToken>,
    /// Machines by name.
    pub(crate) machines: BTreeMap<String, JoinedMachine>,
}

/// A token, as far as it is kept: it cannot be made again from this.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IssuedToken {
    /// What a machine that joins with it may do.
    pub(crate) role: String,
    /// When it was made, in seconds since 1970.
    pub(crate) issued: u64,
    /// Until when it can be used.
    pub(crate) expires: u64,
    /// The key of request and response.
    exchange_key: String,
    /// The certificate of the CA by which the servers are recognized, in PEM.
    ca: Option<String>,
    /// The machine that has used it.
    pub(crate) used_by: Option<String>,
}

/// A machine that has joined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JoinedMachine {
    /// What it may do.
    pub(crate) role: String,
    /// The public key of its NATS user.
    pub(crate) public: String,
    /// The public key that secrets keys are encrypted for.
    pub(crate) machine_key: String,
    /// When it joined, in seconds since 1970.
    pub(crate) joined: u64,
    /// When it joined again with new credentials.
    pub(crate) rotated: Option<u64>,
}

/// What a token is to be good for.
#[derive(Debug)]
pub(crate) struct TokenOffer {
    /// What who joins may do.
    pub(crate) role: Role,
    /// The servers, the certificate and the time.
    pub(crate) offer: Offer,
    /// The certificate of the CA by which the servers are recognized later, in PEM.
    pub(crate) ca: Option<String>,
}

/// What is given to a machine beside its user.
#[derive(Debug)]
pub(crate) struct Gifts {
    /// The secrets keys.
    pub(crate) secrets_keys: Vec<String>,
    /// The certificate that the nats-server shows, in PEM.
    pub(crate) certificate: Option<String>,
}

/// An answer to a machine that asked to join.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What is sent.
    pub(crate) response: Vec<u8>,
    /// The name and the role of the machine, if it has joined now.
    pub(crate) joined: Option<(String, String)>,
    /// Whether a user is refused from now on, which the nats-server is to be told.
    pub(crate) has_revoked: bool,
}

impl Answer {
    /// To who has no token that is known.
    pub(crate) fn unknown() -> Self {
        Self { response: UNKNOWN_TOKEN.to_vec(), joined: None, has_revoked: false }
    }
}

/// What was revoked.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Revoked {
    /// Machines, by name.
    pub(crate) machines: Vec<String>,
    /// Tokens, by name.
    pub(crate) tokens: Vec<String>,
}

/// What a token is called.
pub(crate) fn token_name(id: &str) -> String {
    let short: String = id.chars().skip(1).take(TOKEN_NAME_CHARS).collect();
    format!("{TOKEN_PREFIX}{}", short.to_lowercase())
}

/// Why a text is no name of a machine.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(is_word) {
        return Err(format!("a machine's name has 1 to {MAX_NAME_CHARS} letters, digits, `-` and `_`"));
    }
    if name.starts_with(TOKEN_PREFIX) || Role::ALL.iter().any(|role| role.name() == name) {
        return Err(format!("`{name}` is the name of something else: choose another"));
    }
    Ok(())
}

/// All members on `data`; tokens whose time is over are left out.
pub(crate) fn members(data: &Path) -> anyhow::Result<Members> {
    let mut members: Members = read_json(&members_file(&folder(data)))?;
    members.forget_expired(now()?);
    Ok(members)
}

/// Makes a token, and keeps what is needed to answer who has it.
pub(crate) fn issue(data: &Path, offer: TokenOffer) -> anyhow::Result<Token> {
    let folder = folder(data);
    let account = super::join_account(&folder)?;
    let _lock = FolderLock::take(&folder)?;
    let mut members = members(data)?;
    if members.tokens.len() >= MAX_TOKENS {
        anyhow::bail!("{MAX_TOKENS} tokens can be used already: revoke some, or wait until they expire");
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

/// Answers the user `id` of a token, who asks to join. What is kept is written before the answer is returned.
pub(crate) fn admit(data: &Path, id: &str, request: &[u8], gifts: Gifts) -> anyhow::Result<Answer> {
    let folder = folder(data);
    let _lock = FolderLock::take(&folder)?;
    let mut members: Members = read_json(&members_file(&folder))?;
    let now = now()?;
    members.forget_expired(now);
    let Some(token) = members.tokens.get(id).cloned() else { return Ok(Answer::unknown()) };
    let key = ExchangeKey::parse(&token.exchange_key).context("the key of a token cannot be read")?;
    let Ok(request) = key.decrypt_request(id, request) else { return Ok(Answer::unknown()) };
    let (response, joined, replaced) = match members.enter(id, &token, &request, now) {
        Err(why) => (Response::Refused(why), None, None),
        Ok(Entry { name, replaced, is_new }) => {
            let issuer = scope_key(&folder, role_of(&token.role)?)?;
            let account = super::account(&folder)?.public_key();
            let jwt = jwt::scoped_user(&issuer, &account, &request.public, &name)?;
            if let Some(replaced) = &replaced {
                revoke_users(&folder, [replaced.as_str()], now)?;
                write_trust(&folder)?;
            }
            write_json(&members_file(&folder), &members)?;
            let trust = token.ca.clone().map(Trust::Ca).or(gifts.certificate.map(Trust::Certificate));
            let secrets_keys = gifts.secrets_keys;
            let grant = Grant { name: name.clone(), role: token.role.clone(), jwt, secrets_keys, trust };
            (Response::Joined(grant), is_new.then_some((name, token.role)), replaced)
        }
    };
    Ok(Answer { response: key.encrypt_response(id, &response)?, joined, has_revoked: replaced.is_some() })
}

/// Refuses machines and tokens from now on. Nothing is revoked where one of the names is not known.
pub(crate) fn revoke(data: &Path, names: &[String]) -> anyhow::Result<Result<Revoked, String>> {
    let folder = folder(data);
    let _lock = FolderLock::take(&folder)?;
    let now = now()?;
    let mut members: Members = read_json(&members_file(&folder))?;
    members.forget_expired(now);
    let (mut revoked, mut users) = (Revoked::default(), Vec::new());
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
    // First: a machine that is forgotten and not refused would go on unseen.
    revoke_users(&folder, users.iter().map(String::as_str), now)?;
    write_trust(&folder)?;
    write_json(&members_file(&folder), &members)?;
    Ok(Ok(revoked))
}

/// A machine that may join.
struct Entry {
    name: String,
    /// The user that it was before.
    replaced: Option<String>,
    /// Whether it has not been told so before.
    is_new: bool,
}

impl Members {
    fn forget_expired(&mut self, now: u64) {
        self.tokens.retain(|_, token| token.expires > now);
    }

    /// Enters who asks, or says why not.
    fn enter(&mut self, id: &str, token: &IssuedToken, request: &Request, now: u64) -> Result<Entry, String> {
        let Request { name, public, machine_key, replaces } = request;
        check_name(name)?;
        if let Some(user) = &token.used_by {
            // Its answer may have been lost.
            let is_the_same = self.machines.get(user).is_some_and(|machine| machine.public == *public);
            return match is_the_same {
                true => Ok(Entry { name: user.clone(), replaced: None, is_new: false }),
                false => Err(format!("`{user}` has used this token: each is for one machine, once")),
            };
        }
        if !public.starts_with('U') || KeyPair::from_public_key(public).is_err() {
            return Err("the public key is none of a NATS user".to_owned());
        }
        let is_key = HEXLOWER_PERMISSIVE.decode(machine_key.as_bytes()).is_ok_and(|key| key.len() == MACHINE_KEY_BYTES);
        if !is_key {
            return Err("the machine's key is none".to_owned());
        }
        let before = replaces.as_ref().filter(|replaced| replaced.is_proven(id, public));
        let before = before.and_then(|replaced| self.name_of(&replaced.public));
        if self.machines.contains_key(name) && before.as_ref() != Some(name) {
            return Err(format!(
                "a machine with the name `{name}` has joined already: choose another with --name, or revoke that one \
                 (nerve access revoke {name})"
            ));
        }
        if self.machines.len() >= MAX_MACHINES {
            return Err(format!("{MAX_MACHINES} machines have joined already: revoke those that are gone"));
        }
        let before = before.and_then(|before| self.machines.remove(&before));
        let (joined, rotated) = before.as_ref().map_or((now, None), |before| (before.joined, Some(now)));
        let (role, public, machine_key) = (token.role.clone(), public.clone(), machine_key.clone());
        self.machines.insert(name.clone(), JoinedMachine { role, public, machine_key, joined, rotated });
        if let Some(token) = self.tokens.get_mut(id) {
            token.used_by = Some(name.clone());
        }
        Ok(Entry { name: name.clone(), replaced: before.map(|before| before.public), is_new: true })
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
