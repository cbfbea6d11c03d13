//! Documents in the bucket `views` that several workers write: read, changed, and written where nobody else did meanwhile.

use nerve_core::{
    Fault, FunctionError,
    function::{View, Views},
};
use serde::{Serialize, de::DeserializeOwned};

/// How often a document is read again that somebody else writes meanwhile.
const TRIES: usize = 16;

/// What becomes of a document.
pub(crate) enum Change<R> {
    /// It stays as it is.
    Keep(R),
    /// It is written as it was changed.
    Write(R),
}

/// The document of this key; none where there is none that can be read.
pub(crate) async fn read<T: DeserializeOwned>(views: &dyn Views, key: &str) -> Result<Option<T>, FunctionError> {
    Ok(views.view(key).await?.as_ref().and_then(parsed))
}

fn parsed<T: DeserializeOwned>(view: &View) -> Option<T> {
    serde_json::from_slice(&view.data).ok()
}

/// Changes the document of this key, whoever else changes it at the same time: `change` is asked again with what the
/// other has written. `what` names the document to people.
pub(crate) async fn update<T, R>(
    views: &dyn Views,
    key: &str,
    what: &str,
    mut change: impl FnMut(&mut T) -> Change<R>,
) -> Result<R, FunctionError>
where
    T: Default + Serialize + DeserializeOwned,
{
    for _ in 0..TRIES {
        let view = views.view(key).await?;
        let mut document: T = view.as_ref().and_then(parsed).unwrap_or_default();
        let result = match change(&mut document) {
            Change::Keep(result) => return Ok(result),
            Change::Write(result) => result,
        };
        let data = serde_json::to_vec(&document);
        let data = data.map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        if views.put_view(key, data.into(), view.map(|view| view.revision)).await? {
            return Ok(result);
        }
    }
    Err(FunctionError::new(Fault::Retry { after: None }, format!("{what} is being written by others")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use std::{collections::HashMap, sync::Mutex};

    /// The bucket in memory, with versions as the broker has them.
    #[derive(Default)]
    pub(crate) struct InMemory(pub(crate) Mutex<HashMap<String, View>>);

    #[async_trait]
    impl Views for InMemory {
        async fn view(&self, key: &str) -> Result<Option<View>, FunctionError> {
            let view = self.0.lock().unwrap().get(key).cloned();
            // Whoever else writes gets its turn between a read and a write.
            tokio::task::yield_now().await;
            Ok(view)
        }

        async fn put_view(&self, key: &str, data: Bytes, after: Option<u64>) -> Result<bool, FunctionError> {
            let mut all = self.0.lock().unwrap();
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
    async fn what_several_write_at_once_is_written_by_each() {
        let views = InMemory::default();
        let add = |n: usize| {
            update(&views, "k", "the list", move |list: &mut Vec<usize>| {
                if list.contains(&n) {
                    return Change::Keep(false);
                }
                list.push(n);
                Change::Write(true)
            })
        };
        let added = futures::future::join_all((0..8).chain(0..8).map(add)).await;
        assert_eq!(added.into_iter().filter(|added| *added.as_ref().unwrap()).count(), 8);
        let mut list: Vec<usize> = read(&views, "k").await.unwrap().unwrap();
        list.sort_unstable();
        assert_eq!(list, (0..8).collect::<Vec<_>>());
    }
}
