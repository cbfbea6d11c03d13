//! The plan of a deploy: compares the manifest with the deployed state.

use crate::display_fields::DisplayFields;
use nerve_core::redact;
use serde::Serialize;

/// The planned action for one function, source, sink, schedule or model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// `function`, `source`, `sink`, `schedule` or `model`.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// The action.
    pub(crate) action: Action,
    /// The changed fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) changes: Vec<FieldChange>,
}

/// The action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// Not deployed yet.
    Create,
    /// Deployed with differences.
    Update,
    /// Deployed and unchanged.
    Keep,
}

/// A changed field. Unset values are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FieldChange {
    /// The field.
    pub(crate) field: String,
    /// The deployed value.
    pub(crate) from: String,
    /// The new value.
    pub(crate) to: String,
}

/// The deployed or desired state of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceState {
    /// The fields that `describe` shows.
    pub(crate) fields: DisplayFields,
    /// Name and SHA-256 of each file, sorted by name.
    pub(crate) files: Vec<(String, String)>,
}

impl ResourceState {
    /// Creates the state of a resource without files.
    pub(crate) fn of(fields: DisplayFields) -> Self {
        Self { fields, files: Vec::new() }
    }
}

/// Compares the deployed with the desired state.
pub(crate) fn compare(
    kind: &'static str,
    name: &str,
    deployed: Option<&ResourceState>,
    desired: &ResourceState,
) -> Step {
    let (action, changes) = match deployed {
        None => (Action::Create, Vec::new()),
        Some(deployed) => {
            let mut changes = differences(&deployed.fields, &desired.fields);
            changes.extend(differences(&deployed.files, &desired.files));
            (if changes.is_empty() { Action::Keep } else { Action::Update }, changes)
        }
    };
    Step { kind, name: name.to_owned(), action, changes }
}

fn differences<L: AsRef<str>>(deployed: &[(L, String)], desired: &[(L, String)]) -> Vec<FieldChange> {
    let find = |fields: &[(L, String)], label: &str| {
        fields.iter().find(|(l, _)| l.as_ref() == label).map(|(_, value)| value.clone())
    };
    let value = |fields, label| find(fields, label).unwrap_or_default();
    let removed = deployed.iter().filter(|(label, _)| find(desired, label.as_ref()).is_none());
    let labels = desired.iter().chain(removed).map(|(label, _)| label.as_ref());
    labels
        .map(|label| FieldChange { field: label.to_owned(), from: value(deployed, label), to: value(desired, label) })
        .filter(|change| change.from != change.to)
        // Masked after the comparison, so that new credentials are a change.
        .map(|FieldChange { field, from, to }| FieldChange {
            field,
            from: redact::urls(&from).into_owned(),
            to: redact::urls(&to).into_owned(),
        })
        .collect()
}

impl Step {
    /// Formats the step: `+` new, `~` changed, `=` unchanged.
    pub(crate) fn to_text(&self) -> String {
        let (sign, details) = match self.action {
            Action::Create => ('+', " (new)".to_owned()),
            Action::Keep => ('=', " (unchanged)".to_owned()),
            Action::Update => {
                let change = |c: &FieldChange| {
                    format!("\n    {} {} → {}", c.field, display_value(&c.from), display_value(&c.to))
                };
                ('~', self.changes.iter().map(change).collect())
            }
        };
        format!("{sign} {} {}{details}", self.kind, self.name)
    }
}

fn display_value(value: &str) -> &str {
    let is_digest = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    match value {
        "" => "none",
        // Enough to distinguish two versions.
        digest if is_digest => digest.get(..12).unwrap_or(digest),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(timeout: &str, digest: &str) -> ResourceState {
        ResourceState {
            fields: vec![("timeout", timeout.to_owned())],
            files: vec![("a.wasm".to_owned(), digest.to_owned())],
        }
    }

    #[test]
    fn step_text_shows_new_changed_and_unchanged() {
        let desired = state("10s", "abc");
        assert_eq!(compare("function", "a", None, &desired).to_text(), "+ function a (new)");
        assert_eq!(compare("function", "a", Some(&desired), &desired).to_text(), "= function a (unchanged)");
        let changed = compare("function", "a", Some(&state("30s", "def")), &desired);
        assert_eq!(changed.to_text(), "~ function a\n    timeout 30s → 10s\n    a.wasm def → abc");
        assert_eq!(changed.action, Action::Update);
    }

    #[test]
    fn new_credentials_are_a_masked_change() {
        let of = |password: &str| ResourceState::of(vec![("url", format!("http://ada:{password}@h/"))]);
        let changed = compare("sink", "a", Some(&of("hunter2")), &of("hunter3"));
        assert_eq!(changed.to_text(), "~ sink a\n    url http://***@h/ → http://***@h/");
    }

    #[test]
    fn removed_field_is_a_change() {
        let mut now = state("10s", "abc");
        now.fields.push(("stream", "ORDERS".to_owned()));
        let changed = compare("source", "a", Some(&now), &state("10s", "abc"));
        assert_eq!(changed.to_text(), "~ source a\n    stream ORDERS → none");
    }
}
