//! Called once per event in a fresh instance: calls share no memory.

wit_bindgen::generate!({ path: "wit", world: "function" });

use nerve::function::host;
use nerve::function::types::Level;
use serde_json::{Value, json};

struct Function;

export!(Function);

impl Guest for Function {
    fn handle(event: Event) -> Result<Vec<Emission>, Failure> {
        // A permanent failure: dead-lettered immediately. `Failure::Retry` requests a retry.
        let data: Value = serde_json::from_slice(&event.data)
            .map_err(|error| Failure::Invalid(format!("the body is not JSON: {error}")))?;
        host::log(Level::Info, &format!("answering {}", event.id));
        let name = data["name"].as_str().unwrap_or("you");
        Ok(vec![emit("demo.answered", &json!({ "hello": name }))])
    }
}

/// Creates an event to publish; `emits` in nerve.toml must cover its type.
fn emit(ty: &str, data: &Value) -> Emission {
    Emission {
        type_: ty.into(),
        data: data.to_string().into_bytes(),
        content_type: None,
        subject: None,
        partition_key: None,
    }
}
