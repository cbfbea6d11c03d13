//! Documents, chunks and vectors in SQLite.

use super::rows::{chunk_change_of, chunk_of, document_of, hit_of, vector_of};
use crate::{
    change::{Change, ChangeResult},
    error::IndexError,
    fusion::Candidate,
    stored::{StoredDocument, same_chunks},
};
use nerve_core::quota::Quotas;
use nerve_events::{
    documents::{Chunk, Document},
    retrieval::Hit,
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::{collections::HashMap, path::Path};

const SCHEMA: &str = "
    pragma journal_mode = wal;
    pragma synchronous = normal;
    pragma foreign_keys = on;
    create table if not exists settings (name text primary key, value text not null) without rowid;
    create table if not exists documents (
        id integer primary key,
        collection text not null, document text not null, name text not null, version text not null,
        uploaded_at integer not null, metadata text not null, removed integer not null default 0,
        digest text not null default '', bytes integer not null default 0,
        unique (collection, document)
    );
    create table if not exists chunks (
        id integer primary key autoincrement,
        owner integer not null references documents (id),
        place integer not null, text text not null, heading text not null,
        first integer not null, past integer not null, vector blob not null
    );
    create index if not exists chunks_of on chunks (owner);
    create table if not exists changes (number integer primary key autoincrement, chunk integer not null, added integer not null);
";

/// The source of truth of the index.
pub(crate) struct Store {
    pub(crate) connection: Connection,
    dimensions: usize,
}

/// Result of a change, and the written document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WrittenChange {
    pub(crate) applied: ChangeResult,
    written: Option<u64>,
}

/// A numbered change of one chunk, for the other indexes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ChunkChange {
    Add { chunk: u64, collection: String, heading: String, text: String, vector: Vec<f32> },
    Remove { chunk: u64 },
}

type Catalog = (HashMap<u64, Document>, HashMap<u64, u64>);

pub(crate) fn failed(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> IndexError {
    IndexError::failed(operation)
}

impl Store {
    pub(crate) fn open(file: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let connection = Connection::open(file).map_err(failed("opening the database"))?;
        connection.execute_batch(SCHEMA).map_err(failed("creating tables"))?;
        upgrade(&connection).map_err(failed("migrating tables"))?;
        connection.set_prepared_statement_cache_capacity(32);
        let store = Self { connection, dimensions };
        store.check_model(model)?;
        Ok(store)
    }

    /// Vectors of different models are not comparable.
    fn check_model(&self, model: &str) -> Result<(), IndexError> {
        let expected = format!("{model}, {} dimensions", self.dimensions);
        let select = "select value from settings where name = 'model'";
        let built_with: Option<String> =
            self.connection.query_row(select, [], |row| row.get(0)).optional().map_err(failed("reading settings"))?;
        match built_with {
            Some(built_with) if built_with != expected => Err(IndexError::Invalid(format!(
                "the index was built with {built_with}, not with {expected}: remove its folder and replay `embed`, or \
                 use the original model"
            ))),
            Some(_) => Ok(()),
            None => {
                let insert = "insert into settings (name, value) values ('model', ?1)";
                self.connection.execute(insert, [expected]).map_err(failed("writing settings"))?;
                Ok(())
            }
        }
    }

    /// Applies changes in one transaction.
    pub(crate) fn apply(&mut self, changes: &[Change], quotas: &Quotas) -> Result<Vec<WrittenChange>, IndexError> {
        let transaction = self.connection.transaction().map_err(failed("starting a transaction"))?;
        let apply = |change| apply(&transaction, change, self.dimensions, quotas);
        let written_changes = changes.iter().map(apply).collect::<Result<_, _>>()?;
        transaction.commit().map_err(failed("committing changes"))?;
        Ok(written_changes)
    }

    /// All documents, and the owner of every chunk.
    pub(crate) fn catalog(&self) -> Result<Catalog, IndexError> {
        self.catalog_where("1")
    }

    /// The same for changed documents only.
    pub(crate) fn catalog_of(&self, written_changes: &[WrittenChange]) -> Result<Catalog, IndexError> {
        let owners: Vec<String> = written_changes
            .iter()
            .filter_map(|written_changes| written_changes.written)
            .map(|owner| owner.to_string())
            .collect();
        self.catalog_where(&format!("documents.id in ({})", owners.join(",")))
    }

    fn catalog_where(&self, condition: &str) -> Result<Catalog, IndexError> {
        let operation = "reading documents";
        let select = format!(
            "select id, collection, document, name, version, uploaded_at, metadata, digest from documents
             where {condition}"
        );
        let mut statement = self.connection.prepare(&select).map_err(failed(operation))?;
        let documents =
            statement.query_map([], |row| Ok((row.get(0)?, document_of(row, 1)?))).map_err(failed(operation))?;
        let documents = documents.collect::<Result<_, _>>().map_err(failed(operation))?;
        let select =
            format!("select chunks.id, owner from chunks join documents on documents.id = owner where {condition}");
        let mut statement = self.connection.prepare(&select).map_err(failed(operation))?;
        let owners = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed(operation))?;
        Ok((documents, owners.collect::<Result<_, _>>().map_err(failed(operation))?))
    }

    /// Number of the last change.
    pub(crate) fn position(&self) -> Result<u64, IndexError> {
        // The sequence of the table also counts pruned changes.
        let select = "select coalesce((select seq from sqlite_sequence where name = 'changes'), 0)";
        self.connection.query_row(select, [], |row| row.get(0)).map_err(failed("reading changes"))
    }

    /// Whether [`Self::for_each_change`] still has all changes after `position`.
    pub(crate) fn has_changes_since(&self, position: u64) -> Result<bool, IndexError> {
        let select = "select coalesce(min(number), 0) from changes";
        let oldest = self.connection.query_row(select, [], |row| row.get(0)).map_err(failed("reading changes"))?;
        Ok(position == self.position()? || (oldest > 0 && position + 1 >= oldest))
    }

    /// Calls `apply` with each change after `position`, in order.
    pub(crate) fn for_each_change(
        &self,
        position: u64,
        apply_change: impl FnMut(ChunkChange) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        self.for_each_row(
            "select changes.chunk, changes.added, collection, heading, text, vector from changes
             left join chunks on chunks.id = changes.chunk left join documents on documents.id = owner
             where number > ?1 order by number",
            position,
            apply_change,
        )
    }

    /// Calls `apply` with an addition for every stored chunk.
    pub(crate) fn for_each_chunk(
        &self,
        apply_change: impl FnMut(ChunkChange) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let select = "select chunks.id, 1, collection, heading, text, vector from chunks
                      join documents on documents.id = owner where chunks.id > ?1 order by chunks.id";
        self.for_each_row(select, 0, apply_change)
    }

    fn for_each_row(
        &self,
        select: &str,
        from: u64,
        mut apply_change: impl FnMut(ChunkChange) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let operation = "reading changes";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(operation))?;
        let mut rows = statement.query([from]).map_err(failed(operation))?;
        while let Some(row) = rows.next().map_err(failed(operation))? {
            let step = chunk_change_of(row).map_err(failed(operation))?;
            apply_change(step)?;
        }
        Ok(())
    }

    /// Prunes changes up to `position`. Returns the removed chunks among them.
    pub(crate) fn prune_changes(&self, position: u64) -> Result<Vec<u64>, IndexError> {
        let operation = "pruning old changes";
        let select = "delete from changes where number <= ?1 returning chunk, added";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(operation))?;
        let rows = statement.query_map([position], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed(operation))?;
        let rows: Vec<(u64, bool)> = rows.collect::<Result<_, _>>().map_err(failed(operation))?;
        Ok(rows.into_iter().filter(|(_, added)| !added).map(|(chunk, _)| chunk).collect())
    }

    /// Reads the chunks in their order; skips those removed concurrently.
    pub(crate) fn hits(&self, found: &[Candidate]) -> Result<Vec<Hit>, IndexError> {
        let operation = "reading chunks";
        let select = "select document, name, metadata, place, text, heading, first, past from chunks
                      join documents on documents.id = owner where chunks.id = ?1";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(operation))?;
        let mut hits = Vec::with_capacity(found.len());
        for found in found {
            let hit = statement.query_row([found.chunk], |row| hit_of(row, found)).optional();
            hits.extend(hit.map_err(failed(operation))?);
        }
        Ok(hits)
    }

    /// Number of documents in a collection, and the size of their text in bytes.
    pub(crate) fn collection_usage(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        usage_without(&self.connection, collection, None).map_err(failed("counting documents"))
    }

    pub(crate) fn len(&self) -> Result<usize, IndexError> {
        let count = self.connection.query_row("select count(*) from chunks", [], |row| row.get(0));
        count.map_err(failed("counting chunks"))
    }
}

/// Adds the columns that an older version of the index lacks.
fn upgrade(connection: &Connection) -> rusqlite::Result<()> {
    let for_each_change = [
        ("digest", "alter table documents add column digest text not null default ''"),
        (
            "bytes",
            "begin; alter table documents add column bytes integer not null default 0;
             update documents set bytes =
                 coalesce((select sum(octet_length(text)) from chunks where owner = documents.id), 0);
             commit",
        ),
    ];
    for (column, step) in for_each_change {
        let select = "select count(*) from pragma_table_info('documents') where name = ?1";
        let columns: u32 = connection.query_row(select, [column], |row| row.get(0))?;
        if columns == 0 {
            connection.execute_batch(step)?;
        }
    }
    // A covering index for quota checks.
    connection.execute_batch("create index if not exists documents_by_size on documents (collection, removed, bytes)")
}

/// Number of documents in a collection, and the size of their text in bytes, without one document.
fn usage_without(connection: &Connection, collection: &str, document: Option<u64>) -> rusqlite::Result<(u64, u64)> {
    let select = "select count(*), coalesce(sum(bytes), 0) from documents
                  where collection = ?1 and removed = 0 and id is not ?2";
    let mut statement = connection.prepare_cached(select)?;
    statement.query_row(params![collection, document], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn apply(
    transaction: &Transaction<'_>,
    change: &Change,
    dimensions: usize,
    quotas: &Quotas,
) -> Result<WrittenChange, IndexError> {
    let operation = "writing a document";
    let (document, chunks) = (change.document(), change.chunks());
    if let Some((_, vector)) = chunks.iter().find(|(_, vector)| vector.len() != dimensions) {
        let why = format!(
            "`{}` has vectors with {} dimensions, but the index has {dimensions}",
            document.document,
            vector.len()
        );
        return Err(IndexError::Invalid(why));
    }
    let stored = stored(transaction, document).map_err(failed(operation))?;
    if let Some((owner, stored)) = &stored {
        let same = stored.row_matches(change)
            && match change {
                Change::Replace { chunks, .. } => {
                    same_chunks(&chunks_of(transaction, *owner).map_err(failed(operation))?, chunks)
                }
                Change::Remove(_) | Change::Confirm(_) => true,
            };
        let stale = stored.is_newer_than(change);
        if same && !stale {
            let update = "update documents set uploaded_at = ?2, digest = ?3 where id = ?1";
            transaction
                .execute(update, params![owner, document.uploaded_at, document.digest])
                .map_err(failed(operation))?;
        }
        if same || stale || matches!(change, Change::Confirm(_)) {
            let count = "select count(*) from chunks where owner = ?1";
            let chunks = transaction.query_row(count, [owner], |row| row.get(0)).map_err(failed(operation))?;
            return Ok(WrittenChange { applied: stored.without_write(change, chunks, same), written: None });
        }
    } else if matches!(change, Change::Confirm(_)) {
        return Ok(WrittenChange { applied: ChangeResult::default(), written: None });
    }
    if change.has_quota(quotas) {
        let own = stored.as_ref().map(|(owner, _)| *owner);
        let beside = usage_without(transaction, &document.collection, own).map_err(failed(operation))?;
        change.check_quota(quotas, beside)?;
    }
    let insert = "insert into documents
                  (collection, document, name, version, uploaded_at, metadata, removed, digest, bytes)
                  values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) on conflict (collection, document) do update set name = ?3,
                  version = ?4, uploaded_at = ?5, metadata = ?6, removed = ?7, digest = ?8, bytes = ?9 returning id";
    let removed = matches!(change, Change::Remove(_));
    let metadata = serde_json::to_string(&document.metadata).map_err(IndexError::failed(operation))?;
    let Document { collection, document: key, name, version, uploaded_at, digest, .. } = document;
    let bytes = i64::try_from(change.text_bytes()).unwrap_or(i64::MAX);
    let values = params![collection, key, name, version, uploaded_at, metadata, removed, digest, bytes];
    let owner = transaction.query_row(insert, values, |row| row.get(0)).map_err(failed(operation))?;
    replace_chunks(transaction, owner, chunks).map_err(failed(operation))?;
    let replaced = stored.is_some_and(|(_, stored)| !stored.removed);
    let applied =
        ChangeResult { chunks: chunks.len(), replaced, latest_upload: *uploaded_at, ..ChangeResult::default() };
    Ok(WrittenChange { applied, written: Some(owner) })
}

/// Row of a document, and its id.
fn stored(transaction: &Transaction<'_>, document: &Document) -> rusqlite::Result<Option<(u64, StoredDocument)>> {
    let select = "select id, uploaded_at, removed, name, version, digest, metadata from documents
                  where collection = ?1 and document = ?2";
    let mut statement = transaction.prepare_cached(select)?;
    let read = |row: &Row<'_>| {
        let metadata: String = row.get(6)?;
        let stored = StoredDocument {
            uploaded_at: row.get(1)?,
            removed: row.get(2)?,
            name: row.get(3)?,
            version: row.get(4)?,
            digest: row.get(5)?,
            metadata: serde_json::from_str(&metadata).unwrap_or_default(),
        };
        Ok((row.get(0)?, stored))
    };
    statement.query_row([&document.collection, &document.document], read).optional()
}

/// Chunks of a document, each with its vector.
fn chunks_of(transaction: &Transaction<'_>, owner: u64) -> rusqlite::Result<Vec<(Chunk, Vec<f32>)>> {
    let select = "select place, text, heading, first, past, vector from chunks where owner = ?1 order by place";
    let mut statement = transaction.prepare_cached(select)?;
    let chunks = statement.query_map([owner], |row| Ok((chunk_of(row, 0)?, vector_of(row, 5)?)))?;
    chunks.collect()
}

fn replace_chunks(transaction: &Transaction<'_>, owner: u64, chunks: &[(Chunk, Vec<f32>)]) -> rusqlite::Result<()> {
    transaction.execute("insert into changes (chunk, added) select id, 0 from chunks where owner = ?1", [owner])?;
    transaction.execute("delete from chunks where owner = ?1", [owner])?;
    let mut insert = transaction.prepare_cached(
        "insert into chunks (owner, place, text, heading, first, past, vector) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut number =
        transaction.prepare_cached("insert into changes (chunk, added) values (last_insert_rowid(), 1)")?;
    for (chunk, vector) in chunks {
        let vector: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        let heading = serde_json::to_string(&chunk.heading).unwrap_or_default();
        insert.execute(params![owner, chunk.index, chunk.text, heading, chunk.start, chunk.end, vector])?;
        number.execute([])?;
    }
    Ok(())
}
