//! Operations that a nats-server does not permit.

use std::fmt;

/// An operation that a server refused without a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The subject of the publish or subscribe.
    pub subject: String,
    /// The operation.
    pub act: Act,
    /// The server's message.
    pub said: String,
}

/// An operation on a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Publish a message to it.
    Publish,
    /// Subscribe to it.
    Subscribe,
}

impl Violation {
    /// Parses `Permissions Violation for Publish to "subject"` and similar messages.
    pub(crate) fn parse(said: &str) -> Option<Self> {
        let lower = said.to_lowercase();
        let (_, of) = lower.split_once("permissions violation for ")?;
        let act = if of.starts_with("subscription") { Act::Subscribe } else { Act::Publish };
        let subject = said.split('"').nth(1)?.to_owned();
        Some(Self { subject, act, said: said.trim_start_matches("nats: ").to_owned() })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let api = self.subject.strip_prefix("$JS.").and_then(|rest| rest.split_once("API."));
        match (api, self.act) {
            (Some((_, request)), _) => write!(f, "these credentials may not use the JetStream API {request}"),
            (None, Act::Publish) => write!(f, "these credentials may not publish to {}", self.subject),
            (None, Act::Subscribe) => write!(f, "these credentials may not subscribe to {}", self.subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_operation_is_parsed_from_the_server_message() {
        for (said, shown) in [
            ("nats: Permissions Violation for Publish to \"$KV.functions.x\"", "may not publish to $KV.functions.x"),
            (
                "Permissions Violation for Publish to \"$JS.API.STREAM.UPDATE.A\"",
                "use the JetStream API STREAM.UPDATE.A",
            ),
            ("Permissions Violation for Publish to \"$JS.hub.API.INFO\"", "may not use the JetStream API INFO"),
            ("Permissions Violation for Subscription to \"a.>\" using queue \"q\"", "may not subscribe to a.>"),
        ] {
            let violation = Violation::parse(said).unwrap();
            assert!(violation.to_string().ends_with(shown), "{violation}");
            assert!(violation.said.starts_with("Permissions"), "{violation:?}");
        }
        assert_eq!(Violation::parse("nats: authorization violation"), None);
    }
}
