use super::*;
use crate::broker::access;
use nerve_broker::join::Replaced;
use std::time::Duration;
use tempfile::TempDir;

/// A data directory with the keys of a nats-server.
fn data() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    access::prepare(data.path()).unwrap();
    data
}

fn token(data: &TempDir, seconds: u64) -> Token {
    let lifetime = Duration::from_secs(seconds);
    let offer = Offer { servers: "nats://127.0.0.1:1".to_owned(), certificate: None, lifetime };
    issue(data.path(), TokenOffer { role: Role::Worker, offer, ca: None }).unwrap()
}

fn request(name: &str, user: &KeyPair) -> Request {
    let machine_key = "ab".repeat(MACHINE_KEY_BYTES);
    Request { name: name.to_owned(), public: user.public_key(), machine_key, replaces: None }
}

/// The response to a request with this token, and whether a user was revoked.
fn ask(data: &TempDir, token: &Token, request: &Request) -> (Option<Response>, bool) {
    let (id, key) = (token.id().unwrap(), token.exchange_key().unwrap());
    let material = JoinMaterial { secrets_keys: vec!["the key".to_owned()], certificate: None };
    let answer = admit(data.path(), &id, &key.encrypt_request(&id, request).unwrap(), material).unwrap();
    (key.decrypt_response(&id, &answer.response).unwrap(), answer.has_revoked)
}

fn refusal(response: Option<Response>) -> String {
    match response {
        Some(Response::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn token_admits_one_machine_which_may_retry() {
    let (data, user) = (data(), KeyPair::new_user());
    let token = token(&data, 60);
    for _ in 0..2 {
        let (Some(Response::Joined(grant)), false) = ask(&data, &token, &request("build-2", &user)) else { panic!() };
        assert_eq!((grant.role.as_str(), grant.secrets_keys.as_slice()), ("worker", &["the key".to_owned()][..]));
    }
    let (other, _) = ask(&data, &token, &request("build-3", &KeyPair::new_user()));
    assert!(refusal(other).contains("`build-2` has used this token"));
    let known = members(data.path()).unwrap();
    assert_eq!(known.machines.keys().collect::<Vec<_>>(), ["build-2"]);
    let kept = std::fs::read_to_string(members_file(&folder(data.path()))).unwrap();
    let (text, seed) = (token.text().unwrap(), token.user().unwrap().seed().unwrap());
    assert!(!kept.contains(&seed) && !kept.contains(&text.expose()["nerve-join-".len()..]));
}

#[test]
fn expired_revoked_or_foreign_token_is_unknown() {
    let (data, other, user) = (data(), data(), KeyPair::new_user());
    let join_request = request("a", &user);
    assert!(ask(&data, &token(&data, 0), &join_request).0.is_none());
    let revoked = token(&data, 60);
    let name = token_name(&revoked.id().unwrap());
    assert_eq!(revoke(data.path(), std::slice::from_ref(&name)).unwrap().unwrap().tokens, [name]);
    assert!(ask(&data, &revoked, &join_request).0.is_none());
    assert!(ask(&data, &token(&other, 60), &join_request).0.is_none());
    assert!(members(data.path()).unwrap().machines.is_empty());
}

#[test]
fn request_names_and_keys_are_checked() {
    let (data, user) = (data(), KeyPair::new_user());
    let token = token(&data, 60);
    for name in ["", "a.b", "worker", "token-x", "a b", &"x".repeat(65)] {
        refusal(ask(&data, &token, &request(name, &user)).0);
    }
    let account = Request { public: KeyPair::new_account().public_key(), ..request("a", &user) };
    assert!(refusal(ask(&data, &token, &account).0).contains("NATS user"));
    let keyless = Request { machine_key: "zz".to_owned(), ..request("a", &user) };
    refusal(ask(&data, &token, &keyless).0);
    assert!(members(data.path()).unwrap().machines.is_empty(), "the token is still valid");
}

#[test]
fn name_is_taken_over_only_with_the_old_seed() {
    let (data, old, new) = (data(), KeyPair::new_user(), KeyPair::new_user());
    ask(&data, &token(&data, 60), &request("build-2", &old));
    let second = token(&data, 60);
    assert!(refusal(ask(&data, &second, &request("build-2", &new)).0).contains("already joined"));
    let id = second.id().unwrap();
    let forged = Replaced::sign(&old, &id, "UOTHER").unwrap();
    let join_request = Request { replaces: Some(forged), ..request("build-2", &new) };
    refusal(ask(&data, &second, &join_request).0);
    let proof = Replaced::sign(&old, &id, &new.public_key()).unwrap();
    let join_request = Request { replaces: Some(proof), ..request("build-2", &new) };
    assert!(matches!(ask(&data, &second, &join_request), (Some(Response::Joined(_)), true)));
    let machine = members(data.path()).unwrap().machines["build-2"].clone();
    assert!(machine.public == new.public_key() && machine.rotated.is_some());
    let revoked = std::fs::read_to_string(folder(data.path()).join("revoked.json")).unwrap();
    assert!(revoked.contains(&old.public_key()) && !revoked.contains(&new.public_key()));
}

#[test]
fn unknown_name_revokes_nothing() {
    let (data, user) = (data(), KeyPair::new_user());
    ask(&data, &token(&data, 60), &request("a", &user));
    assert_eq!(revoke(data.path(), &["a".into(), "b".into()]).unwrap().unwrap_err(), "b");
    assert_eq!(members(data.path()).unwrap().machines.len(), 1);
    assert_eq!(revoke(data.path(), &["a".into()]).unwrap().unwrap().machines, ["a"]);
    assert!(members(data.path()).unwrap().machines.is_empty());
    let trust = std::fs::read_to_string(folder(data.path()).join("trust.conf")).unwrap();
    let account = access::account(&folder(data.path())).unwrap().public_key();
    let jwt = trust.split(&format!("{account}: \"")).nth(1).unwrap().split('"').next().unwrap();
    let body = data_encoding::BASE64URL_NOPAD.decode(jwt.split('.').nth(1).unwrap().as_bytes()).unwrap();
    assert!(String::from_utf8(body).unwrap().contains(&user.public_key()), "the server must reject it");
}
