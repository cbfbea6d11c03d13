//! Stands for `reader` in a build without ONNX Runtime.

use super::{LocalModel, unusable};
use crate::{failure::Failure, features};
use nerve_config::Config;
use nerve_registry::ModelInfo;
use serde_json::{Map, Value};
use std::path::Path;

/// Refuses every model.
pub(crate) struct ModelReader;

impl ModelReader {
    pub(crate) fn new(_: &Config) -> Self {
        Self
    }

    pub(crate) async fn read(&self, path: &Path) -> Result<LocalModel, Failure> {
        Err(refused(path))
    }

    pub(crate) async fn test_run(&self, path: &Path, _: &LocalModel) -> anyhow::Result<()> {
        Err(refused(path).into())
    }

    pub(crate) async fn close(self) {}
}

pub(crate) async fn read_bundled(folder: &Path) -> Result<LocalModel, Failure> {
    Err(refused(folder))
}

pub(crate) fn check_options(_: &str, _: &ModelInfo, _: &Map<String, Value>) -> Result<(), String> {
    Err(features::absent("onnx"))
}

fn refused(path: &Path) -> Failure {
    unusable(path).cause(features::absent("onnx")).next(features::NEXT_STEP)
}
