//! Parses a whole `nerve.toml` and reports every mistake in it.

use super::{
    Manifest, ManifestError, function_table,
    reader::{Reader, Section},
    schedule, sink_table, source_table,
};
use toml::de::DeTable;

impl Manifest {
    /// Parses a manifest.
    ///
    /// # Errors
    /// If the manifest is invalid. The error lists every mistake, in the order of its lines.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut reader = Reader::new(text);
        let manifest = match DeTable::parse(text) {
            Ok(root) => read_root(&mut reader, root.get_ref()),
            Err(error) => {
                reader.report(error.span().unwrap_or_default(), "", error.message().to_owned());
                Self::default()
            }
        };
        let problems = reader.into_problems();
        if problems.is_empty() { Ok(manifest) } else { Err(ManifestError { problems }) }
    }
}

fn read_root(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Manifest {
    let mut manifest = Manifest::default();
    let section = Section::root(root);
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
                format!("the name `{name}` is already used by a function: rename one of the two"),
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
            "no resources defined: add a [function.NAME], [source.NAME], [sink.NAME] or [schedule.NAME] table",
        );
    }
    manifest
}

#[cfg(test)]
mod tests {
    use crate::manifest::Manifest;

    fn problems(text: &str) -> Vec<String> {
        Manifest::parse(text).unwrap_err().problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn broken_and_empty_files_are_rejected() {
        assert!(problems("[function.a\nruntime = 1")[0].starts_with("line 1"));
        assert!(problems("")[0].contains("no resources defined"));
        assert!(problems("[function.\"No Name\"]\nruntime=\"wasm\"")[0].contains("is not a name"));
        assert!(
            problems("[function.a]\nruntime=\"wasm\"\nsource=\"../a\"\non=[\"e.x\"]")[0]
                .contains("outside the manifest")
        );
        assert!(problems("function = 3")[0].contains("must be a table, not an integer"));
    }
}
