//! Form bodies and URLs in signed content.

use super::scheme::UrlForm;
use percent_encoding::percent_decode;
use std::collections::BTreeMap;

/// Returns the fields of a form, percent-decoded, in order.
pub(super) fn form_fields(form: &[u8]) -> impl Iterator<Item = (String, String)> {
    let decode = |part: &[u8]| {
        let spaced: Vec<u8> = part.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
        String::from_utf8(percent_decode(&spaced).collect()).ok()
    };
    form.split(|&byte| byte == b'&').filter_map(move |pair| {
        let mut halves = pair.splitn(2, |&byte| byte == b'=');
        Some((decode(halves.next()?)?, decode(halves.next().unwrap_or_default())?))
    })
}

/// Concatenates names and values, sorted by name and without duplicate pairs, as Twilio signs a form.
pub(super) fn sorted_form(form: &[u8]) -> String {
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in form_fields(form).filter(|(name, _)| !name.is_empty()) {
        fields.entry(name).or_default().push(value);
    }
    let mut text = String::new();
    for (name, mut values) in fields {
        values.sort();
        values.dedup();
        for value in values {
            text.extend([name.as_str(), &value]);
        }
    }
    text
}

/// The escapes that HubSpot decodes in a URL before it signs it.
const HUBSPOT_ESCAPES: [(&str, &str); 12] = [
    ("%3A", ":"),
    ("%2F", "/"),
    ("%3F", "?"),
    ("%40", "@"),
    ("%21", "!"),
    ("%24", "$"),
    ("%27", "'"),
    ("%28", "("),
    ("%29", ")"),
    ("%2A", "*"),
    ("%2C", ","),
    ("%3B", ";"),
];

/// Returns the URLs that the sender may have signed: the public URL of the source, with the request's query if it has none.
pub(super) fn urls(public: &str, query: Option<&str>, form: UrlForm) -> Vec<String> {
    let url = match query.filter(|query| !query.is_empty() && !public.contains('?')) {
        Some(query) => format!("{public}?{query}"),
        None => public.to_owned(),
    };
    match form {
        UrlForm::Plain => vec![url],
        UrlForm::AnyPort => [other_port(&url)].into_iter().flatten().chain([url]).collect(),
        UrlForm::Decoded => {
            let decoded = HUBSPOT_ESCAPES
                .iter()
                .fold(url, |url, (from, to)| url.replace(from, to).replace(&from.to_ascii_lowercase(), to));
            vec![decoded]
        }
    }
}

/// Returns the URL without its port, or with the default port of its scheme if it has none.
fn other_port(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end)?;
    let host_from = authority.rfind([']', '@']).map_or(0, |at| at + 1);
    let port_at = authority.get(host_from..)?.find(':').map(|at| at + host_from);
    let authority = match port_at {
        Some(at) => authority.get(..at)?.to_owned(),
        None => format!("{authority}:{}", if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 }),
    };
    Some(format!("{scheme}://{authority}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_is_sorted_by_name_without_duplicate_pairs() {
        assert_eq!(sorted_form(b"b=2&a=1%2B&a=0&b=2&c"), "a0a1+b2c");
        assert_eq!(sorted_form(b"B=x+y&a="), "Bx ya");
        assert_eq!(sorted_form(b""), "");
        assert_eq!(sorted_form(b"&&=1&%ff=1"), "");
    }

    #[test]
    fn url_may_be_signed_with_or_without_its_port() {
        let urls = |url, query| super::urls(url, query, UrlForm::AnyPort);
        assert_eq!(
            urls("https://n.example/x", Some("a=1")),
            ["https://n.example:443/x?a=1", "https://n.example/x?a=1"]
        );
        assert_eq!(urls("http://n.example:8080?b", Some("a=1")), ["http://n.example?b", "http://n.example:8080?b"]);
        assert_eq!(urls("https://u:p@n.example", None), ["https://u:p@n.example:443", "https://u:p@n.example"]);
        assert_eq!(urls("https://[::1]/", None), ["https://[::1]:443/", "https://[::1]/"]);
        assert_eq!(urls("nonsense", None), ["nonsense"]);
        let decoded = super::urls("https://n.example/x", Some("a=%3a%2F%20"), UrlForm::Decoded);
        assert_eq!(decoded, ["https://n.example/x?a=:/%20"]);
    }
}
