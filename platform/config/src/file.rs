//! The settings file.

use super::{ConfigError, renamed};
use config::{FileFormat, Format, Map, Source, Value};
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Maximum bytes of a settings file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A settings file.
#[derive(Debug, Clone)]
pub(super) struct SettingsFile {
    name: String,
    text: String,
}

impl SettingsFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = nerve_files::read_to_string(path, MAX_FILE_BYTES);
        let text = text.map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        Ok(Self { name: path.display().to_string(), text: text.trim_start_matches('\u{feff}').to_owned() })
    }

    /// Rejects keys of renamed settings. An invalid file is reported when its settings are collected.
    pub(super) fn check_renamed(&self) -> Result<(), ConfigError> {
        let Ok(table) = DeTable::parse(&self.text) else { return Ok(()) };
        for (section, value) in table.get_ref() {
            let DeValue::Table(keys) = value.get_ref() else { continue };
            for key in keys.keys() {
                renamed::check(&format!("{}.{}", section.get_ref(), key.get_ref()), &self.name)?;
            }
        }
        Ok(())
    }
}

impl Source for SettingsFile {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let read = Format::parse(&FileFormat::Toml, Some(&self.name), &self.text);
        read.map_err(|cause| {
            // The parser's error does not name the key of the number.
            let table = DeTable::parse(&self.text).ok();
            let large = table.and_then(|table| large_number(table.get_ref()));
            let cause = large.map_or(cause, |key| format!("{key}: the number is too large").into());
            config::ConfigError::FileParse { uri: Some(self.name.clone()), cause }
        })
    }
}

/// Returns the key of the first number that exceeds 64 bits.
fn large_number(table: &DeTable<'_>) -> Option<String> {
    table.iter().find_map(|(key, value)| match value.get_ref() {
        DeValue::Integer(number) if i64::from_str_radix(number.as_str(), number.radix()).is_err() => {
            Some(key.get_ref().to_string())
        }
        DeValue::Table(below) => large_number(below).map(|found| format!("{}.{found}", key.get_ref())),
        _ => None,
    })
}
