//! Credentials out of URLs, before a URL is shown to anybody.

use std::borrow::Cow;

/// What stands where user information stood.
const MASK: &str = "***";

/// `text` with the user information of every URL in it masked: `https://ada:secret@host/` becomes `https://***@host/`.
///
/// Text that holds no such URL is borrowed as it is. A password that is not percent-encoded is masked as far as its URL's
/// authority goes: up to the last `@` before a `/`, a `?`, a `#`, a quotation mark or a space. A word that is meant to be a URL and
/// is none, such as `https:/ada:secret@host` and `ada:secret@host`, is masked up to its last `@`.
pub fn urls(text: &str) -> Cow<'_, str> {
    let mut redacted = String::with_capacity(text.len());
    let mut is_redacted = false;
    for word in text.split_inclusive(ends_word) {
        is_redacted |= redact_word(word, &mut redacted);
    }
    if is_redacted { Cow::Owned(redacted) } else { Cow::Borrowed(text) }
}

/// Whether anything of it was masked.
fn redact_word(word: &str, redacted: &mut String) -> bool {
    let mut parts = word.split("://");
    let mut is_redacted = redact_part(parts.next().unwrap_or_default(), redacted);
    for part in parts {
        redacted.push_str("://");
        let (authority, rest) = part.split_at(part.find(ends_authority).unwrap_or(part.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                redacted.extend([MASK, "@", host, rest]);
                is_redacted = true;
            }
            // What stands where a port does is the beginning of a password with a `/`.
            None if !has_port(authority) => is_redacted |= redact_part(part, redacted),
            None => redacted.push_str(part),
        }
    }
    is_redacted
}

/// Masks what may be user information in a text that is no URL: what has a `:` before its last `@`, but for the scheme.
fn redact_part(part: &str, redacted: &mut String) -> bool {
    let Some((information, host)) = part.rsplit_once('@').filter(|(information, _)| information.contains(':')) else {
        redacted.push_str(part);
        return false;
    };
    let scheme = information.split_once(":/").filter(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphanumeric()));
    let scheme = scheme.map_or("", |(_, rest)| {
        let masked = rest.trim_start_matches('/').len();
        information.get(..information.len().saturating_sub(masked)).unwrap_or_default()
    });
    redacted.extend([scheme, MASK, "@", host]);
    true
}

/// Whether an authority without user information is a host, or a host and a port.
fn has_port(authority: &str) -> bool {
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    port.is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '`' | '<' | '>')
}

fn ends_authority(c: char) -> bool {
    ends_word(c) || matches!(c, '/' | '?' | '#' | '\\')
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
            ("https://[::1]/@ada and http://h:80/@ada", "https://[::1]/@ada and http://h:80/@ada"),
            // What is no URL.
            ("https:/ada:p4ss@h/p", "https:/***@h/p"),
            ("`nats:/ada:p4@ss@h:1` is wrong", "`nats:/***@h:1` is wrong"),
            ("ada:p4ss@h/p", "***@h/p"),
            ("https:ada:p4ss@h", "***@h"),
            ("//ada:p4ss@h nats:/token@h", "***@h nats:/***@h"),
            ("ada:p4:/ss@h", "***@h"),
            ("nats://ada:p4/ss@h", "nats://***@h"),
            ("nats://a:1,nats://ada:p4/ss@h", "nats://a:1,nats://***@h"),
        ] {
            assert_eq!(urls(text), shown);
        }
        assert!(matches!(urls("https://h.example/"), Cow::Borrowed(_)));
    }
}
