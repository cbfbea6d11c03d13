//! Reads typed values from TOML tables and collects the mistakes in them.

use super::Problem;
use crate::Name;
use std::{ops::Range, time::Duration};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A table and its location in the file.
pub(super) struct Section<'t, 'i> {
    pub(super) path: String,
    pub(super) table: &'t DeTable<'i>,
    pub(super) span: Range<usize>,
}

impl<'t, 'i> Section<'t, 'i> {
    /// The root table.
    pub(super) fn root(table: &'t DeTable<'i>) -> Self {
        Self { path: String::new(), table, span: 0..0 }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Reads typed values and collects mistakes.
pub(super) struct Reader<'i> {
    text: &'i str,
    problems: Vec<Problem>,
}

impl<'i> Reader<'i> {
    /// Creates a reader of the file `text`, which locates mistakes in it.
    pub(super) fn new(text: &'i str) -> Self {
        Self { text, problems: Vec::new() }
    }

    /// Returns the mistakes in the order of their lines.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.problems
    }
}

impl Reader<'_> {
    /// Reports a mistake at `span`.
    pub(super) fn report(&mut self, span: Range<usize>, key: &str, message: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.problems.push(Problem { line, column, key: key.to_owned(), message: message.into() });
    }

    /// Reports a mistake in the value of `key`, or in the table when the key is absent.
    pub(super) fn report_key(&mut self, section: &Section<'_, '_>, key: &str, message: impl Into<String>) {
        let span = section.get(key).map_or_else(|| section.span.clone(), Spanned::span);
        self.report(span, &section.path_of(key), message);
    }

    /// Rejects keys that are not `known`; `planned` keys are reported as not yet supported.
    pub(super) fn check_keys(&mut self, section: &Section<'_, '_>, known: &[&str], planned: &[&str]) {
        for key in section.table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let message = if planned.contains(&name) {
                "not yet supported by this version of Nerve: remove it".to_owned()
            } else {
                format!("unknown key{}", did_you_mean(name, known))
            };
            self.report(key.span(), &section.path_of(name), message);
        }
    }

    /// Reads the tables below `[KEY]` that have valid names.
    pub(super) fn named_tables<'t, 'i>(
        &mut self,
        section: &Section<'t, 'i>,
        key: &str,
    ) -> Vec<(Name, Section<'t, 'i>)> {
        let Some(outer) = self.table(section, key) else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in outer.table {
            let path = outer.path_of(name.get_ref());
            let span = name.span();
            match (Name::parse(name.get_ref().as_ref()), value.get_ref().as_table()) {
                (Ok(name), Some(table)) => tables.push((name, Section { path, table, span })),
                (Err(error), _) => self.report(span, &path, error.to_string()),
                (_, None) => self.report(span, &path, format!("must be a table: [{path}]")),
            }
        }
        tables
    }

    /// Reads a table.
    pub(super) fn table<'t, 'i>(&mut self, section: &Section<'t, 'i>, key: &str) -> Option<Section<'t, 'i>> {
        let value = section.get(key)?;
        let path = section.path_of(key);
        match value.get_ref().as_table() {
            Some(table) => Some(Section { path, table, span: value.span() }),
            None => {
                self.report_key(section, key, format!("must be a table, not {}", type_name(value)));
                None
            }
        }
    }

    /// Reads a non-empty string.
    pub(super) fn string(&mut self, section: &Section<'_, '_>, key: &str) -> Option<String> {
        let value = section.get(key)?;
        match value.get_ref().as_str() {
            Some("") => self.report_key(section, key, "must not be empty"),
            Some(text) => return Some(text.to_owned()),
            None => self.report_key(section, key, format!("must be a string, not {}", type_name(value))),
        }
        None
    }

    /// Reads a string with `parse`, whose error becomes the message.
    pub(super) fn parsed<T, E: std::fmt::Display>(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.string(section, key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report_key(section, key, error.to_string());
                None
            }
        }
    }

    /// Reads an array of strings with `parse`. A mistake is reported at its element.
    pub(super) fn list<T, E: std::fmt::Display>(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let value = section.get(key)?;
        let path = section.path_of(key);
        let Some(array) = value.get_ref().as_array() else {
            self.report_key(section, key, format!("must be an array of strings, not {}", type_name(value)));
            return None;
        };
        let mut items = Vec::new();
        for element in array.iter() {
            let Some(text) = element.get_ref().as_str() else {
                self.report(element.span(), &path, format!("an element must be a string, not {}", type_name(element)));
                continue;
            };
            match parse(text) {
                Ok(item) => items.push(item),
                Err(error) => self.report(element.span(), &path, error.to_string()),
            }
        }
        Some(items)
    }

    /// Reads a whole number within `range`.
    pub(super) fn number(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = section.get(key)?;
        let digits = value.get_ref().as_integer().map(|n| u64::from_str_radix(n.as_str(), n.radix()));
        match digits {
            Some(Ok(number)) if range.contains(&number) => return Some(number),
            _ => {
                let message = format!("must be a whole number from {} to {}", range.start(), range.end());
                self.report_key(section, key, message);
            }
        }
        None
    }

    /// Reads a boolean.
    pub(super) fn boolean(&mut self, section: &Section<'_, '_>, key: &str) -> Option<bool> {
        let value = section.get(key)?;
        let DeValue::Boolean(flag) = value.get_ref() else {
            self.report_key(section, key, format!("must be true or false, not {}", type_name(value)));
            return None;
        };
        Some(*flag)
    }

    /// Reads any value as JSON.
    pub(super) fn value(&mut self, section: &Section<'_, '_>, key: &str) -> Option<serde_json::Value> {
        match to_json(section.get(key)?.get_ref()) {
            Ok(json) => Some(json),
            Err(why) => {
                self.report_key(section, key, why);
                None
            }
        }
    }

    /// Reads a table of any values as JSON.
    pub(super) fn json(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let section = self.table(section, key)?;
        let mut map = serde_json::Map::new();
        for (name, value) in section.table {
            match to_json(value.get_ref()) {
                Ok(json) => drop(map.insert(name.get_ref().to_string(), json)),
                Err(why) => self.report(value.span(), &section.path_of(name.get_ref()), why),
            }
        }
        Some(map)
    }

    /// Reads a duration such as `"30s"`, at most `max`.
    pub(super) fn duration(&mut self, section: &Section<'_, '_>, key: &str, max: Duration) -> Option<Duration> {
        self.parsed(section, key, |text| parse_duration(text, max))
    }
}

/// Converts a TOML value to JSON.
fn to_json(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(n) => {
            let number = i64::from_str_radix(n.as_str(), n.radix());
            number.map(Value::from).map_err(|_| format!("`{n}` is out of range"))?
        }
        DeValue::Float(n) => n
            .as_str()
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| format!("`{n}` is not a finite number"))?,
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect::<Result<_, _>>()?,
        DeValue::Table(table) => {
            let field = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                Ok::<_, String>((
                    AsRef::<str>::as_ref(Spanned::<std::borrow::Cow<'_, str>>::get_ref(name)).to_owned(),
                    to_json(value.get_ref())?,
                ))
            };
            Value::Object(table.iter().map(field).collect::<Result<_, _>>()?)
        }
        DeValue::Datetime(_) => return Err("dates are not supported: use a string".to_owned()),
    })
}

/// Parses a duration such as `5ms` or `2m`, at most `max`.
pub(super) fn parse_duration(text: &str, max: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!("`{text}` is not a duration: use a number and a unit, such as \"500ms\", \"30s\" or \"2m\"")
    })?;
    if duration > max {
        return Err(format!("`{text}` exceeds the maximum of {}", humantime::format_duration(max)));
    }
    Ok(duration)
}

/// Returns a suggestion to append to an error message: `: did you mean …?`, or the known names if none is similar.
/// Returns an empty string if `known` is empty.
pub fn did_you_mean(name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= known.len().max(name.len()).div_ceil(3).max(1))
        .min();
    match nearest {
        Some((_, nearest)) => format!(": did you mean `{nearest}`?"),
        None if known.is_empty() => String::new(),
        None => format!(": expected one of {}", known.join(", ")),
    }
}

fn type_name(value: &Spanned<DeValue<'_>>) -> String {
    let name = value.get_ref().type_str();
    let article = if name.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {name}")
}
