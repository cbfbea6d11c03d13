//! Escapes characters in external text that control a terminal, reorder text or are invisible.

use std::{
    borrow::Cow,
    io::{self, Write},
    ops::RangeInclusive,
};

/// First character of terminal control sequences.
const ESC: char = '\u{1b}';

/// Joiners of some scripts and of emoji: U+200C and U+200D.
const JOINERS: RangeInclusive<char> = '\u{200c}'..='\u{200d}';

/// Whether this character controls a terminal, reorders the surrounding text or is invisible.
///
/// Control characters (C0 except newline and tab, DEL, C1), line and paragraph separators, and invisible Unicode format
/// characters (Cf): the marks, embeddings, overrides and isolates of the Bidirectional Algorithm (UAX #9), joiners,
/// zero-width spaces, soft hyphens, tags.
fn is_active(c: char) -> bool {
    let is_control = c.is_control() && !matches!(c, '\n' | '\t');
    let is_format = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}'
    );
    is_control || is_format || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Whether a joiner next to this character is legitimate: the character belongs to a script with joiners, or is an
/// emoji.
fn can_be_joined(c: Option<char>) -> bool {
    c.is_some_and(|c| !c.is_ascii() && !c.is_whitespace() && !is_active(c))
}

/// Escapes every active character as `\uXXXX`. A JSON document stays equivalent, because such characters occur only in
/// its strings.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    escaped_where(text, is_active)
}

fn escaped_where(text: &str, is_active: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_active) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let (mut before, mut characters) = (None, text.chars().peekable());
    while let Some(c) = characters.next() {
        let joins = JOINERS.contains(&c) && can_be_joined(before) && can_be_joined(characters.peek().copied());
        match is_active(c) && !joins {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| shown.push_str(&format!("\\u{unit:04x}"))),
            false => shown.push(c),
        }
        before = Some(c);
    }
    Cow::Owned(shown)
}

/// Writes log records to stderr, one line per record.
pub(crate) struct LogWriter {
    /// Whether the formatter colors lines. It then escapes ESC in values, so that any other ESC is its own.
    has_colors: bool,
}

impl LogWriter {
    pub(crate) fn new(has_colors: bool) -> Self {
        Self { has_colors }
    }
}

impl Write for LogWriter {
    /// Writes one record of the formatter.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(line(&String::from_utf8_lossy(record), self.has_colors).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Formats a log record as one line. A newline in a value could forge another record.
fn line(record: &str, has_colors: bool) -> String {
    let (body, end) = record.strip_suffix('\n').map_or((record, ""), |body| (body, "\n"));
    let shown = escaped_where(body, |c| is_active(c) && !(has_colors && c == ESC));
    format!("{}{end}", shown.replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_characters_are_escaped() {
        assert!(matches!(escaped("grüße, 日本語 🎉 שלום\n\tx"), Cow::Borrowed(_)));
        let shown = escaped("\u{1b}]0;owned\u{7}\u{9b}2J\r\u{7f}\u{202e}gpj\u{2066}\u{200f}\u{2028}");
        assert_eq!(shown, r"\u001b]0;owned\u0007\u009b2J\u000d\u007f\u202egpj\u2066\u200f\u2028");
    }

    #[test]
    fn invisible_characters_are_escaped() {
        let shown = escaped("a\u{feff}b\u{e0041}\u{ad}\u{200b}\u{2060}\u{fffb}c");
        assert_eq!(shown, r"a\ufeffb\udb40\udc41\u00ad\u200b\u2060\ufffbc");
        // Joiners are part of words in some scripts, and of emoji.
        for text in ["\u{645}\u{6cc}\u{200c}\u{62e}", "\u{915}\u{94d}\u{200d}\u{937}", "👩\u{200d}💻"] {
            assert_eq!(escaped(text), text);
        }
        for (text, shown) in [("ad\u{200d}min", r"ad\u200dmin"), ("\u{200c}م", "\\u200cم"), ("م\u{200d}", "م\\u200d")]
        {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn escaped_json_is_the_same_document() {
        let value =
            serde_json::json!({"a\u{9b}b": "\u{e0041}\u{feff}\u{1b}[2J\u{9d}\u{202e}\\\u{85}\"", "n": [1, "\u{7f}"]});
        let text = value.to_string();
        let shown = escaped(&text);
        assert!(shown.chars().all(|c| !is_active(c)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn log_record_is_one_line_and_keeps_its_own_colors() {
        assert_eq!(line("WARN a\nINFO forged\u{9b} \u{1b}[2J\n", false), "WARN a\\nINFO forged\\u009b \\u001b[2J\n");
        assert_eq!(line("\u{1b}[33mWARN\u{1b}[0m a\u{202e}\n", true), "\u{1b}[33mWARN\u{1b}[0m a\\u202e\n");
    }
}
