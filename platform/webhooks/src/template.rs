//! What is signed, piece by piece: templates, and how senders write forms and URLs into them.

use super::{content::Content, scheme::UrlForm};
use percent_encoding::percent_decode;
use std::collections::BTreeMap;

/// One piece of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Literal(&'a str),
    Body,
    Timestamp,
    Id,
    Url,
    Method,
    /// The fields of a posted form, by name; nothing where the URL holds the body's digest instead.
    Form,
    /// The members of an SNS message, each as `name\nvalue\n`.
    Sns,
}

/// Iterates over the pieces of a template; braces around anything but a field stand for themselves.
#[derive(Debug, Clone)]
pub struct Template<'a>(&'a str);

const FIELDS: [(&str, Piece<'static>); 7] = [
    ("{body}", Piece::Body),
    ("{timestamp}", Piece::Timestamp),
    ("{id}", Piece::Id),
    ("{url}", Piece::Url),
    ("{method}", Piece::Method),
    ("{form}", Piece::Form),
    ("{sns}", Piece::Sns),
];

/// The field that a template begins with, and what follows it.
fn field(template: &str) -> Option<(Piece<'static>, &str)> {
    FIELDS.iter().find_map(|(name, piece)| Some((*piece, template.strip_prefix(name)?)))
}

impl<'a> Template<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }
}

impl<'a> Iterator for Template<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if let Some((field, rest)) = field(self.0) {
            self.0 = rest;
            return Some(field);
        }
        let braces = self.0.match_indices('{').map(|(at, _)| at);
        let ends = braces.filter_map(|at| self.0.split_at_checked(at)).find(|(_, rest)| field(rest).is_some());
        let (literal, rest) = ends.unwrap_or((self.0, ""));
        self.0 = rest;
        (!literal.is_empty()).then_some(Piece::Literal(literal))
    }
}

/// The fields of a form, percent-decoded, in their order.
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

/// Names and values end to end, by name, and each pair once: as Twilio signs a form.
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

/// The members that SNS signs, in its order; those that a type of message has not are absent.
const SNS: [&str; 8] =
    ["/Message", "/MessageId", "/Subject", "/SubscribeURL", "/Timestamp", "/Token", "/TopicArn", "/Type"];

/// What SNS signs of a message.
pub(super) fn sns(content: &Content<'_>) -> String {
    let notification = content.scalar("/Type").is_some_and(|ty| ty == "Notification");
    let mut text = String::new();
    for pointer in SNS {
        let of_subscriptions = matches!(pointer, "/SubscribeURL" | "/Token");
        let counts = if notification { !of_subscriptions } else { pointer != "/Subject" };
        if let Some(value) = content.scalar(pointer).filter(|_| counts) {
            text.extend([pointer.trim_start_matches('/'), "\n", &value, "\n"]);
        }
    }
    text
}

/// What HubSpot decodes in a URL before it signs it.
const HUBSPOT_DECODES: [(&str, &str); 12] = [
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

/// The URLs that the sender may have signed: the one that is known of the source, with the request's query where it has
/// none of its own.
pub(super) fn urls(public: &str, query: Option<&str>, form: UrlForm) -> Vec<String> {
    let url = match query.filter(|query| !query.is_empty() && !public.contains('?')) {
        Some(query) => format!("{public}?{query}"),
        None => public.to_owned(),
    };
    match form {
        UrlForm::Plain => vec![url],
        UrlForm::AnyPort => [other_port(&url)].into_iter().flatten().chain([url]).collect(),
        UrlForm::Decoded => {
            let decoded = HUBSPOT_DECODES
                .iter()
                .fold(url, |url, (from, to)| url.replace(from, to).replace(&from.to_ascii_lowercase(), to));
            vec![decoded]
        }
    }
}

/// The URL without its port, or with the scheme's own where it has none.
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
    fn a_template_is_cut_at_its_fields() {
        let pieces: Vec<_> = Template("v0:{timestamp}:{body}").collect();
        assert_eq!(pieces, [Piece::Literal("v0:"), Piece::Timestamp, Piece::Literal(":"), Piece::Body]);
        assert_eq!(Template("{url}{id}").collect::<Vec<_>>(), [Piece::Url, Piece::Id]);
        assert_eq!(Template("{x}").collect::<Vec<_>>(), [Piece::Literal("{x}")]);
        assert_eq!(Template("").count(), 0);
    }

    #[test]
    fn a_form_is_signed_by_name_and_each_pair_once() {
        assert_eq!(sorted_form(b"b=2&a=1%2B&a=0&b=2&c"), "a0a1+b2c");
        assert_eq!(sorted_form(b"B=x+y&a="), "Bx ya");
        assert_eq!(sorted_form(b""), "");
        assert_eq!(sorted_form(b"&&=1&%ff=1"), "");
    }

    #[test]
    fn a_url_may_be_signed_with_its_port_or_without() {
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
