//! What a deploy finds out before it changes anything.

use super::Bundle;
use crate::{artifacts::Content, connection::Connection, failure::Failure, graph::Graph, sandbox};
use nerve_core::manifest::{RuntimeSpec, SinkBody};
use nerve_registry::Registry;
use nerve_worker::check_template;

impl Bundle {
    /// Compiles the components that are not deployed yet: finds out here what a worker would find out later.
    pub(super) async fn try_components(&self, connection: &Connection, registry: &Registry) -> anyhow::Result<()> {
        let pool = sandbox::pool(&connection.config.sandbox);
        let compiler = sandbox::compiler(&connection.config.sandbox, &pool);
        for (name, (spec, files)) in &self.functions {
            let (RuntimeSpec::Wasm { source }, [file]) = (&spec.run, files.as_slice()) else { continue };
            let Content::Read(content) = &file.content else { continue };
            if registry.is_uploaded(&file.reference()).await? {
                continue;
            }
            let compiled = compiler.check(content.to_vec(), &file.sha256).await;
            compiled.map_err(|error| {
                let next = "build it smaller, or raise the limit that it names, here and on the workers";
                Failure::new(format!("cannot deploy {name}")).cause(format!("{source}: {error}")).next(next)
            })?;
        }
        pool.close().await;
        Ok(())
    }

    /// Reads the templates of sinks: a worker would find out later what is wrong with one.
    pub(super) async fn try_templates(&self, connection: &Connection) -> anyhow::Result<()> {
        let pool = sandbox::pool(&connection.config.sandbox);
        for (name, spec) in &self.sinks {
            let SinkBody::Template { text, content_type } = &spec.body else { continue };
            check_template(&pool, name, text, content_type).await.map_err(|why| {
                let next = "correct it, in the language of Jinja, and deploy again; nothing was changed";
                Failure::new(format!("cannot deploy the sink {name}")).cause(why).next(next)
            })?;
        }
        pool.close().await;
        Ok(())
    }

    /// What is likely a mistake in the graph of what is deployed and is about to be.
    pub(super) async fn warnings(&self, registry: &Registry) -> anyhow::Result<Vec<String>> {
        let deployed = registry.functions().await?;
        let deployed = deployed.iter().map(|entry| (&entry.name, &entry.record.spec));
        let new = self.functions.iter().map(|(name, (spec, _))| (name, spec));
        Ok(Graph::new(deployed, new).warnings())
    }
}
