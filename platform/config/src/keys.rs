//! API keys, by name. Records contain the name, so that the value can be rotated.

use super::{ConfigError, GatewayConfig};
use nerve_core::Secret;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Minimum characters of a key.
const MIN_KEY_CHARS: usize = 16;

/// Keys by name. A name has several keys during a rotation.
pub type Keys = BTreeMap<String, Vec<Secret>>;

#[derive(Deserialize)]
#[serde(untagged, expecting = "a key is a string, and several are a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn secrets(self) -> Vec<Secret> {
        match self {
            Self::One(key) => vec![Secret::new(key)],
            Self::Many(keys) => keys.into_iter().map(Secret::new).collect(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "gateway.keys must be a list of keys, or a table `name = \"key\"`")]
enum NamedOrList {
    List(Vec<String>),
    Named(BTreeMap<String, OneOrMany>),
}

/// Deserializes a table of keys.
pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
    let named = BTreeMap::<String, OneOrMany>::deserialize(deserializer)?;
    Ok(named.into_iter().map(|(name, keys)| (name, keys.secrets())).collect())
}

/// Deserializes a table of keys, or a list of unnamed keys.
pub(super) fn named_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
    Ok(match NamedOrList::deserialize(deserializer)? {
        NamedOrList::List(keys) => Keys::from([(String::new(), keys.into_iter().map(Secret::new).collect())]),
        NamedOrList::Named(named) if named.contains_key("") => {
            return Err(serde::de::Error::custom("a key of gateway.keys has an empty name"));
        }
        NamedOrList::Named(named) => named.into_iter().map(|(name, keys)| (name, keys.secrets())).collect(),
    })
}

impl GatewayConfig {
    pub(super) fn check_keys(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        let mut keys = self.keys.values().chain(self.collection_keys.values()).flatten();
        if keys.any(|key| key.expose().len() < MIN_KEY_CHARS) {
            return wrong("gateway.keys", "a key must have at least 16 characters");
        }
        if !self.collection_keys.is_empty() && self.keys.values().all(Vec::is_empty) {
            return wrong("gateway.collection_keys", "requires a key in gateway.keys too, for everything else");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Config, *};

    fn load(settings: &str, environment: &[(&str, &str)]) -> Result<Keys, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        std::fs::write(&file, settings).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = Config::load(Some(&file), environment);
        loaded.map(|config| config.gateway.keys).map_err(|error| error.to_string())
    }

    fn keys(names: &[(&str, &[&str])]) -> Keys {
        let secrets = |keys: &[&str]| keys.iter().map(|key| Secret::new(*key)).collect();
        names.iter().map(|(name, keys)| ((*name).to_owned(), secrets(keys))).collect()
    }

    #[test]
    fn keys_are_a_list_or_a_table() {
        let (old, new) = ("0123456789abcdef", "fedcba9876543210");
        assert_eq!(load("", &[]), Ok(keys(&[("", &[])])));
        assert_eq!(load(&format!("[gateway]\nkeys = [\"{old}\", \"{new}\"]"), &[]), Ok(keys(&[("", &[old, new])])));
        let named = format!("[gateway.keys]\nci = \"{old}\"\nApp = [\"{old}-2\", \"{new}\"]");
        assert_eq!(load(&named, &[]), Ok(keys(&[("App", &[&format!("{old}-2"), new]), ("ci", &[old])])));
        let environment = [("NERVE_GATEWAY_KEYS", "0123456789abcdef, fedcba9876543210")];
        assert_eq!(load(&named, &environment), Ok(keys(&[("", &[old, new])])), "a variable replaces the table");
    }

    #[test]
    fn invalid_keys_are_refused_and_not_shown() {
        for (settings, expected) in [
            ("[gateway.keys]\nci = \"short\"", "at least 16"),
            ("[gateway.keys]\nci = [\"0123456789abcdef\", 7]", "a list of keys, or a table"),
            ("[gateway.collection_keys]\nred = 7", "a key is a string"),
            ("[gateway.keys]\n\"\" = \"0123456789abcdef\"", "empty name"),
            ("[gateway]\nkeys = 7", "a list of keys, or a table"),
            ("[gateway.collection_keys]\nred = \"0123456789abcdef\"", "gateway.keys too"),
        ] {
            let refused = load(settings, &[]).unwrap_err();
            assert!(refused.contains(expected) && !refused.contains("0123456789"), "{settings}: {refused}");
        }
    }
}
