//! Quotas of collections, set by an operator.

use super::{Entry, Registry};
use data_encoding::BASE64URL_NOPAD;
use nerve_broker::bus::BusError;
use nerve_core::quota::Quota;
use std::{convert::Infallible, str::FromStr};

/// The prefix of quota keys.
pub(super) const PREFIX: &str = "collection.";

/// Returns the key of a collection's quota. The name is encoded, as it may have any characters.
fn key(collection: &str) -> String {
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(collection.as_bytes()))
}

/// Returns the collection of a key.
pub(super) fn collection_of(key: &str) -> Option<String> {
    let name = BASE64URL_NOPAD.decode(key.strip_prefix(PREFIX)?.as_bytes()).ok()?;
    String::from_utf8(name).ok()
}

/// An encoded collection name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Encoded(String);

impl FromStr for Encoded {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl Registry {
    /// Returns the quotas, by collection.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn quotas(&self) -> Result<Vec<(String, Quota)>, BusError> {
        let entries: Vec<Entry<Quota, Encoded>> = self.list(PREFIX).await?;
        let quota = |entry: Entry<Quota, Encoded>| {
            collection_of(&format!("{PREFIX}{}", entry.name.0)).map(|collection| (collection, entry.record))
        };
        let mut quotas: Vec<(String, Quota)> = entries.into_iter().filter_map(quota).collect();
        quotas.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(quotas)
    }

    /// Returns the quota of a collection, if one is set.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn quota(&self, collection: &str) -> Result<Option<Quota>, BusError> {
        let entry: Option<Entry<Quota, String>> = self.get(&collection.to_owned(), &key(collection)).await?;
        Ok(entry.map(|entry| entry.record))
    }

    /// ResultSetPublisher the quota of a collection; `None` restores the default. Servers apply it immediately.
    ///
    /// # Errors
    /// The broker is unavailable.
    pub async fn set_quota(&self, collection: &str, quota: Option<Quota>) -> Result<(), BusError> {
        match quota {
            Some(quota) => self.put(&key(collection), &quota).await.map(drop),
            None => self.delete(&key(collection)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_collection_name_has_a_valid_key() {
        for name in ["acme", "Ünïcode / and * > spaces.", ""] {
            let key = key(name);
            assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)), "{key}");
            assert_eq!(collection_of(&key).as_deref(), Some(name));
        }
        assert_eq!(collection_of("function.acme"), None);
    }
}
