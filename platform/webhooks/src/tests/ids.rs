//! Ids of deliveries and their scope.

use super::*;

/// Returns the event of an unverified delivery.
fn unverified(provider: &Provider, headers: &[(&str, &str)], body: &str) -> VerifiedEvent {
    let mut post = Post::new(provider.clone(), &[], headers, body);
    post.source.verify = Verify::None;
    post.verify().unwrap()
}

#[test]
fn delivery_without_an_id_is_identified_by_its_body() {
    let nothing = custom(|scheme| {
        (scheme.signature, scheme.signed, scheme.timestamp, scheme.id) = (String::new(), String::new(), None, None);
    });
    let time_alone = custom(|scheme| (scheme.signed, scheme.id) = ("{timestamp}".into(), None));
    let form = custom(|scheme| (scheme.signed, scheme.id) = ("{form}".into(), None));
    for provider in Provider::BUILT_IN.iter().chain([&nothing, &time_alone, &form]) {
        let [one, same, other] = [1, 1, 2].map(|n| unverified(provider, &[], &format!(r#"{{"n":{n}}}"#)));
        assert_eq!((one.id_scope, one.id.len()), (IdScope::ContentHash, 64), "{}", provider.name());
        assert_eq!(one.id, same.id, "{}", provider.name());
        assert_ne!(one.id, other.id, "{}", provider.name());
    }
}

#[test]
fn reused_id_identifies_a_delivery_together_with_its_body() {
    let reused = custom(|scheme| scheme.signed = "{body}".into());
    let named = |provider: &Provider, body: &str| unverified(provider, &[("x-id", "7")], body).id_scope;
    assert_eq!(named(&reused, "{}"), IdScope::of(Ids::Reused, b"{}"));
    assert_ne!(named(&reused, "{}"), named(&reused, "[]"));
    let mut post = custom_post(custom(|_| {}), "v0:1614265330500:i-1:");
    assert_eq!(post.verify().unwrap().id_scope, IdScope::Delivery, "the id is signed with the body");
    post.source.ids = Some(Ids::Reused);
    assert_eq!(post.verify().unwrap().id_scope, IdScope::of(Ids::Reused, &post.body));
}

#[test]
fn batch_item_is_identified_by_its_id_and_body() {
    let batch = custom(|scheme| {
        scheme.signed = "{body}".into();
        scheme.batch = Some(".".into());
        scheme.id = Some(Locator::Pointer("/id".into()));
    });
    let mut post = Post::new(batch, &[], &[], r#"[{"id":1,"a":1},{"id":1,"a":2},{"a":3}]"#);
    post.source.verify = Verify::None;
    let names: Vec<_> = post.events().unwrap().0.into_iter().map(|event| event.id_scope).collect();
    let own = |item: &str| IdScope::of(Ids::Reused, item.as_bytes());
    assert_eq!(names, [own(r#"{"id":1,"a":1}"#), own(r#"{"id":1,"a":2}"#), IdScope::ContentHash]);
}
