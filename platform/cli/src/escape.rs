//! What comes from outside and would steer a terminal, or make text read in another order than it is written, is shown instead.

use std::{
    borrow::Cow,
    io::{self, Write},
    ops::RangeInclusive,
};

/// The character that begins a terminal's control sequences.
const ESC: char = '\u{1b}';

/// Joiners of the scripts that need them, and of emoji: U+200C and U+200D.
const JOINERS: RangeInclusive<char> = '\u{200c}'..='\u{200d}';

/// Whether a terminal obeys this character, it reorders the text around it, or it cannot be seen.
///
/// Control characters (C0 but for newline and tab, DEL, C1), line and paragraph separators, and what Unicode calls format characters
/// (Cf) but for those that can be seen: the marks, embeddings, overrides and isolates of the Bidirectional Algorithm (UAX #9),
/// joiners, spaces of no width, soft hyphens, tags.
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

/// Whether this character may stand beside a joiner: it is of a script, or an emoji, that has use for one.
fn is_joined(c: Option<char>) -> bool {
    c.is_some_and(|c| !c.is_ascii() && !c.is_whitespace() && !is_active(c))
}

/// `text` with every active character as `\uXXXX`, as in JSON. In a JSON document that is the same string: such characters stand in
/// its strings only, and nothing else of it has them.
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
        let joins = JOINERS.contains(&c) && is_joined(before) && is_joined(characters.peek().copied());
        match is_active(c) && !joins {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| shown.push_str(&format!("\\u{unit:04x}"))),
            false => shown.push(c),
        }
        before = Some(c);
    }
    Cow::Owned(shown)
}

/// Where log lines go: stderr, one line each whatever their values hold.
pub(crate) struct LogWriter {
    /// Whether the formatter colours lines: then it escapes ESC in values itself, and what it writes of it is meant.
    has_colours: bool,
}

impl LogWriter {
    pub(crate) fn new(has_colours: bool) -> Self {
        Self { has_colours }
    }
}

impl Write for LogWriter {
    /// Writes one record, as the formatter hands it over.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(line(&String::from_utf8_lossy(record), self.has_colours).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A log record as one line. A newline in a value would begin a line that looks like another record.
fn line(record: &str, has_colours: bool) -> String {
    let (body, end) = record.strip_suffix('\n').map_or((record, ""), |body| (body, "\n"));
    let shown = escaped_where(body, |c| is_active(c) && !(has_colours && c == ESC));
    format!("{}{end}", shown.replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_characters_are_shown_and_all_others_stay() {
        assert!(matches!(escaped("grüße, 日本語 🎉 שלום\n\tx"), Cow::Borrowed(_)));
        let shown = escaped("\u{1b}]0;owned\u{7}\u{9b}2J\r\u{7f}\u{202e}gpj\u{2066}\u{200f}\u{2028}");
        assert_eq!(shown, r"\u001b]0;owned\u0007\u009b2J\u000d\u007f\u202egpj\u2066\u200f\u2028");
    }

    #[test]
    fn characters_that_cannot_be_seen_are_shown() {
        let shown = escaped("a\u{feff}b\u{e0041}\u{ad}\u{200b}\u{2060}\u{fffb}c");
        assert_eq!(shown, r"a\ufeffb\udb40\udc41\u00ad\u200b\u2060\ufffbc");
        // Joiners are part of words of some scripts, and of emoji.
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
    fn log_record_is_one_line_and_keeps_its_own_colours() {
        assert_eq!(line("WARN a\nINFO forged\u{9b} \u{1b}[2J\n", false), "WARN a\\nINFO forged\\u009b \\u001b[2J\n");
        assert_eq!(line("\u{1b}[33mWARN\u{1b}[0m a\u{202e}\n", true), "\u{1b}[33mWARN\u{1b}[0m a\\u202e\n");
    }
}
