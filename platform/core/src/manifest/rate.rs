//! Rates, such as `10/s`, in sources, sinks and settings.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// A rate, such as `10/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// Number per time unit, at least 1.
    pub count: u32,
    /// The time unit: a second, a minute or an hour.
    pub per: Duration,
}

/// Time units and their seconds.
const UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(count, unit)| {
            let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
            let count = count.trim().parse::<u32>().ok().filter(|count| (1..=100_000).contains(count))?;
            Some(Self { count, per: Duration::from_secs(*seconds) })
        });
        parsed.ok_or_else(|| format!("`{text}` is not a rate: use a number up to 100000 and a unit, as in \"10/s\""))
    }
}

impl TryFrom<String> for Rate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, seconds)| *seconds == self.per.as_secs()).map_or("s", |(name, _)| name);
        write!(f, "{}/{unit}", self.count)
    }
}
