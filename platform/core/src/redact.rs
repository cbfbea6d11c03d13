//! Removes credentials from URLs before they are shown or logged.

use std::borrow::Cow;

/// Replacement of user information.
const MASK: &str = "***";

/// Masks the user information of every URL in `text`: `https://ada:secret@host/` becomes `https://***@host/`.
///
/// Text without such a URL is borrowed. A password that is not percent-encoded is masked up to the last `@` of the
/// authority, which ends at a `/`, `?`, `#`, quotation mark or space. A malformed URL, such as `https:/ada:secret@host`
/// or `ada:secret@host`, is masked up to its last `@`.
pub fn urls(text: &str) -> Cow<'_, str> {
    let mut redacted = String::with_capacity(text.len());
    let mut is_redacted = false;
    for word in text.split_inclusive(ends_word) {
        is_redacted |= redact_word(word, &mut redacted);
    }
    if is_redacted { Cow::Owned(redacted) } else { Cow::Borrowed(text) }
}

/// Appends `word` to `redacted` and returns whether it was masked.
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
            // An invalid port is the beginning of a password with a `/`.
            None if !is_host_and_port(authority) => is_redacted |= redact_part(part, redacted),
            None => redacted.push_str(part),
        }
    }
    is_redacted
}

/// Masks possible user information outside a URL: text with a `:` before its last `@`, except the scheme.
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

/// Whether an authority without user information is a host with an optional valid port.
fn is_host_and_port(authority: &str) -> bool {
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
            // Malformed URLs.
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
