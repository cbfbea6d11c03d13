//! Text embedding.

use crate::{
    blocking::run_cpu_bound,
    head::{Head, Pooling},
    loaded::{Admission, InferenceResult, LoadedModel, run_text},
    task::Task,
    vector,
};
use nerve_core::inference::{EmbedRequest, Embedding, InferenceError};

/// Embedding options that are not part of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbedStyle {
    /// Prefix of each text, instead of the model's prompt.
    pub prefix: Option<String>,
    /// Pooling, instead of the model's own.
    pub pooling: Option<Pooling>,
    /// Whether to normalize vectors, instead of the model's own setting.
    pub normalize: Option<bool>,
    /// Sparse vectors: number of largest weights to keep.
    pub keep: Option<usize>,
}

impl LoadedModel {
    /// Returns one vector per text.
    ///
    /// # Errors
    /// If the model does not embed, its queue is full, or it fails.
    pub async fn embed(
        &self,
        request: EmbedRequest,
        style: &EmbedStyle,
        admission: Admission,
    ) -> InferenceResult<Vec<Embedding>> {
        let model = self.text(&[Task::Embed, Task::Sparse], "embed")?;
        let prompts = &model.spec.prompts;
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
        let tokens = run_cpu_bound(texts, String::len, move |text| tokenizer.text(text)).await?;
        let token_counts: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, style.pooling, admission).await?;
        let finish = |(row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            let vector = match &model.spec.head {
                Head::Vector { normalize, .. } => {
                    let normalize = style.normalize.unwrap_or(*normalize);
                    let mut row = row;
                    if normalize {
                        vector::normalize(&mut row);
                    }
                    vector::shorten(&mut row, request.dimensions, normalize).map_err(InferenceError::Invalid)?;
                    vector::convert(row, request.precision)
                }
                _ => vector::sparse(&row, style.keep.or(request.dimensions)),
            };
            Ok(Embedding { vector, tokens, truncated })
        };
        rows.into_iter().zip(token_counts).map(finish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batcher::Engine,
        loaded::LoadedKind,
        signature::GraphSignature,
        spec::{self, ModelSpec},
        text::{TextJob, TextModel},
    };
    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    /// A model whose engine panics on its first text of ten words.
    fn panicking() -> (LoadedModel, Arc<AtomicUsize>) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models/pooling-cls");
        let signature = GraphSignature::read(&std::fs::read(root.join("model.onnx")).unwrap()).unwrap();
        let spec = ModelSpec::read(&root, &signature).unwrap();
        let (created, panics) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let engines = created.clone();
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
        let description = spec.description();
        let spec::ModelKind::Text(spec) = spec.kind else { panic!("it reads text") };
        let model = TextModel::with_engine(&root, spec, Arc::new(make)).unwrap();
        (LoadedModel { name: "test".into(), description, kind: LoadedKind::Text(model) }, created)
    }

    #[tokio::test]
    async fn panic_fails_its_batch_and_the_retry_succeeds() {
        let (model, engines) = panicking();
        let embed = async |text: &str| {
            let request = EmbedRequest { texts: vec![text.to_owned()], ..EmbedRequest::default() };
            model.embed(request, &EmbedStyle::default(), Admission::Wait).await
        };
        let ten = "coffee ".repeat(10);
        assert!(matches!(embed(&ten).await, Err(InferenceError::Failed(_))));
        // A retry runs on a recreated engine.
        assert!(embed("tea").await.is_ok() && embed(&ten).await.is_ok());
        assert_eq!(engines.load(Ordering::Relaxed), 2);
    }
}
