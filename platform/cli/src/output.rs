//! What a command prints on stdout: text for people, or JSON for programs.

use crate::escape::escaped;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use std::io::{self, Write};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON document a result; streams write one a line.
    Json,
}

impl Format {
    /// Whether a program reads.
    pub(crate) fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Writes `value` as one line of JSON, or what `text` makes of it.
    pub(crate) fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self {
            Self::Json => line(&serde_json::to_string(value)?)?,
            Self::Text => line(&text(value))?,
        }
        Ok(())
    }
}

/// Writes a line to stdout, at once: whoever follows a stream wants it now.
///
/// All that a command prints passes here, [`piece`], [`hint`] or the report of its failure, and is escaped there.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(escaped(text.trim_end_matches('\n')).as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Writes a piece of a text to stdout, at once, without a line's end.
pub(crate) fn piece(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(escaped(text).as_bytes())?;
    stdout.flush()
}

/// Writes a hint or a warning to stderr, where it mixes with no result.
#[expect(clippy::print_stderr, reason = "hints go where results do not")]
pub(crate) fn hint(text: &str) {
    eprintln!("{}", escaped(text));
}

/// Columns under headings, without borders.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = bare();
    table.set_header(heading);
    for row in rows {
        table.add_row(row.map(|cell| escaped(&cell).into_owned()));
    }
    trimmed(&table)
}

/// Labels and values, one pair a line.
pub(crate) fn pairs<'r>(rows: impl IntoIterator<Item = (&'r str, String)>) -> String {
    let mut table = bare();
    for (label, value) in rows {
        table.add_row([label.to_owned(), escaped(&value).into_owned()]);
    }
    trimmed(&table)
}

/// `text` in one line of `max` characters at most.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(max + 1).collect();
    if flat.chars().count() <= max {
        return flat;
    }
    let kept: String = flat.chars().take(max.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A size in bytes for people, to three digits or so.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let tenths = ((bytes >> (shift - 10)) * 10) >> 10;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

fn bare() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// The table without the blanks that pad each line.
fn trimmed(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_columns() {
        let text = table(["NAME", "RUNTIME"], [["a".to_owned(), "wasm".to_owned()]]);
        assert_eq!(text, "NAME  RUNTIME\na     wasm");
    }

    #[test]
    fn sizes_are_in_the_unit_that_reads_best() {
        assert_eq!([size(0), size(1023), size(1024), size(90_868_373)], ["0 B", "1023 B", "1.0 KiB", "86.6 MiB"]);
        assert_eq!(size(u64::MAX >> 1), "8589934591.9 GiB");
    }

    #[test]
    fn what_is_shortened_says_so() {
        assert_eq!(shortened("a\nb", 3), "a b");
        assert_eq!(shortened("äöü!", 3), "äö…");
    }
}
