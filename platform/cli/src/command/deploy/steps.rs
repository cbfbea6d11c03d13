//! Compares a manifest with the deployed state.

use super::Bundle;
use crate::{
    display_fields,
    plan::{self, ResourceState, Step},
};
use nerve_core::SourceSpec;
use nerve_registry::{FunctionRecord, Registry};

impl Bundle {
    /// Compares the manifest with the deployed state.
    pub(super) async fn plan(&self, registry: &Registry) -> anyhow::Result<Vec<Step>> {
        let mut steps = Vec::new();
        for name in self.models.keys() {
            let desired = ResourceState { fields: Vec::new(), files: Vec::new() };
            steps.push(plan::compare("model", name.as_str(), None, &desired));
        }
        for (name, (spec, files)) in &self.functions {
            let now = registry.function(name).await?.map(|entry| state_of(&entry.record));
            let files = files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
            let desired = ResourceState { fields: display_fields::of_function(spec), files };
            steps.push(plan::compare("function", name.as_str(), now.as_ref(), &desired));
        }
        for (name, spec) in &self.sinks {
            let now =
                registry.sink(name).await?.map(|entry| ResourceState::of(display_fields::of_sink(&entry.record.spec)));
            steps.push(plan::compare(
                "sink",
                name.as_str(),
                now.as_ref(),
                &ResourceState::of(display_fields::of_sink(spec)),
            ));
        }
        for (name, spec) in &self.schedules {
            let now = registry
                .schedule(name)
                .await?
                .map(|entry| ResourceState::of(display_fields::of_schedule(&entry.record.spec)));
            steps.push(plan::compare(
                "schedule",
                name.as_str(),
                now.as_ref(),
                &ResourceState::of(display_fields::of_schedule(spec)),
            ));
        }
        for (name, spec) in &self.sources {
            let now = registry.source(name).await?.map(|entry| state_of_source(&entry.record.spec));
            steps.push(plan::compare("source", name.as_str(), now.as_ref(), &state_of_source(spec)));
        }
        Ok(steps)
    }
}

fn state_of(record: &FunctionRecord) -> ResourceState {
    let files = record.artifacts.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
    ResourceState { fields: display_fields::of_function(&record.spec), files }
}

fn state_of_source(spec: &SourceSpec) -> ResourceState {
    ResourceState::of(display_fields::of_source(spec))
}
