//! What a deploy would change: the manifest against what is deployed.

use crate::fields::Fields;
use nerve_core::redact;
use serde::Serialize;

/// What becomes of one function, source, sink, schedule or model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// `function`, `source`, `sink`, `schedule` or `model`.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// What is done.
    pub(crate) action: Action,
    /// The fields that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) changes: Vec<Change>,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// It is not there yet.
    Create,
    /// It is there, and differs.
    Update,
    /// It is there as it is wanted.
    Keep,
}

/// A field that differs; empty where it is not set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    /// The field.
    pub(crate) field: String,
    /// What it is now.
    pub(crate) from: String,
    /// What it will be.
    pub(crate) to: String,
}

/// Something deployed, or to be: its fields, and its files' names and digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// What `describe` shows of it.
    pub(crate) fields: Fields,
    /// Name and SHA-256 of each file, sorted by name.
    pub(crate) files: Vec<(String, String)>,
}

impl State {
    /// The state of what has no files.
    pub(crate) fn of(fields: Fields) -> Self {
        Self { fields, files: Vec::new() }
    }
}

/// Compares what there is with what is wanted.
pub(crate) fn step(kind: &'static str, name: &str, now: Option<&State>, wanted: &State) -> Step {
    let (action, changes) = match now {
        None => (Action::Create, Vec::new()),
        Some(now) => {
            let mut changes = differences(&now.fields, &wanted.fields);
            changes.extend(differences(&now.files, &wanted.files));
            (if changes.is_empty() { Action::Keep } else { Action::Update }, changes)
        }
    };
    Step { kind, name: name.to_owned(), action, changes }
}

fn differences<L: AsRef<str>>(now: &[(L, String)], wanted: &[(L, String)]) -> Vec<Change> {
    let find = |fields: &[(L, String)], label: &str| {
        fields.iter().find(|(l, _)| l.as_ref() == label).map(|(_, value)| value.clone())
    };
    let value = |fields, label| find(fields, label).unwrap_or_default();
    let gone = now.iter().filter(|(label, _)| find(wanted, label.as_ref()).is_none());
    let labels = wanted.iter().chain(gone).map(|(label, _)| label.as_ref());
    labels
        .map(|label| Change { field: label.to_owned(), from: value(now, label), to: value(wanted, label) })
        .filter(|change| change.from != change.to)
        // Compared as they are, so that new credentials are a change, and shown without them.
        .map(|Change { field, from, to }| Change {
            field,
            from: redact::urls(&from).into_owned(),
            to: redact::urls(&to).into_owned(),
        })
        .collect()
}

impl Step {
    /// The step for people: `+` new, `~` changed, `=` unchanged.
    pub(crate) fn to_text(&self) -> String {
        let (sign, said) = match self.action {
            Action::Create => ('+', " (new)".to_owned()),
            Action::Keep => ('=', " (unchanged)".to_owned()),
            Action::Update => {
                let change = |c: &Change| format!("\n    {} {} → {}", c.field, shown(&c.from), shown(&c.to));
                ('~', self.changes.iter().map(change).collect())
            }
        };
        format!("{sign} {} {}{said}", self.kind, self.name)
    }
}

fn shown(value: &str) -> &str {
    let is_digest = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    match value {
        "" => "none",
        // Enough for a reader to tell two versions apart.
        digest if is_digest => digest.get(..12).unwrap_or(digest),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(timeout: &str, digest: &str) -> State {
        State { fields: vec![("timeout", timeout.to_owned())], files: vec![("a.wasm".to_owned(), digest.to_owned())] }
    }

    #[test]
    fn a_plan_names_what_is_new_what_changes_and_what_stays() {
        let wanted = state("10s", "abc");
        assert_eq!(step("function", "a", None, &wanted).to_text(), "+ function a (new)");
        assert_eq!(step("function", "a", Some(&wanted), &wanted).to_text(), "= function a (unchanged)");
        let changed = step("function", "a", Some(&state("30s", "def")), &wanted);
        assert_eq!(changed.to_text(), "~ function a\n    timeout 30s → 10s\n    a.wasm def → abc");
        assert_eq!(changed.action, Action::Update);
    }

    #[test]
    fn new_credentials_are_a_change_that_is_not_shown() {
        let of = |password: &str| State::of(vec![("url", format!("http://ada:{password}@h/"))]);
        let changed = step("sink", "a", Some(&of("hunter2")), &of("hunter3"));
        assert_eq!(changed.to_text(), "~ sink a\n    url http://***@h/ → http://***@h/");
    }

    #[test]
    fn a_field_that_is_dropped_is_a_change() {
        let mut now = state("10s", "abc");
        now.fields.push(("stream", "ORDERS".to_owned()));
        let changed = step("source", "a", Some(&now), &state("10s", "abc"));
        assert_eq!(changed.to_text(), "~ source a\n    stream ORDERS → none");
    }
}
