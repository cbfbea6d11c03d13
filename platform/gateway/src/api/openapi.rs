//! `GET /openapi.json`: the API as OpenAPI 3.1, made from the route table, from the documentation beside each handler, and from the types
//! that the handlers read and write.

mod docs;

pub(crate) use docs::{BROKER, Docs, any, event_schema, list_of, one_of, text};

use crate::routes::{ROUTES, Route};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, header};
use nerve_events::known_types;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::LazyLock};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApiBuilder, PathItem, PathsBuilder, RefOr, Schema,
    schema::ObjectBuilder,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

/// The name of the security scheme: an API key.
const KEY_SCHEME: &str = "key";

const DESCRIPTION: &str = "Webhooks and events in, event streams and answers out. Every error is a problem document (RFC 9457), whose \
    `type` is the path of its documentation on the gateway; on OpenAI's routes it is OpenAI's error object. The schemas whose names have \
    a dot are those of the data of the event types of Nerve.";

/// The schemas of a document, by name.
type Schemas = BTreeMap<String, RefOr<Schema>>;

/// Responds with the document.
pub(crate) fn respond() -> Response {
    static DOCUMENT: LazyLock<Bytes> =
        LazyLock::new(|| serde_json::to_vec(&document(ROUTES)).unwrap_or_default().into());
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT.clone()).into_response()
}

/// The documentation of [`respond`].
pub(crate) fn docs(docs: Docs) -> Docs {
    docs.json_like(200, "The document", ObjectBuilder::new().into())
}

fn document(routes: &[Route]) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = PathsBuilder::new();
    for route in routes {
        let operation = (route.docs)(Docs::of(route)).finish(&mut schemas);
        let Some(method) = docs::method(route.method) else { continue };
        paths = paths.path(route.path, PathItem::new(method, operation));
    }
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new().title("Nerve").version(env!("CARGO_PKG_VERSION")).description(Some(DESCRIPTION));
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let key = key.description(Some(
        "A key of gateway.keys or gateway.collection_keys. Without configured keys, none is needed.",
    ));
    let components = ComponentsBuilder::new().security_scheme(KEY_SCHEME, SecurityScheme::Http(key.build()));
    let components = schemas.into_iter().fold(components, |components, (name, schema)| components.schema(name, schema));
    let api = OpenApiBuilder::new().info(info.license(Some(license)).build()).paths(paths);
    let mut document = serde_json::to_value(api.components(Some(components.build())).build()).unwrap_or_default();
    if let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas") {
        schemas.extend(event_schemas());
    }
    document
}

/// The schemas of the data of all event types.
fn event_schemas() -> Map<String, Value> {
    let schema = |known: &nerve_events::KnownType| {
        let name = event_schema_name(&known.ty);
        let mut schema = known.schema.clone();
        rebase(&mut schema, &format!("#/components/schemas/{name}/"));
        if let Value::Object(keywords) = &mut schema {
            // Only the root of a document may have it.
            keywords.remove("$schema");
            keywords.entry("description").or_insert_with(|| known.about.clone().into());
        }
        (name, schema)
    };
    known_types().iter().map(schema).collect()
}

/// The name of the schema of an event type. `*` may not be in one.
fn event_schema_name(ty: &str) -> String {
    ty.replace('*', "NAME")
}

/// Makes the references within a schema those within a document that has it at `base`.
fn rebase(schema: &mut Value, base: &str) {
    match schema {
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                match value {
                    Value::String(target) if keyword == "$ref" => {
                        if let Some(inner) = target.strip_prefix("#/") {
                            *target = format!("{base}{inner}");
                        }
                    }
                    value => rebase(value, base),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rebase(value, base)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn operations(document: &Value) -> Vec<(String, String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &'_ Value)| -> Vec<(String, String)> {
            item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect()
        };
        let keys = paths.iter().flat_map(of_path);
        keys.map(|(method, path)| (method.clone(), path.clone(), &document["paths"][&path][method.to_lowercase()]))
            .collect()
    }

    #[test]
    fn every_route_has_an_operation_and_every_operation_a_route() {
        let document = document(ROUTES);
        let routes: BTreeSet<_> = ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
        let documented: BTreeSet<_> =
            operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
        assert_eq!(documented, routes);
    }

    #[test]
    fn every_operation_documents_its_statuses_and_parameters() {
        let document = document(ROUTES);
        for (method, path, operation) in operations(&document) {
            let statuses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
            let has = |status: &str| statuses.iter().any(|known| *known == status);
            assert!(statuses.iter().any(|status| status.starts_with('2')), "{method} {path}: {statuses:?}");
            assert!(["400", "403", "431", "500"].iter().all(|status| has(status)), "{method} {path}: {statuses:?}");
            let needs_key = operation["security"] == serde_json::json!([{ KEY_SCHEME: [] }]);
            assert_eq!(needs_key, has("401") && !path.starts_with("/hooks"), "{method} {path}");
            assert_eq!(operation["requestBody"].is_object(), has("413"), "{method} {path}: a body may be too large");
            assert!(!path.contains('{') || has("404"), "{method} {path}");
            let names = operation["parameters"].as_array().into_iter().flatten();
            let in_path: Vec<String> = names
                .filter(|one| one["in"] == "path")
                .map(|one| format!("{{{}}}", one["name"].as_str().unwrap()))
                .collect();
            assert!(
                in_path.len() == path.matches('{').count() && in_path.iter().all(|name| path.contains(name)),
                "{path}"
            );
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{method} {path}");
        }
    }

    #[test]
    fn every_reference_has_a_target() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(target)) = fields.get("$ref") {
                        assert!(document.pointer(target.strip_prefix('#').unwrap()).is_some(), "{target}");
                    }
                    fields.values().for_each(|value| check(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = document(ROUTES);
        check(&document, &document);
    }
}
