//! Texts to vectors.

use crate::{
    blocking::off_thread,
    head::{Head, Pooling},
    loaded::{Admission, Answer, Loaded, run_text},
    task::Task,
    vector,
};
use nerve_core::inference::{EmbedRequest, Embedding, InferenceError};

/// How texts are embedded, beyond what a request says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbedStyle {
    /// Put before each text in place of the model's own prompt.
    pub prefix: Option<String>,
    /// In place of what the model's folder says.
    pub pooling: Option<Pooling>,
    /// Whether vectors have length one, in place of what the model's folder says.
    pub normalise: Option<bool>,
    /// Of a sparse vector, keep this many of the heaviest.
    pub keep: Option<usize>,
}

impl Loaded {
    /// One vector a text.
    ///
    /// # Errors
    /// Where the model cannot embed, has as much to do as it may, or fails.
    pub async fn embed(
        &self,
        request: EmbedRequest,
        style: &EmbedStyle,
        admission: Admission,
    ) -> Answer<Vec<Embedding>> {
        let model = self.text(&[Task::Embed, Task::Sparse], "embed")?;
        let prompts = &model.layout.prompts;
        let prompt = style.prefix.as_deref().unwrap_or(match request.purpose {
            Some(nerve_core::inference::Purpose::Query) => &prompts.query,
            Some(nerve_core::inference::Purpose::Document) => &prompts.document,
            None => &prompts.default,
        });
        let texts: Vec<String> = match prompt {
            "" => request.texts,
            prompt => request.texts.iter().map(|text| format!("{prompt}{text}")).collect(),
        };
        let tokenizer = model.tokenizer.clone();
        let tokens = off_thread(texts, String::len, move |text| tokenizer.text(text)).await?;
        let counted: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, style.pooling, admission).await?;
        let finish = |(row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            let vector = match &model.layout.head {
                Head::Vector { normalise, .. } => {
                    let normalise = style.normalise.unwrap_or(*normalise);
                    let mut row = row;
                    if normalise {
                        vector::normalise(&mut row);
                    }
                    vector::shorten(&mut row, request.dimensions, normalise).map_err(InferenceError::Invalid)?;
                    vector::convert(row, request.precision)
                }
                _ => vector::sparse(&row, style.keep.or(request.dimensions)),
            };
            Ok(Embedding { vector, tokens, truncated })
        };
        rows.into_iter().zip(counted).map(finish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batcher::Engine,
        layout::{self, Layout},
        loaded::Kind,
        proto::Outline,
        text::{TextJob, TextModel},
    };
    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    /// A model on an engine that panics the first time it sees a text of ten words.
    fn panicking() -> (Loaded, Arc<AtomicUsize>) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models/pooling-cls");
        let outline = Outline::read(&std::fs::read(root.join("model.onnx")).unwrap()).unwrap();
        let layout = Layout::read(&root, &outline).unwrap();
        let (made, panics) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let engines = made.clone();
        let make = move || {
            engines.fetch_add(1, Ordering::Relaxed);
            let panics = panics.clone();
            let engine: Engine<TextJob, Vec<f32>> = Box::new(move |jobs, _| {
                let poisoned = jobs.iter().any(|job| job.tokens.len() == 12);
                assert!(!poisoned || panics.fetch_add(1, Ordering::Relaxed) > 0, "the engine panics");
                Ok(vec![vec![1.0; 32]; jobs.len()])
            });
            Ok(engine)
        };
        let description = layout.description();
        let layout::Kind::Text(layout) = layout.kind else { panic!("it reads text") };
        let model = TextModel::with_engine(&root, layout, Arc::new(make)).unwrap();
        (Loaded { name: "test".into(), description, kind: Kind::Text(model) }, made)
    }

    #[tokio::test]
    async fn a_panic_in_a_models_thread_fails_and_the_next_attempt_succeeds() {
        let (model, made) = panicking();
        let embed = async |text: &str| {
            let request = EmbedRequest { texts: vec![text.to_owned()], ..EmbedRequest::default() };
            model.embed(request, &EmbedStyle::default(), Admission::Wait).await
        };
        let ten = "coffee ".repeat(10);
        assert!(matches!(embed(&ten).await, Err(InferenceError::Failed(_))));
        // What is tried again is served by an engine that was made anew.
        assert!(embed("tea").await.is_ok() && embed(&ten).await.is_ok());
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }
}
