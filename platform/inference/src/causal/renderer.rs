//! Renders conversations in helper processes, because a chat template is code of the model's publisher. The template
//! engine limits its steps, but not its stack and memory.

use super::template::{ChatTemplate, Template};
use crate::loaded::InferenceResult;
use bytes::Bytes;
use nerve_core::inference::{InferenceError, Message};
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Work of a helper process that renders conversations. Its setup is one model's template.
pub const CHAT_TEMPLATES: Work = Work {
    name: "chat templates",
    start: |setup| {
        let RendererSetup { template, special } = serde_json::from_slice(setup).map_err(|error| error.to_string())?;
        let template = Template::compile(&template)?;
        Ok(Box::new(move |messages| {
            let messages: Vec<Message> = serde_json::from_slice(messages).map_err(|error| error.to_string())?;
            serde_json::to_vec(&template.prompt(&messages, &special)?).map_err(|error| error.to_string())
        }))
    },
    load: None,
};

/// Memory limit of a helper in bytes: the longest conversation, and a hundred times the output limit.
const MEMORY_BYTES: u64 = 128 << 20;
/// Stack of a helper in bytes.
const STACK_BYTES: u64 = 1 << 20;
/// Maximum size of a template, conversation and result in bytes.
const MAX_FRAME_BYTES: u64 = 8 << 20;
/// Timeout of rendering a conversation. Common templates take less than a millisecond.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Setup of a helper process.
#[derive(Serialize, Deserialize)]
struct RendererSetup {
    template: ChatTemplate,
    /// Texts of special tokens.
    special: Vec<String>,
}

/// Renders the conversations of one model.
pub(super) enum Renderer {
    /// Renders in this process, which is a helper itself.
    InProcess(Box<Template>, Vec<String>),
    /// Renders in helper processes.
    Helpers {
        pool: Pool,
        /// Name of the model; a helper serves only one.
        model: String,
        setup: Setup,
    },
}

impl Renderer {
    /// A renderer of a template; texts in `special` are special tokens. Without a pool, compiles the template in this
    /// process.
    ///
    /// # Errors
    /// If the template is invalid.
    pub(super) fn new(
        model: &str,
        template: ChatTemplate,
        special: Vec<String>,
        pool: Option<&Pool>,
    ) -> Result<Self, String> {
        let Some(pool) = pool else {
            return Ok(Self::InProcess(Box::new(Template::compile(&template)?), special));
        };
        let setup = serde_json::to_vec(&RendererSetup { template, special }).map_err(|error| error.to_string())?;
        Ok(Self::Helpers { pool: pool.clone(), model: model.to_owned(), setup: Setup::new(setup.into()) })
    }

    /// Renders the conversation up to the answer, and the existing part of the answer.
    pub(super) async fn prompt(&self, messages: &[Message]) -> InferenceResult<(String, String)> {
        let (pool, model, setup) = match self {
            Self::InProcess(template, special) => {
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
        let rendered = pool.run(&request).await.map_err(render_error)?;
        serde_json::from_slice(&rendered).map_err(failed)
    }
}

fn render_error(error: SandboxError) -> InferenceError {
    match error {
        SandboxError::Refused(why) => InferenceError::Invalid(why),
        error if error.is_permanent() => InferenceError::Invalid(format!(
            "the model's chat template cannot be rendered for this conversation: {error}"
        )),
        error => InferenceError::Unavailable(format!("the model's chat template cannot be rendered now: {error}")),
    }
}
