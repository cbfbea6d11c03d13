//! `[schedule.NAME]`: an event at certain times.

use super::{
    function_table::parse_emitted_type,
    read::{Reader, Section, did_you_mean, parse_duration},
};
use crate::EventType;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When an event is emitted, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleSpec {
    /// Six fields (second minute hour day month weekday), `@daily` and its like, or `@every 5m`.
    pub cron: String,
    /// The event's type.
    pub emit: EventType,
    /// The event's data; an empty object when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    /// An IANA time zone; UTC when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

const NAMED: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<ScheduleSpec> {
    reader.check_keys(table, &["cron", "emit", "data", "timezone"], &[]);
    for (key, example) in [("cron", "\"0 0 7 * * *\""), ("emit", "\"digest.due\"")] {
        if table.get(key).is_none() {
            reader.fault(table, key, format!("it is missing: say {key} = {example}"));
        }
    }
    let cron = reader.parsed(table, "cron", parse_cron);
    let timezone = reader.parsed(table, "timezone", parse_timezone);
    if timezone.is_some() && cron.as_deref().is_some_and(|cron| cron.starts_with("@every")) {
        reader.fault(table, "timezone", "`@every` counts from its deployment, in no time zone: remove it");
    }
    let emit = reader.parsed(table, "emit", parse_emitted_type);
    let data = reader.value(table, "data");
    Some(ScheduleSpec { cron: cron?, emit: emit?, data, timezone })
}

/// The broker reads it with more care; this finds what people confuse.
fn parse_cron(text: &str) -> Result<String, String> {
    if let Some(every) = text.strip_prefix("@every ") {
        let every = parse_duration(every.trim(), LONGEST)?;
        if every < Duration::from_secs(1) {
            return Err("`@every` waits a second at least".to_owned());
        }
        return Ok(format!("@every {}s", every.as_secs()));
    }
    if text.starts_with('@') {
        return match NAMED.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(format!("`{text}` is not a schedule{}", did_you_mean(text, NAMED))),
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let known = |c: char| c.is_ascii_alphanumeric() || "*/,-?".contains(c);
    match fields.len() {
        6 if fields.iter().all(|field| field.chars().all(known)) => Ok(fields.join(" ")),
        5 => Err(format!("`{text}` has five fields, and the first of six is the second: write \"0 {text}\"")),
        _ => Err(format!("`{text}` is not a schedule: write six fields, second minute hour day month weekday")),
    }
}

fn parse_timezone(text: &str) -> Result<String, String> {
    let good = text.chars().all(|c| c.is_ascii_alphanumeric() || "/_+-".contains(c));
    if good { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a time zone: write it as in \"Europe/Rome\"")) }
}
