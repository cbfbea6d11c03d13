//! `nerve completions`

use crate::args::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve completions bash > /etc/bash_completion.d/nerve
  nerve completions zsh > ~/.zfunc/_nerve")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "nerve", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(())
    }
}
