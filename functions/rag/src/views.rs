//! Documents in the bucket `views`, with optimistic concurrency between workers.

use nerve_core::{
    Fault, FunctionError,
    function::{View, Views},
};
use serde::{Serialize, de::DeserializeOwned};

/// Maximum number of attempts of an update with write conflicts.
const MAX_ATTEMPTS: usize = 16;

/// Result of changing a document.
pub(crate) enum ViewChange<R> {
    /// The document is unchanged.
    Keep(R),
    /// The changed document is to be written.
    Write(R),
}

/// Reads the document of this key; `None` if it is missing or cannot be parsed.
///
/// # Errors
/// If `views` cannot be read.
pub(crate) async fn read<T: DeserializeOwned>(views: &dyn Views, key: &str) -> Result<Option<T>, FunctionError> {
    Ok(views.view(key).await?.as_ref().and_then(parse))
}

fn parse<T: DeserializeOwned>(view: &View) -> Option<T> {
    serde_json::from_slice(&view.data).ok()
}

/// Updates the document of this key. Calls `change` again with the current document after a write conflict. `what`
/// names the document in errors.
///
/// # Errors
/// `Fault::Retry` after [`MAX_ATTEMPTS`] write conflicts; the error of `views` if it cannot be read or written.
pub(crate) async fn update<T, R>(
    views: &dyn Views,
    key: &str,
    what: &str,
    mut change: impl FnMut(&mut T) -> ViewChange<R>,
) -> Result<R, FunctionError>
where
    T: Default + Serialize + DeserializeOwned,
{
    for _ in 0..MAX_ATTEMPTS {
        let view = views.view(key).await?;
        let mut document: T = view.as_ref().and_then(parse).unwrap_or_default();
        let result = match change(&mut document) {
            ViewChange::Keep(result) => return Ok(result),
            ViewChange::Write(result) => result,
        };
        let data = serde_json::to_vec(&document);
        let data = data.map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        if views.put_view(key, data.into(), view.map(|view| view.revision)).await? {
            return Ok(result);
        }
    }
    Err(FunctionError::new(Fault::Retry { after: None }, format!("{what}: too many concurrent writes")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use parking_lot::Mutex;
    use std::collections::HashMap;

    /// The bucket in memory, with revisions.
    #[derive(Default)]
    pub(crate) struct InMemoryViews(pub(crate) Mutex<HashMap<String, View>>);

    #[async_trait]
    impl Views for InMemoryViews {
        async fn view(&self, key: &str) -> Result<Option<View>, FunctionError> {
            let view = self.0.lock().get(key).cloned();
            // Lets concurrent writers run between a read and a write.
            tokio::task::yield_now().await;
            Ok(view)
        }

        async fn put_view(&self, key: &str, data: Bytes, after: Option<u64>) -> Result<bool, FunctionError> {
            let mut all = self.0.lock();
            let revision = all.get(key).map(|view| view.revision);
            if revision != after {
                return Ok(false);
            }
            let view = View { data, revision: revision.unwrap_or_default() + 1 };
            all.insert(key.to_owned(), view);
            Ok(true)
        }
    }

    #[tokio::test]
    async fn concurrent_updates_are_all_applied() {
        let views = InMemoryViews::default();
        let add = |n: usize| {
            update(&views, "k", "the list", move |list: &mut Vec<usize>| {
                if list.contains(&n) {
                    return ViewChange::Keep(false);
                }
                list.push(n);
                ViewChange::Write(true)
            })
        };
        let added = futures::future::join_all((0..8).chain(0..8).map(add)).await;
        assert_eq!(added.into_iter().filter(|added| *added.as_ref().unwrap()).count(), 8);
        let mut list: Vec<usize> = read(&views, "k").await.unwrap().unwrap();
        list.sort_unstable();
        assert_eq!(list, (0..8).collect::<Vec<_>>());
    }
}
