//! Derives the JSON Schema of an event type's data from its struct.
//!
//! Schemas are small and have no references, because every published event is validated.

use schemars::{
    JsonSchema, Schema,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value};

/// Keyword of a property that may be `null`. It does not appear in the schema.
const NULLABLE: &str = "nullable";
/// Keywords that validate the value of a property.
const DESCRIPTIONS: [&str; 2] = ["title", "description"];

/// The JSON Schema of `T` (draft 2020-12).
pub(crate) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.with_transform(Tidy).into_generator().into_root_schema_for::<T>().to_value()
}

/// Transform of a struct that keeps the descriptions of its properties only, so that any object is valid.
pub(crate) fn without_constraints(schema: &mut Schema) {
    schema.remove("required");
    for property in properties(schema) {
        match property {
            Value::Object(keywords) => keywords.retain(|keyword, _| DESCRIPTIONS.contains(&keyword.as_str())),
            other => *other = Value::Bool(true),
        }
    }
}

/// Leaves out what validates nothing, and `null` as the value of an optional property: it is absent instead.
#[derive(Debug, Clone)]
struct Tidy;

impl Transform for Tidy {
    fn transform(&mut self, schema: &mut Schema) {
        for property in properties(schema).filter_map(Value::as_object_mut) {
            if property.remove(NULLABLE).is_none() {
                remove_null(property);
            }
        }
        if let Some(Value::String(description)) = schema.get_mut("description") {
            *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        // What serde fills in is not what an absent field means.
        schema.remove("default");
        for keyword in ["additionalProperties", "unevaluatedProperties"] {
            if schema.get(keyword) == Some(&Value::Bool(true)) {
                schema.remove(keyword);
            }
        }
        // Formats of numbers, such as `uint`, are those of Rust.
        if schema.get("format").is_some_and(|format| format != "date-time") {
            schema.remove("format");
        }
        transform_subschemas(self, schema);
    }
}

fn properties(schema: &mut Schema) -> impl Iterator<Item = &mut Value> {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(|properties| properties.values_mut())
}

/// Removes the type `null` of an `Option`.
fn remove_null(property: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = property.get_mut("type") {
        types.retain(|ty| ty != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            property.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(choices)) = property.get_mut("anyOf") else { return };
    choices.retain(|choice| choice.get("type").is_none_or(|ty| ty != "null"));
    if let [only] = choices.as_mut_slice() {
        let only = only.take();
        property.remove("anyOf");
        if let Value::Object(only) = only {
            // The description of the property, not of its type.
            for (keyword, value) in only {
                property.entry(keyword).or_insert(value);
            }
        }
    }
}
