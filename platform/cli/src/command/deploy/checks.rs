//! Checks of a deploy before it changes anything.

use super::Bundle;
#[cfg(feature = "wasm")]
use crate::artifacts::Content;
use crate::{connection::Connection, failure::Failure, graph::Graph, sandbox};
#[cfg(feature = "wasm")]
use nerve_core::manifest::RuntimeSpec;
use nerve_core::manifest::SinkBody;
use nerve_registry::Registry;
use nerve_worker::check_template;

impl Bundle {
    /// Compiles components that are not deployed yet, because a worker would reject an invalid one.
    #[cfg(feature = "wasm")]
    pub(super) async fn check_components(&self, connection: &Connection, registry: &Registry) -> anyhow::Result<()> {
        let pool = sandbox::pool(&connection.config.sandbox);
        let compiler = sandbox::compiler(&connection.config.sandbox, &pool);
        for (name, (spec, files)) in &self.functions {
            let (RuntimeSpec::Wasm { source }, [file]) = (&spec.run, files.as_slice()) else { continue };
            let Content::Memory(content) = &file.content else { continue };
            if registry.is_uploaded(&file.reference()).await? {
                continue;
            }
            let compiled = compiler.check(content.to_vec(), &file.sha256).await;
            compiled.map_err(|error| {
                let next = "reduce its size, or raise the named limit here and on the workers";
                Failure::new(format!("cannot deploy {name}")).cause(format!("{source}: {error}")).next(next)
            })?;
        }
        pool.close().await;
        Ok(())
    }

    /// Compiles the templates of sinks, because a worker would reject an invalid one.
    pub(super) async fn check_templates(&self, connection: &Connection) -> anyhow::Result<()> {
        let pool = sandbox::pool(&connection.config.sandbox);
        for (name, spec) in &self.sinks {
            let SinkBody::Template { text, content_type } = &spec.body else { continue };
            check_template(&pool, name, text, content_type).await.map_err(|why| {
                let next = "correct the Jinja template and deploy again; nothing was changed";
                Failure::new(format!("cannot deploy the sink {name}")).cause(why).next(next)
            })?;
        }
        pool.close().await;
        Ok(())
    }

    /// Returns probable mistakes in the graph of deployed and new functions.
    pub(super) async fn warnings(&self, registry: &Registry) -> anyhow::Result<Vec<String>> {
        let deployed = registry.functions().await?;
        let deployed = deployed.iter().map(|entry| (&entry.name, &entry.record.spec));
        let new = self.functions.iter().map(|(name, (spec, _))| (name, spec));
        Ok(Graph::new(deployed, new).warnings())
    }
}
