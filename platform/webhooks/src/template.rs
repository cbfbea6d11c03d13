//! Templates of signed content.

use super::content::Content;

/// One segment of a signed-content template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    Literal(&'a str),
    Body,
    Timestamp,
    Id,
    Url,
    Method,
    /// The fields of a form, sorted by name; empty if the URL has the body's digest instead.
    Form,
    /// The members of an SNS message, each as `name\nvalue\n`.
    Sns,
}

/// An iterator over the segments of a template. Braces around anything but a field are literal.
#[derive(Debug, Clone)]
pub struct Template<'a>(&'a str);

const FIELDS: [(&str, Segment<'static>); 7] = [
    ("{body}", Segment::Body),
    ("{timestamp}", Segment::Timestamp),
    ("{id}", Segment::Id),
    ("{url}", Segment::Url),
    ("{method}", Segment::Method),
    ("{form}", Segment::Form),
    ("{sns}", Segment::Sns),
];

/// Returns the field at the start of a template, and the rest of the template.
fn field(template: &str) -> Option<(Segment<'static>, &str)> {
    FIELDS.iter().find_map(|(name, segment)| Some((*segment, template.strip_prefix(name)?)))
}

impl<'a> Template<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }
}

impl<'a> Iterator for Template<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if let Some((field, rest)) = field(self.0) {
            self.0 = rest;
            return Some(field);
        }
        let braces = self.0.match_indices('{').map(|(at, _)| at);
        let ends = braces.filter_map(|at| self.0.split_at_checked(at)).find(|(_, rest)| field(rest).is_some());
        let (literal, rest) = ends.unwrap_or((self.0, ""));
        self.0 = rest;
        (!literal.is_empty()).then_some(Segment::Literal(literal))
    }
}

/// The members that SNS signs, in order. Members that a message does not have are skipped.
const SNS_MEMBERS: [&str; 8] =
    ["/Message", "/MessageId", "/Subject", "/SubscribeURL", "/Timestamp", "/Token", "/TopicArn", "/Type"];

/// Returns the signed content of an SNS message.
pub(super) fn sns(content: &Content<'_>) -> String {
    let notification = content.scalar("/Type").is_some_and(|ty| ty == "Notification");
    let mut text = String::new();
    for pointer in SNS_MEMBERS {
        let of_subscriptions = matches!(pointer, "/SubscribeURL" | "/Token");
        let is_signed = if notification { !of_subscriptions } else { pointer != "/Subject" };
        if let Some(value) = content.scalar(pointer).filter(|_| is_signed) {
            text.extend([pointer.trim_start_matches('/'), "\n", &value, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_is_split_at_its_fields() {
        let segments: Vec<_> = Template("v0:{timestamp}:{body}").collect();
        assert_eq!(segments, [Segment::Literal("v0:"), Segment::Timestamp, Segment::Literal(":"), Segment::Body]);
        assert_eq!(Template("{url}{id}").collect::<Vec<_>>(), [Segment::Url, Segment::Id]);
        assert_eq!(Template("{x}").collect::<Vec<_>>(), [Segment::Literal("{x}")]);
        assert_eq!(Template("").count(), 0);
    }
}
