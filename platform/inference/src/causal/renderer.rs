//! Where conversations are rendered: in a helper process, because a template is a program of the model's publisher.
//! Jinja bounds its steps, and neither its stack nor all of its memory.

use super::template::{ChatTemplate, Template};
use crate::loaded::Answer;
use bytes::Bytes;
use nerve_core::inference::{InferenceError, Message};
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a helper process does that renders conversations. It is set up with one model's template.
pub const CHAT_TEMPLATES: Work = Work {
    name: "chat templates",
    start: |setup| {
        let Rules { template, special } = serde_json::from_slice(setup).map_err(|error| error.to_string())?;
        let template = Template::compile(&template)?;
        Ok(Box::new(move |messages| {
            let messages: Vec<Message> = serde_json::from_slice(messages).map_err(|error| error.to_string())?;
            serde_json::to_vec(&template.prompt(&messages, &special)?).map_err(|error| error.to_string())
        }))
    },
    load: None,
};

/// The memory of a helper, in bytes: the longest conversation, and a hundred times what a template may write.
const MEMORY_BYTES: u64 = 128 << 20;
/// The stack of a helper, in bytes.
const STACK_BYTES: u64 = 1 << 20;
/// The largest template, conversation and result, in bytes.
const MAX_FRAME_BYTES: u64 = 8 << 20;
/// How long a conversation may take. Those in use take less than a millisecond.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How conversations read for a model.
#[derive(Serialize, Deserialize)]
struct Rules {
    template: ChatTemplate,
    /// Texts that are tokens of their own and no words.
    special: Vec<String>,
}

/// What renders the conversations of one model.
pub(super) enum Renderer {
    /// This process, which is a helper itself.
    Here(Box<Template>, Vec<String>),
    /// Helper processes.
    Helpers {
        pool: Pool,
        /// The model's name, whose helpers serve no other.
        model: String,
        setup: Setup,
    },
}

impl Renderer {
    /// For a template, in which the texts `special` are tokens. Without a pool, it is compiled here.
    pub(super) fn new(
        model: &str,
        template: ChatTemplate,
        special: Vec<String>,
        pool: Option<&Pool>,
    ) -> Result<Self, String> {
        let Some(pool) = pool else {
            return Ok(Self::Here(Box::new(Template::compile(&template)?), special));
        };
        let setup = serde_json::to_vec(&Rules { template, special }).map_err(|error| error.to_string())?;
        Ok(Self::Helpers { pool: pool.clone(), model: model.to_owned(), setup: Setup::new(setup.into()) })
    }

    /// The conversation up to the model's answer, and what is there of that already.
    pub(super) async fn prompt(&self, messages: &[Message]) -> Answer<(String, String)> {
        let (pool, model, setup) = match self {
            Self::Here(template, special) => {
                return template.prompt(messages, special).map_err(InferenceError::Invalid);
            }
            Self::Helpers { pool, model, setup } => (pool, model, setup),
        };
        let failed = |error: serde_json::Error| InferenceError::Failed(error.to_string());
        let request = Request {
            work: CHAT_TEMPLATES.name,
            tenant: model.clone(),
            setup: setup.clone(),
            parts: vec![Bytes::from(serde_json::to_vec(messages).map_err(failed)?)],
            limits: Limits {
                memory: MEMORY_BYTES,
                stack: STACK_BYTES,
                input: MAX_FRAME_BYTES,
                output: MAX_FRAME_BYTES,
            },
            timeout: TIMEOUT,
        };
        let rendered = pool.run(&request).await.map_err(told)?;
        serde_json::from_slice(&rendered).map_err(failed)
    }
}

fn told(error: SandboxError) -> InferenceError {
    match error {
        SandboxError::Refused(why) => InferenceError::Invalid(why),
        error if error.is_permanent() => InferenceError::Invalid(format!(
            "the model's chat template cannot be rendered for this conversation: {error}"
        )),
        error => InferenceError::Unavailable(format!("the model's chat template cannot be rendered now: {error}")),
    }
}
