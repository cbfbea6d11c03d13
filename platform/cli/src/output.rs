//! Output of a command on stdout: text, or JSON.

use crate::escape::escaped;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use std::io::{self, Write};
use time::OffsetDateTime;

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable text.
    Text,
    /// JSON: one document per result; streams are JSON Lines.
    Json,
}

impl Format {
    /// Whether the format is JSON.
    pub(crate) fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Writes `value` as one line of JSON, or as the text that `text` returns.
    pub(crate) fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self {
            Self::Json => line(&serde_json::to_string(value)?)?,
            Self::Text => line(&text(value))?,
        }
        Ok(())
    }
}

/// Writes a line to stdout and flushes it, for followers of a stream.
///
/// All output of a command is written, and escaped, by this function, [`fragment`], [`hint`] or the failure report.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(escaped(text.trim_end_matches('\n')).as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Writes text without a line ending to stdout and flushes it.
pub(crate) fn fragment(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(escaped(text).as_bytes())?;
    stdout.flush()
}

/// Writes a hint or a warning to stderr, apart from results.
#[expect(clippy::print_stderr, reason = "hints are not results")]
pub(crate) fn hint(text: &str) {
    eprintln!("{}", escaped(text));
}

/// Formats columns under headings, without borders.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = borderless();
    table.set_header(heading);
    for row in rows {
        table.add_row(row.map(|cell| escaped(&cell).into_owned()));
    }
    trimmed(&table)
}

/// Formats labels and values, one pair per line.
pub(crate) fn pairs<'r>(rows: impl IntoIterator<Item = (&'r str, String)>) -> String {
    let mut table = borderless();
    for (label, value) in rows {
        table.add_row([label.to_owned(), escaped(&value).into_owned()]);
    }
    trimmed(&table)
}

/// Truncates `text` to one line of at most `max` characters.
pub(crate) fn truncated(text: &str, max: usize) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(max + 1).collect();
    if flat.chars().count() <= max {
        return flat;
    }
    let kept: String = flat.chars().take(max.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Formats a size for humans.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let tenths = ((bytes >> (shift - 10)) * 10) >> 10;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Formats a time to the second, in UTC.
pub(crate) fn timestamp(time: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| time.to_string())
}

fn borderless() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Formats the table without the padding of its lines.
fn trimmed(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_plain_columns() {
        let text = table(["NAME", "RUNTIME"], [["a".to_owned(), "wasm".to_owned()]]);
        assert_eq!(text, "NAME  RUNTIME\na     wasm");
    }

    #[test]
    fn size_has_the_largest_fitting_unit() {
        assert_eq!([size(0), size(1023), size(1024), size(90_868_373)], ["0 B", "1023 B", "1.0 KiB", "86.6 MiB"]);
        assert_eq!(size(u64::MAX >> 1), "8589934591.9 GiB");
    }

    #[test]
    fn truncated_text_ends_with_an_ellipsis() {
        assert_eq!(truncated("a\nb", 3), "a b");
        assert_eq!(truncated("äöü!", 3), "äö…");
    }

    #[test]
    fn timestamp_is_in_utc_to_the_second() {
        let time = time::macros::datetime!(2026-01-31 13:00:00.9 +1);
        assert_eq!(timestamp(time), "2026-01-31 12:00:00");
    }
}
