//! Erasure of a tenant from the embedded index: deletes its rows, then rebuilds every file that may still contain its
//! data.
//!
//! SQLite, tantivy and usearch only mark deleted data and overwrite it later. The deleting transaction therefore
//! records that the files must be rebuilt; if this is interrupted, the next erasure completes it.

use super::{
    Embedded,
    store::{Store, failed},
};
use crate::{
    collections::{ErasedDocuments, TenantCollections},
    error::IndexError,
};
use rusqlite::{Connection, OptionalExtension, params};

/// Number of chunks read per lock of the store.
const PAGE_CHUNKS: usize = 256;
/// SQL condition on `documents` that selects those of a tenant.
const TENANT_CONDITION: &str = "(collection = ?1 or substr(collection, 1, length(?2)) = ?2)";
/// Setting that records that files must be rebuilt.
const SCRUB_PENDING: &str = "unscrubbed";

impl Embedded {
    /// Counts the documents of a tenant.
    pub(crate) fn count_tenant(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        self.store.lock().count_tenant(tenant)
    }

    /// Deletes the documents of a tenant and rebuilds the files.
    pub(crate) fn erase(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        let mut store = self.store.lock();
        let (erased, scrub_pending) = store.erase(tenant)?;
        self.documents.write().retain(|_, document| !tenant.owns(&document.collection));
        self.catch_up(&store)?;
        drop(store);
        if scrub_pending {
            self.scrub()?;
        }
        Ok(erased)
    }

    fn scrub(&self) -> Result<(), IndexError> {
        // The graph takes longest to rebuild; changes continue meanwhile.
        let store = loop {
            let graph = self.dense.successor(self.store.lock().position()?)?;
            let from = graph.position();
            let mut last = 0;
            loop {
                let page = self.store.lock().vectors(last)?;
                let Some((end, _)) = page.last() else { break };
                last = *end;
                for (chunk, vector) in page {
                    graph.add(chunk, vector)?;
                }
            }
            let store = self.store.lock();
            if store.has_changes_since(from)? {
                self.dense.replace_with(graph, &store)?;
                break store;
            }
        };
        self.lexical.rewrite(&store)?;
        self.catch_up(&store)?;
        store.compact()
    }
}

impl Store {
    fn count_tenant(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        limit(&self.connection, tenant).map_err(failed("counting documents"))
    }

    /// Deletes the documents of a tenant, including the record of deleted ones. Returns whether files must be rebuilt,
    /// because of this erasure or an interrupted one.
    fn erase(&mut self, tenant: &TenantCollections) -> Result<(ErasedDocuments, bool), IndexError> {
        let operation = "erasing documents";
        let transaction = self.connection.transaction().map_err(failed(operation))?;
        let erase = || {
            let erased = limit(&transaction, tenant)?;
            let names = params![tenant.collection(), tenant.conversations()];
            let of_tenant = format!("owner in (select id from documents where {TENANT_CONDITION})");
            let number = format!("insert into changes (chunk, added) select id, 0 from chunks where {of_tenant}");
            transaction.execute(&number, names)?;
            transaction.execute(&format!("delete from chunks where {of_tenant}"), names)?;
            let rows = transaction.execute(&format!("delete from documents where {TENANT_CONDITION}"), names)?;
            if rows > 0 {
                let note = "insert into settings (name, value) values (?1, '1') on conflict (name) do nothing";
                transaction.execute(note, [SCRUB_PENDING])?;
            }
            let select = "select 1 from settings where name = ?1";
            let scrub_pending = transaction.query_row(select, [SCRUB_PENDING], |_| Ok(())).optional()?.is_some();
            Ok((erased, scrub_pending))
        };
        let erased = erase().map_err(failed(operation))?;
        transaction.commit().map_err(failed(operation))?;
        Ok(erased)
    }

    /// The vectors of the next page of chunks after `after`.
    fn vectors(&self, after: u64) -> Result<Vec<(u64, Vec<f32>)>, IndexError> {
        let operation = "reading vectors";
        let select = "select id, vector from chunks where id > ?1 order by id limit ?2";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(operation))?;
        let rows = statement.query_map(params![after, PAGE_CHUNKS], |row| {
            let vector: Vec<u8> = row.get(1)?;
            let numbers = vector.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four));
            Ok((row.get(0)?, numbers.collect()))
        });
        rows.map_err(failed(operation))?.collect::<Result<_, _>>().map_err(failed(operation))
    }

    /// Rewrites the database without deleted data, and truncates its journal.
    fn compact(&self) -> Result<(), IndexError> {
        let compact = || {
            self.connection.execute_batch("vacuum")?;
            self.connection.execute("delete from settings where name = ?1", [SCRUB_PENDING])?;
            let truncate = "pragma wal_checkpoint(truncate)";
            self.connection.query_row(truncate, [], |row| row.get::<_, i64>(0))
        };
        match compact().map_err(failed("compacting the database"))? {
            0 => Ok(()),
            _ => Err(IndexError::failed("compacting the database")("the journal is in use by another process")),
        }
    }
}

fn limit(connection: &Connection, tenant: &TenantCollections) -> rusqlite::Result<ErasedDocuments> {
    let select = format!(
        "select count(*) filter (where not removed),
                (select count(*) from chunks where owner in (select id from documents where {TENANT_CONDITION}))
         from documents where {TENANT_CONDITION}"
    );
    let names = params![tenant.collection(), tenant.conversations()];
    let read = |row: &rusqlite::Row<'_>| Ok(ErasedDocuments { documents: row.get(0)?, chunks: row.get(1)? });
    connection.query_row(&select, names, read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Change, Index, Query,
        collections::conversation_collection,
        tests::{for_both_kinds, open, query, replace, texts},
    };
    use nerve_events::documents::Document;
    use std::path::Path;

    /// A word that only the tenant's documents contain.
    const MARKER: &str = "zanzibarqx";

    fn of(collection: &str, change: Change) -> Change {
        let of = |document: Document| Document { collection: collection.to_owned(), ..document };
        match change {
            Change::Replace { document, chunks } => Change::Replace { document: of(document), chunks },
            Change::Remove(document) => Change::Remove(of(document)),
            Change::Confirm(document) => Change::Confirm(of(document)),
        }
    }

    /// Documents of the tenant `acme`, one in a conversation's collection and one deleted, and a document of another
    /// tenant.
    fn documents() -> Vec<Change> {
        let text = format!("words of {MARKER}");
        let own =
            |name: &str, seed| replace(&format!("{MARKER} {name}"), 1, &[(text.as_str(), seed), ("more", seed + 1)]);
        let gone = crate::tests::document(&format!("{MARKER} gone"), 2);
        vec![
            of("acme", own("a", 1)),
            of(&conversation_collection("acme", "ada"), own("b", 3)),
            of("acme", own("gone", 5)),
            of("acme", Change::Remove(gone)),
            of("acme2", replace("kept", 1, &[("words that stay", 7)])),
        ]
    }

    fn found(index: &Index, collection: &str) -> Vec<String> {
        let hits = index.search(&Query { collection: collection.into(), ..query("words", 1) }).unwrap();
        texts(&hits).into_iter().map(str::to_owned).collect()
    }

    /// Files below `folder` that contain the marker.
    fn files_with_marker(folder: &Path) -> Vec<std::path::PathBuf> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                files.extend(files_with_marker(&entry));
            } else {
                let content = std::fs::read(&entry).unwrap();
                files.extend(content.windows(MARKER.len()).any(|part| part == MARKER.as_bytes()).then_some(entry));
            }
        }
        files
    }

    #[test]
    fn erasure_deletes_only_its_tenant() {
        for_both_kinds(|index| {
            index.apply(&documents()).unwrap();
            let acme = TenantCollections::new("acme");
            let for_each_chunk = ErasedDocuments { documents: 2, chunks: 4 };
            assert_eq!(index.count_tenant(&acme).unwrap(), for_each_chunk);
            assert_eq!((found(index, "acme").len(), index.len().unwrap()), (2, 5), "a count changes nothing");
            assert_eq!(index.erase(&TenantCollections::new("acm")).unwrap(), ErasedDocuments::default());
            assert_eq!(index.erase(&acme).unwrap(), for_each_chunk);
            assert_eq!(index.erase(&acme).unwrap(), ErasedDocuments::default(), "there is nothing left");
            assert_eq!((found(index, "acme").len(), index.len().unwrap()), (0, 1));
            assert_eq!(found(index, "acme2"), ["words that stay"]);
            // Later uploads are new, whatever their time, and so are uploads of deleted documents.
            index.apply(&documents()[2..3]).unwrap();
            assert_eq!(found(index, "acme").len(), 2);
        });
    }

    #[test]
    fn erased_tenant_leaves_no_data_in_any_file() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(folder.path());
        index.apply(&documents()).unwrap();
        index.save().unwrap();
        assert!(!files_with_marker(folder.path()).is_empty(), "there is nothing to erase otherwise");
        // tantivy does not store terms as plain text, but segments without deletions have only terms of existing
        // documents.
        let segments = || {
            let words = tantivy::Index::open_in_dir(folder.path().join("words")).unwrap();
            let metas = words.searchable_segment_metas().unwrap();
            let files = std::fs::read_dir(folder.path().join("words")).unwrap().map(|entry| entry.unwrap().path());
            let terms = files.filter(|file| file.extension().is_some_and(|it| it == "term")).count();
            let documents: u32 = metas.iter().map(|meta| meta.num_docs()).sum();
            let deleted: u32 = metas.iter().map(|meta| meta.num_deleted_docs()).sum();
            (documents, deleted, terms == metas.len())
        };
        let graph = || {
            let graphs = std::fs::read_dir(folder.path().join("vectors")).unwrap();
            std::fs::read(graphs.last().unwrap().unwrap().path()).unwrap()
        };
        let before = graph().len();
        index.erase(&TenantCollections::new("acme")).unwrap();
        assert_eq!(files_with_marker(folder.path()), Vec::<std::path::PathBuf>::new());
        assert_eq!(segments(), (1, 0, true));
        assert!(graph().len() < before / 2, "the vectors of what was erased are gone: {} of {before}", graph().len());
        drop(index);
        let reopened = open(folder.path());
        assert_eq!(
            (found(&reopened, "acme").len(), found(&reopened, "acme2")),
            (0, vec!["words that stay".to_owned()])
        );
        reopened.erase(&TenantCollections::new("acme2")).unwrap();
        assert!(reopened.is_empty().unwrap());
        drop(reopened);
        assert!(found(&open(folder.path()), "acme2").is_empty());
    }

    #[test]
    fn next_erasure_completes_an_interrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(folder.path());
        index.apply(&documents()).unwrap();
        drop(index);
        // Interrupted after its transaction.
        let mut store = Store::open(&folder.path().join("chunks.sqlite"), "test", crate::tests::DIMENSIONS).unwrap();
        assert!(store.erase(&TenantCollections::new("acme")).unwrap().1);
        drop(store);
        let index = open(folder.path());
        assert!(!files_with_marker(folder.path()).is_empty());
        assert_eq!(index.erase(&TenantCollections::new("acme")).unwrap(), ErasedDocuments::default());
        assert!(files_with_marker(folder.path()).is_empty());
    }

    #[test]
    fn erasure_does_not_block_other_changes() {
        let folder = tempfile::tempdir().unwrap();
        let index = open(folder.path());
        let many = |from: u64| (from..from + 300).map(|n| replace(&n.to_string(), 1, &[("steady words", n)]));
        index.apply(&many(1).collect::<Vec<_>>()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20 {
                    index.apply(&[of("acme", replace("a", 2 * n, &[("some words", 1)]))]).unwrap();
                    index.erase(&TenantCollections::new("acme")).unwrap();
                }
            });
            for n in 0..10 {
                index.apply(&many(1000 + 300 * n).collect::<Vec<_>>()).unwrap();
                index.save().unwrap();
            }
        });
        let present = |name: &str, seed| {
            let hits = index.search(&query("steady", seed)).unwrap();
            hits.iter().any(|hit| hit.document == name && hit.similarity.is_some_and(|near| near > 0.99))
        };
        assert!(present("7", 7) && present("1000", 1000) && present("3999", 3999));
        assert_eq!(index.len().unwrap(), 3300);
        drop(index);
        let index = open(folder.path());
        let hits = index.search(&query("steady", 2500)).unwrap();
        assert!(hits.iter().any(|hit| hit.document == "2500"), "{hits:?}");
    }
}
