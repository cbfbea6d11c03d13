//! `nerve collections`

mod erase;

use crate::args::Globals;
use clap::Subcommand;

/// Collections of documents, the tenants of a server
#[derive(Debug, Subcommand)]
pub(crate) enum Collections {
    Erase(erase::Erase),
}

impl Collections {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Erase(erase) => erase.run(globals).await,
        }
    }
}
