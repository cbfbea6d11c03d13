//! The minimum version of nats-server.

use std::fmt;

/// A version of nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl Version {
    /// The oldest version with message schedules and atomic batches as the streams use them.
    pub const OLDEST: Self = Self(2, 14, 0);

    /// Parses `2.15.1`, with an optional `v` prefix and an optional suffix such as `-beta.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| {
            let digits = part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            digits.parse().ok()
        });
        Some(Self(parts.next()??, parts.next()??, parts.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_compared_numerically() {
        assert_eq!(Version::parse("v2.15.1\n"), Some(Version(2, 15, 1)));
        assert_eq!(Version::parse("2.14.0-RC.3"), Some(Version::OLDEST));
        assert!(Version::parse("2.9.10").is_some_and(|version| version < Version::OLDEST));
        assert!(Version::parse("2.100.0").is_some_and(|version| version > Version::OLDEST));
        for bad in ["", "2", "2.15", "x.y.z"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }
}
