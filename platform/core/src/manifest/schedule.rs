//! `[schedule.NAME]`: an event published on a schedule.

use super::{
    reader::{Reader, Section, did_you_mean, parse_duration},
    values::parse_emitted_type,
};
use crate::EventType;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A schedule and its event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleSpec {
    /// Six fields (second minute hour day month weekday), a name such as `@daily`, or `@every 5m`.
    pub cron: String,
    /// The event's type.
    pub emit: EventType,
    /// The event's data; an empty object if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    /// An IANA time zone; UTC if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

const NAMED_SCHEDULES: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
const MAX_INTERVAL: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<ScheduleSpec> {
    reader.check_keys(table, &["cron", "emit", "data", "timezone"], &[]);
    for (key, example) in [("cron", "\"0 0 7 * * *\""), ("emit", "\"digest.due\"")] {
        if table.get(key).is_none() {
            reader.report_key(table, key, format!("missing: add {key} = {example}"));
        }
    }
    let cron = reader.parsed(table, "cron", parse_cron);
    let timezone = reader.parsed(table, "timezone", parse_timezone);
    if timezone.is_some() && cron.as_deref().is_some_and(|cron| cron.starts_with("@every")) {
        reader.report_key(
            table,
            "timezone",
            "`@every` intervals start at the deployment and have no time zone: remove it",
        );
    }
    let emit = reader.parsed(table, "emit", parse_emitted_type);
    let data = reader.value(table, "data");
    Some(ScheduleSpec { cron: cron?, emit: emit?, data, timezone })
}

/// Checks for common mistakes. The broker validates the schedule completely.
fn parse_cron(text: &str) -> Result<String, String> {
    if let Some(every) = text.strip_prefix("@every ") {
        let every = parse_duration(every.trim(), MAX_INTERVAL)?;
        if every < Duration::from_secs(1) {
            return Err("`@every` must be at least 1s".to_owned());
        }
        return Ok(format!("@every {}s", every.as_secs()));
    }
    if text.starts_with('@') {
        return match NAMED_SCHEDULES.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(format!("`{text}` is not a schedule{}", did_you_mean(text, NAMED_SCHEDULES))),
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let known = |c: char| c.is_ascii_alphanumeric() || "*/,-?".contains(c);
    match fields.len() {
        6 if fields.iter().all(|field| field.chars().all(known)) => Ok(fields.join(" ")),
        5 => Err(format!("`{text}` has five fields, expected six (seconds first): use \"0 {text}\"")),
        _ => Err(format!("`{text}` is not a schedule: use six fields, second minute hour day month weekday")),
    }
}

fn parse_timezone(text: &str) -> Result<String, String> {
    let good = text.chars().all(|c| c.is_ascii_alphanumeric() || "/_+-".contains(c));
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a time zone: use an IANA name, such as \"Europe/Rome\""))
    }
}
