//! `nerve source rotate`

use super::deployed;
use crate::{
    command::secrets::read,
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
};
use clap::Args;
use nerve_core::{Name, SourceSpec, manifest::Provider};
use nerve_registry::Registry;
use serde_json::json;
use std::{collections::BTreeSet, io::stdin, sync::Arc};

/// Add a new secret next to the old one; with --retire, remove the old one
#[derive(Debug, Args)]
#[command(after_help = "\
First set the new secret here: both are accepted. Then configure it at the provider. When no deliveries signed
with the old one are in transit, remove it with --retire. Make the same change in a nerve.toml with the source's
table.

Examples:
  printf %s \"$NEW\" | nerve source rotate github
  nerve source rotate github --retire")]
pub(crate) struct Rotate {
    /// The source
    name: Name,
    /// Remove all secrets except the newest
    #[arg(long)]
    retire: bool,
    #[command(flatten)]
    folder: DataFolder,
}

impl Rotate {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let registry = Connection::open(globals, &self.folder).await?.registry().await?;
        let mut spec = deployed(&registry, &self.name).await?;
        if spec.provider == Provider::Sns || spec.secrets.is_empty() {
            let cause = "it has no secret";
            return Err(Failure::new(format!("cannot rotate the secret of {}", self.name)).cause(cause).into());
        }
        let retired = if self.retire { spec.secrets.split_off(1) } else { self.add(&registry, &mut spec).await? };
        registry.deploy_source(&self.name, spec.clone()).await?;
        let named = names_in_use(&registry).await?;
        for name in retired.iter().filter(|name| !named.contains(*name)) {
            registry.remove_secret(name).await?;
        }
        globals.output.show(&json!({"source": self.name, "secrets": spec.secrets, "retired": retired}), |_| {
            let live = spec.secrets.join(", ");
            match (self.retire, retired.is_empty()) {
                (true, true) => format!("nothing to retire: {live} is the only secret"),
                (true, false) => format!("retired {}; {live} is accepted", retired.join(", ")),
                _ => format!(
                    "set; {live} are accepted. Configure the new one at {}, then: nerve source rotate {} --retire",
                    spec.provider.name(),
                    self.name
                ),
            }
        })
    }

    /// Sets the new secret and inserts its name first. Returns no retired secrets.
    async fn add(&self, registry: &Registry, spec: &mut SourceSpec) -> anyhow::Result<Vec<String>> {
        let existing: BTreeSet<String> = registry.secrets().await?.into_iter().map(|secret| secret.name).collect();
        let name = spec.secrets.first().map(|first| {
            next_name(first, |name| existing.contains(name) || spec.secrets.iter().any(|secret| secret == name))
        });
        let name = name.unwrap_or_default();
        let secret = read(stdin(), &name)?;
        registry.set_secret(&name, &secret).await?;
        spec.secrets.insert(0, name);
        Ok(Vec::new())
    }
}

/// Returns the name with the next free number.
fn next_name(name: &str, exists: impl Fn(&str) -> bool) -> String {
    let base = name.rsplit_once('_').filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(name, |(base, _)| base);
    (2..u32::MAX).map(|n| format!("{base}_{n}")).find(|name| !exists(name)).unwrap_or_default()
}

/// Returns the secrets that deployed resources reference.
async fn names_in_use(registry: &Registry) -> anyhow::Result<BTreeSet<String>> {
    let functions = registry.functions().await?.into_iter().flat_map(|entry| entry.record.spec.secrets);
    let sources = registry.sources().await?.into_iter();
    let sources = sources.map(|entry| Arc::unwrap_or_clone(entry.record.spec));
    let sources = sources.flat_map(|spec| spec.secrets.into_iter().chain(spec.verify_token));
    Ok(functions.chain(sources).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_secret_has_the_next_free_number() {
        assert_eq!(next_name("A_SECRET", |_| false), "A_SECRET_2");
        assert_eq!(next_name("A_SECRET_2", |name| name == "A_SECRET_2"), "A_SECRET_3");
        assert_eq!(next_name("A_SECRET_3", |name| name == "A_SECRET_3"), "A_SECRET_2");
    }
}
