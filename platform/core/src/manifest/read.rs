//! Reads a `nerve.toml` whole, so that one run reports every mistake.

use super::{Manifest, ManifestError, Problem, function_table, schedule, sink_table, source_table};
use crate::Name;
use std::{ops::Range, time::Duration};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

impl Manifest {
    /// Reads a manifest. The error holds every mistake, in the order of its lines.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut reader = Reader { text, problems: Vec::new() };
        let manifest = match DeTable::parse(text) {
            Ok(root) => read_root(&mut reader, root.get_ref()),
            Err(error) => {
                reader.report(error.span().unwrap_or_default(), "", error.message().to_owned());
                Self::default()
            }
        };
        if reader.problems.is_empty() {
            return Ok(manifest);
        }
        reader.problems.sort_by_key(|problem| (problem.line, problem.column));
        Err(ManifestError { problems: reader.problems })
    }
}

fn read_root(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Manifest {
    let mut manifest = Manifest::default();
    let section = Section { path: String::new(), table: root, span: 0..0 };
    reader.check_keys(&section, &["function", "source", "sink", "schedule"], &[]);
    for (name, table) in reader.named_tables(&section, "function") {
        if let Some(spec) = function_table::read(reader, &table) {
            manifest.functions.insert(name, spec);
        }
    }
    for (name, table) in reader.named_tables(&section, "source") {
        if let Some(spec) = source_table::read(reader, &table) {
            manifest.sources.insert(name, spec);
        }
    }
    for (name, table) in reader.named_tables(&section, "sink") {
        if manifest.functions.contains_key(&name) {
            reader.report(
                table.span.clone(),
                &table.path,
                format!("a function is named `{name}` too: give one of the two another name"),
            );
        }
        if let Some(spec) = sink_table::read(reader, &name, &table) {
            manifest.sinks.insert(name, spec);
        }
    }
    for (name, table) in reader.named_tables(&section, "schedule") {
        if let Some(spec) = schedule::read(reader, &table) {
            manifest.schedules.insert(name, spec);
        }
    }
    if root.is_empty() {
        reader.report(
            0..0,
            "",
            "it deploys nothing: add a [function.NAME], [source.NAME], [sink.NAME] or [schedule.NAME] table",
        );
    }
    manifest
}

/// One table, and where it stands.
pub(super) struct Section<'t, 'i> {
    pub(super) path: String,
    pub(super) table: &'t DeTable<'i>,
    pub(super) span: Range<usize>,
}

impl<'t, 'i> Section<'t, 'i> {
    pub(super) fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Reads typed values and collects what is wrong with them.
pub(super) struct Reader<'i> {
    text: &'i str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn report(&mut self, span: Range<usize>, key: &str, message: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.problems.push(Problem { line, column, key: key.to_owned(), message: message.into() });
    }

    /// Reports a mistake in the value of `key`, or in the table when the key is absent.
    pub(super) fn fault(&mut self, section: &Section<'_, '_>, key: &str, message: impl Into<String>) {
        let span = section.get(key).map_or_else(|| section.span.clone(), Spanned::span);
        self.report(span, &section.path_of(key), message);
    }

    /// Refuses keys that are not `known`; those that are `planned` are said to be not yet supported.
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

    /// The tables below `[KEY]`, each with a valid name.
    pub(super) fn named_tables<'t, 'i>(
        &mut self,
        section: &Section<'t, 'i>,
        key: &str,
    ) -> Vec<(Name, Section<'t, 'i>)> {
        let Some(outer) = self.table(section, key) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, value) in outer.table {
            let path = outer.path_of(name.get_ref());
            let span = name.span();
            match (Name::parse(name.get_ref().as_ref()), value.get_ref().as_table()) {
                (Ok(name), Some(table)) => found.push((name, Section { path, table, span })),
                (Err(error), _) => self.report(span, &path, error.to_string()),
                (_, None) => self.report(span, &path, format!("it must be a table: [{path}]")),
            }
        }
        found
    }

    pub(super) fn table<'t, 'i>(&mut self, section: &Section<'t, 'i>, key: &str) -> Option<Section<'t, 'i>> {
        let value = section.get(key)?;
        let path = section.path_of(key);
        match value.get_ref().as_table() {
            Some(table) => Some(Section { path, table, span: value.span() }),
            None => {
                self.fault(section, key, format!("it must be a table, not {}", kind(value)));
                None
            }
        }
    }

    pub(super) fn string(&mut self, section: &Section<'_, '_>, key: &str) -> Option<String> {
        let value = section.get(key)?;
        match value.get_ref().as_str() {
            Some("") => self.fault(section, key, "it is empty"),
            Some(text) => return Some(text.to_owned()),
            None => self.fault(section, key, format!("it must be a string, not {}", kind(value))),
        }
        None
    }

    /// A string that `parse` accepts; its error becomes the message.
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
                self.fault(section, key, error.to_string());
                None
            }
        }
    }

    /// An array of strings, each parsed; a mistake is reported at its own element.
    pub(super) fn list<T, E: std::fmt::Display>(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let value = section.get(key)?;
        let path = section.path_of(key);
        let Some(array) = value.get_ref().as_array() else {
            self.fault(section, key, format!("it must be an array of strings, not {}", kind(value)));
            return None;
        };
        let mut items = Vec::new();
        for element in array.iter() {
            let Some(text) = element.get_ref().as_str() else {
                self.report(element.span(), &path, format!("an element must be a string, not {}", kind(element)));
                continue;
            };
            match parse(text) {
                Ok(item) => items.push(item),
                Err(error) => self.report(element.span(), &path, error.to_string()),
            }
        }
        Some(items)
    }

    /// A whole number within `range`.
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
                let message = format!("it must be a whole number from {} to {}", range.start(), range.end());
                self.fault(section, key, message);
            }
        }
        None
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, section: &Section<'_, '_>, key: &str) -> Option<bool> {
        let value = section.get(key)?;
        let DeValue::Boolean(flag) = value.get_ref() else {
            self.fault(section, key, format!("it must be true or false, not {}", kind(value)));
            return None;
        };
        Some(*flag)
    }

    /// Whatever value, as JSON.
    pub(super) fn value(&mut self, section: &Section<'_, '_>, key: &str) -> Option<serde_json::Value> {
        match to_json(section.get(key)?.get_ref()) {
            Ok(json) => Some(json),
            Err(why) => {
                self.fault(section, key, why);
                None
            }
        }
    }

    /// A table of whatever values, as JSON.
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

    /// A duration such as `"30s"`, at most `max`.
    pub(super) fn duration(&mut self, section: &Section<'_, '_>, key: &str, max: Duration) -> Option<Duration> {
        self.parsed(section, key, |text| parse_duration(text, max))
    }
}

fn to_json(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(n) => {
            let number = i64::from_str_radix(n.as_str(), n.radix());
            number.map(Value::from).map_err(|_| format!("`{n}` is too large a number"))?
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
        DeValue::Datetime(_) => return Err("a date is not taken here: write it as a string".to_owned()),
    })
}

/// Reads a duration such as `5ms` or `2m`, at most `max`.
pub(super) fn parse_duration(text: &str, max: Duration) -> Result<Duration, String> {
    let form =
        || format!("`{text}` is not a duration: write a number and a unit, such as \"500ms\", \"30s\" or \"2m\"");
    let duration = humantime::parse_duration(text).map_err(|_| form())?;
    if duration > max {
        return Err(format!("`{text}` is longer than the longest allowed, {}", humantime::format_duration(max)));
    }
    Ok(duration)
}

/// `: did you mean …?`, or the list of what is known when nothing is near, or nothing when nothing is known: for the end
/// of a sentence that names what is wrong.
pub fn did_you_mean(wrong: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|right| (strsim::damerau_levenshtein(wrong, right), right))
        .filter(|(distance, right)| *distance <= right.len().max(wrong.len()).div_ceil(3).max(1))
        .min();
    match nearest {
        Some((_, right)) => format!(": did you mean `{right}`?"),
        None if known.is_empty() => String::new(),
        None => format!(": it may be one of {}", known.join(", ")),
    }
}

fn kind(value: &Spanned<DeValue<'_>>) -> String {
    let name = value.get_ref().type_str();
    let article = if name.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {name}")
}
