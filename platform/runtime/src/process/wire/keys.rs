//! Finds the members of the objects in a line, even if the line is not valid JSON.

/// The member names of the outermost objects, and the numeric values of `id`.
#[derive(Debug, Default)]
pub(super) struct Keys<'l> {
    names: Vec<&'l [u8]>,
    pub(super) ids: Vec<u64>,
}

impl<'l> Keys<'l> {
    /// Scans `line`, an object or a list of objects, by its braces and quotes.
    pub(super) fn of(line: &'l [u8]) -> Self {
        let mut keys = Self::default();
        let within = line.strip_prefix(b"[").unwrap_or(line).trim_ascii_start();
        if !within.starts_with(b"{") {
            return keys;
        }
        let (mut rest, mut depth) = (within, 0_usize);
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'{' => depth = depth.saturating_add(1),
                b'}' => depth = depth.saturating_sub(1),
                // Python's `repr` of a dictionary has single quotes.
                b'"' | b'\'' => {
                    let (text, after) = quoted(after, byte);
                    rest = after;
                    if depth == 1
                        && let Some(value) = after.trim_ascii_start().strip_prefix(b":")
                    {
                        keys.add(text, value.trim_ascii_start());
                    }
                }
                _ => {}
            }
        }
        keys
    }

    /// Returns whether one of the objects has a member of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(&name.as_bytes())
    }

    fn add(&mut self, name: &'l [u8], value: &[u8]) {
        if name == b"id" {
            self.ids.extend(number(value));
        }
        // A line may have millions of members; each name is stored once.
        if name.len() <= 16 && !self.names.contains(&name) && self.names.len() < 64 {
            self.names.push(name);
        }
    }
}

/// The text up to the closing `quote`, and the rest.
fn quoted(text: &[u8], quote: u8) -> (&[u8], &[u8]) {
    let mut escaped = false;
    let end = text.iter().position(|&byte| {
        let closes = byte == quote && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    match end.and_then(|end| text.split_at_checked(end)) {
        Some((text, after)) => (text, after.get(1..).unwrap_or_default()),
        None => (text, &[]),
    }
}

/// The integer at the start of `value`, also as `7.0` or in quotes.
fn number(value: &[u8]) -> Option<u64> {
    let value = match value.split_first() {
        Some((&quote @ (b'"' | b'\''), text)) => quoted(text, quote).0,
        _ => value,
    };
    let end = value.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.').unwrap_or(value.len());
    let digits = std::str::from_utf8(value.get(..end)?).ok()?;
    digits.strip_suffix(".0").unwrap_or(digits).parse().ok()
}
