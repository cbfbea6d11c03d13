//! Output events of a direct call, for its response.

use super::{
    emission::EmissionPolicy,
    input_state::{MAX_EMISSIONS, too_many_emissions},
    tools,
};
use async_trait::async_trait;
use nerve_core::{Emission, Event, FunctionError, Identity, function::Emitter, tool::Tool};
use nerve_registry::Catalogue;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;

/// Collects the output events of a direct call for its response.
pub(super) struct Collector {
    pub(super) policy: EmissionPolicy,
    pub(super) input: Event,
    pub(super) events: Mutex<Vec<Event>>,
    pub(super) catalogue: watch::Receiver<Arc<Catalogue>>,
}

impl Collector {
    pub(super) fn take(&self, emissions: Vec<Emission>) -> Result<Vec<Event>, FunctionError> {
        for emission in emissions {
            self.keep(emission)?;
        }
        Ok(std::mem::take(&mut *self.events.lock()))
    }

    fn keep(&self, emission: Emission) -> Result<(), FunctionError> {
        let mut events = self.events.lock();
        if events.len() >= MAX_EMISSIONS {
            return Err(too_many_emissions());
        }
        let id = Identity::of_copy(&self.input.id, &events.len().to_string());
        events.push(self.policy.event(&self.input, id, emission)?);
        Ok(())
    }
}

#[async_trait]
impl Emitter for Collector {
    async fn emit(&self, _index: usize, emission: Emission) -> Result<(), FunctionError> {
        self.keep(emission)
    }

    fn tools(&self) -> Vec<Tool> {
        tools::deployed(&self.catalogue.borrow())
    }
}
