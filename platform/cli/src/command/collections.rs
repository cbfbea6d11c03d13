//! `nerve collections`

#[cfg(feature = "rag")]
mod erase;
mod list;
mod quota;

use crate::globals::Globals;
use clap::Subcommand;

/// Collections of documents, the tenants of a server
#[derive(Debug, Subcommand)]
pub(crate) enum Collections {
    List(list::List),
    Show(list::Show),
    Quota(quota::SetQuota),
    #[cfg(feature = "rag")]
    Erase(erase::Erase),
}

impl Collections {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run(globals).await,
            Self::Show(show) => show.run(globals).await,
            Self::Quota(quota) => quota.run(globals).await,
            #[cfg(feature = "rag")]
            Self::Erase(erase) => erase.run(globals).await,
        }
    }
}
