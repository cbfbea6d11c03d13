//! The command line.

use crate::{command::Command, globals::Globals};
use clap::Parser;
use std::ffi::OsString;

/// Event-driven functions on NATS JetStream: receive webhooks, run functions, stream results.
#[derive(Debug, Parser)]
#[command(
    name = "nerve",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  nerve up                                            start NATS, a gateway and a worker
  nerve new hello --template wasm-js                  create a function
  nerve deploy hello                                  deploy it; run it again to update it
  nerve publish document.uploaded --data '{\"n\": 1}'   send it an event
  nerve tail                                          watch the events

NATS is selected by --nats, or else NERVE_NATS_URL, or else the `nerve up` that runs on the data directory.
Exit codes: 0 success, 1 failure, 2 usage error."
)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) globals: Globals,
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Whether an invalid command line requests JSON output.
pub(crate) fn requests_json(words: impl IntoIterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = words.into_iter().collect();
    words.iter().any(|word| word == "--output=json")
        || words.windows(2).any(|pair| pair.iter().eq(["--output", "json"].iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn json_output_is_recognized_in_an_invalid_command_line() {
        let requests = |line: &str| requests_json(line.split(' ').map(OsString::from));
        assert!(requests("nerve --output json frobnicate") && requests("nerve tail --output=json --x"));
        assert!(!requests("nerve --output text json"));
    }

    /// Splits a line into words as a shell does.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.chars() {
            match (quote, c) {
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), _) if c == open => quote = None,
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
            // Without a pipe, a redirection, and the explanation column.
            let call = line.split(" | ").map(str::trim).find(|part| part.starts_with("nerve "));
            let call = call.unwrap_or_else(|| panic!("no call of nerve: {line}"));
            let end = ["  ", " < ", " > "].iter().filter_map(|separator| call.find(separator)).min();
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
    fn options_of_a_command_have_unique_names() {
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
