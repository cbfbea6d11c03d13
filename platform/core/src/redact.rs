//! Credentials out of URLs, before a URL is shown to anybody.

use std::borrow::Cow;

/// What stands where user information stood.
const MASK: &str = "***";

/// `text` with the user information of every URL in it masked: `https://ada:secret@host/` becomes `https://***@host/`.
///
/// Text that holds no such URL is borrowed as it is. A password that is not percent-encoded is masked as far as its URL's
/// authority goes: up to the last `@` before a `/`, a `?`, a `#`, a quotation mark or a space.
pub fn urls(text: &str) -> Cow<'_, str> {
    let mut parts = text.split("://");
    let mut redacted = parts.next().unwrap_or_default().to_owned();
    let mut is_redacted = false;
    for part in parts {
        redacted.push_str("://");
        let (authority, rest) = part.split_at(part.find(ends_authority).unwrap_or(part.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                redacted.extend([MASK, "@", host, rest]);
                is_redacted = true;
            }
            None => redacted.push_str(part),
        }
    }
    if is_redacted { Cow::Owned(redacted) } else { Cow::Borrowed(text) }
}

fn ends_authority(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '/' | '?' | '#' | '\\' | '"' | '`' | '<' | '>')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_information_is_masked_in_every_url() {
        for (text, shown) in [
            ("https://ada:p4ss@h.example/p?q=a@b", "https://***@h.example/p?q=a@b"),
            ("nats://token@127.0.0.1:1", "nats://***@127.0.0.1:1"),
            ("nats://a:1,nats://ada:p4ss@b:2", "nats://a:1,nats://***@b:2"),
            (
                "http://ada:p@ss@h could not be asked: http://ada:p@ss@h",
                "http://***@h could not be asked: http://***@h",
            ),
            (r#"{"endpoint":"http://ada:p4ss@h","to":"x@y"}"#, r#"{"endpoint":"http://***@h","to":"x@y"}"#),
            ("https://h.example/@ada", "https://h.example/@ada"),
            ("write to ada@h.example", "write to ada@h.example"),
        ] {
            assert_eq!(urls(text), shown);
        }
        assert!(matches!(urls("https://h.example/"), Cow::Borrowed(_)));
    }
}
