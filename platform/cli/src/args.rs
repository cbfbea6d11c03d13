//! The command line as a whole.

use crate::{command::Command, connection::Refusals, output::Format};
use clap::{Args, Parser};
use nerve_core::Secret;
use std::{convert::Infallible, ffi::OsString, path::PathBuf};

/// Functions on NATS JetStream: webhooks become events, deployed functions answer them, answers stream out.
#[derive(Debug, Parser)]
#[command(
    name = "nerve",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  nerve up                                            start everything on this machine
  nerve new hello --template wasm-js                  begin a function
  nerve deploy hello                                  deploy it; run it again to update it
  nerve publish document.uploaded --data '{\"n\": 1}'   send it an event
  nerve tail                                          watch what happens

NATS is found by --nats, else NERVE_NATS_URL, else from the `nerve up` that runs on the data folder.
Exit codes: 0 done, 1 failed, 2 bad usage."
)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const HEADING: &str = "Options of every command";

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// How results are written on stdout: text, or json (streams: one document a line)
    #[arg(long, global = true, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    #[arg(default_value_t = Format::Text, help_heading = HEADING)]
    pub(crate) output: Format,
    /// How NATS is reached.
    #[command(flatten)]
    pub(crate) nats: NatsFlags,
    /// What the server refuses to let the command do.
    #[arg(skip)]
    pub(crate) refusals: Refusals,
}

/// How NATS is reached. Secrets are in files: every user of a machine can read the arguments of a process.
#[derive(Debug, Args)]
#[group(skip)]
#[command(next_help_heading = HEADING)]
pub(crate) struct NatsFlags {
    /// The NATS servers, with JetStream; several with commas
    #[arg(long = "nats", global = true, value_name = "URL", env = "NERVE_NATS_URL", hide_env_values = true)]
    #[arg(value_parser = secret)]
    pub(crate) nats: Option<Secret>,
    /// A NATS credentials file (JWT)
    #[arg(long, global = true, value_name = "FILE", env = "NERVE_NATS_CREDS", hide_env_values = true)]
    pub(crate) creds: Option<PathBuf>,
    /// The user of NATS
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) nats_user: Option<String>,
    /// A file with the user's password
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_password_file: Option<PathBuf>,
    /// A file with a token of NATS
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_token_file: Option<PathBuf>,
    /// A file with the seed of an nkey
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_nkey_file: Option<PathBuf>,
    /// Require TLS of NATS
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) nats_tls: bool,
    /// Begin TLS before NATS' own protocol
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) nats_tls_first: bool,
    /// Certificates to trust instead of the system's, in PEM
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_tls_ca: Option<PathBuf>,
    /// This client's certificate (mTLS), in PEM
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_tls_client_cert: Option<PathBuf>,
    /// The private key of this client's certificate, in PEM
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) nats_tls_client_key: Option<PathBuf>,
    /// The JetStream domain
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) nats_domain: Option<String>,
}

/// A value that no `Debug` and no error shows.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// Where the files of a `nerve up` are.
#[derive(Debug, Args)]
pub(crate) struct DataFolder {
    /// The data folder; a `nerve up` that runs on it says where NATS is [default: .nerve]
    #[arg(long = "data", alias = "data-dir", value_name = "DIR", env = "NERVE_DATA_DIR", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
}

/// Whether a command line that cannot be parsed asks for JSON.
pub(crate) fn asks_for_json(words: impl IntoIterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = words.into_iter().collect();
    words.iter().any(|word| word == "--output=json")
        || words.windows(2).any(|pair| pair.iter().eq(["--output", "json"].iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn json_is_recognised_in_a_broken_line() {
        let asks = |line: &str| asks_for_json(line.split(' ').map(OsString::from));
        assert!(asks("nerve --output json frobnicate") && asks("nerve tail --output=json --x"));
        assert!(!asks("nerve --output text json"));
    }

    /// The words of a line as a shell would split them.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.chars() {
            match (quote, c) {
                (None, '\'' | '"') => quote = Some(c),
                (Some(mark), _) if c == mark => quote = None,
                (None, ' ') => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let past_title = help.split_once("Examples:\n").map(|(_, examples)| examples).unwrap_or_default();
        for line in past_title.lines().take_while(|line| line.starts_with(' ')) {
            // Without a pipe, a redirection, and the column that explains it.
            let call = line.split(" | ").map(str::trim).find(|part| part.starts_with("nerve "));
            let call = call.unwrap_or_else(|| panic!("no call of nerve: {line}"));
            let end = ["  ", " < ", " > "].iter().filter_map(|mark| call.find(mark)).min();
            found.push(call[..end.unwrap_or(call.len())].to_owned());
        }
        for sub in command.get_subcommands() {
            examples(sub, found);
        }
    }

    #[test]
    fn every_example_in_the_help_parses() {
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() >= 20, "{found:#?}");
        for example in found {
            if let Err(error) = Cli::try_parse_from(words(&example)) {
                panic!("{example}\n{error}");
            }
        }
    }

    #[test]
    fn no_two_options_of_a_command_share_a_name() {
        fn check(command: &clap::Command) {
            let mut seen = std::collections::BTreeSet::new();
            for arg in command.get_arguments() {
                for name in arg.get_long_and_visible_aliases().unwrap_or_default() {
                    assert!(seen.insert(format!("--{name}")), "{}: --{name}", command.get_name());
                }
                for name in arg.get_short_and_visible_aliases().unwrap_or_default() {
                    assert!(seen.insert(format!("-{name}")), "{}: -{name}", command.get_name());
                }
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        check(&command);
    }

    #[test]
    fn every_command_has_an_about_and_examples() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let has_commands = command.has_subcommands();
            assert!(has_commands || command.get_after_help().is_some(), "{}", command.get_name());
        }
    }
}
