//! Documents, chunks and vectors in SQLite.

use crate::{
    change::{Applied, Change},
    document::Document,
    error::IndexError,
    fusion::Found,
    held::{Held, same_chunks},
    query::Hit,
};
use nerve_core::quota::Quotas;
use nerve_text::chunk::Chunk;
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

/// The truth of the index.
pub(crate) struct Store {
    pub(crate) connection: Connection,
    dimensions: usize,
}

/// What came of a change, and which document was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) applied: Applied,
    written: Option<u64>,
}

/// A numbered change of one chunk, for those who follow.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Add { chunk: u64, collection: String, heading: String, text: String, vector: Vec<f32> },
    Remove { chunk: u64 },
}

type Catalogue = (HashMap<u64, Document>, HashMap<u64, u64>);

pub(crate) fn failed(what: &'static str) -> impl FnOnce(rusqlite::Error) -> IndexError {
    IndexError::failed(what)
}

impl Store {
    pub(crate) fn open(file: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let connection = Connection::open(file).map_err(failed("opening its database"))?;
        connection.execute_batch(SCHEMA).map_err(failed("making its tables"))?;
        upgrade(&connection).map_err(failed("bringing its tables up to date"))?;
        connection.set_prepared_statement_cache_capacity(32);
        let store = Self { connection, dimensions };
        store.is_for(model)?;
        Ok(store)
    }

    /// Vectors of two models have nothing to do with each other.
    fn is_for(&self, model: &str) -> Result<(), IndexError> {
        let wanted = format!("{model}, {} dimensions", self.dimensions);
        let select = "select value from settings where name = 'model'";
        let made: Option<String> = self
            .connection
            .query_row(select, [], |row| row.get(0))
            .optional()
            .map_err(failed("reading its settings"))?;
        match made {
            Some(made) if made != wanted => Err(IndexError::Invalid(format!(
                "the index was made with {made}, not with {wanted}: remove its folder and replay `embed`, or \
                 use the model it was made with"
            ))),
            Some(_) => Ok(()),
            None => {
                let insert = "insert into settings (name, value) values ('model', ?1)";
                self.connection.execute(insert, [wanted]).map_err(failed("writing its settings"))?;
                Ok(())
            }
        }
    }

    /// Applies changes in one transaction.
    pub(crate) fn apply(&mut self, changes: &[Change], quotas: &Quotas) -> Result<Vec<Made>, IndexError> {
        let transaction = self.connection.transaction().map_err(failed("beginning a change"))?;
        let apply = |change| apply(&transaction, change, self.dimensions, quotas);
        let made = changes.iter().map(apply).collect::<Result<_, _>>()?;
        transaction.commit().map_err(failed("writing a change"))?;
        Ok(made)
    }

    /// Every document, and the owner of every chunk.
    pub(crate) fn catalogue(&self) -> Result<Catalogue, IndexError> {
        self.catalogue_where("1")
    }

    /// The same of the documents that were changed.
    pub(crate) fn catalogue_since(&self, made: &[Made]) -> Result<Catalogue, IndexError> {
        let owners: Vec<String> = made.iter().filter_map(|made| made.written).map(|owner| owner.to_string()).collect();
        self.catalogue_where(&format!("documents.id in ({})", owners.join(",")))
    }

    fn catalogue_where(&self, condition: &str) -> Result<Catalogue, IndexError> {
        let what = "reading its documents";
        let select = format!(
            "select id, collection, document, name, version, uploaded_at, metadata, digest from documents
             where {condition}"
        );
        let mut statement = self.connection.prepare(&select).map_err(failed(what))?;
        let documents = statement.query_map([], |row| Ok((row.get(0)?, document_of(row, 1)?))).map_err(failed(what))?;
        let documents = documents.collect::<Result<_, _>>().map_err(failed(what))?;
        let select =
            format!("select chunks.id, owner from chunks join documents on documents.id = owner where {condition}");
        let mut statement = self.connection.prepare(&select).map_err(failed(what))?;
        let owners = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed(what))?;
        Ok((documents, owners.collect::<Result<_, _>>().map_err(failed(what))?))
    }

    /// The number of the last change.
    pub(crate) fn position(&self) -> Result<u64, IndexError> {
        // What was forgotten counts too, so the table's own count it is.
        let select = "select coalesce((select seq from sqlite_sequence where name = 'changes'), 0)";
        self.connection.query_row(select, [], |row| row.get(0)).map_err(failed("reading its changes"))
    }

    /// Whether whoever has got to `position` can go on from there by [`Self::steps`].
    pub(crate) fn remembers(&self, position: u64) -> Result<bool, IndexError> {
        let select = "select coalesce(min(number), 0) from changes";
        let oldest = self.connection.query_row(select, [], |row| row.get(0)).map_err(failed("reading its changes"))?;
        Ok(position == self.position()? || (oldest > 0 && position + 1 >= oldest))
    }

    /// Calls `take` with each change after `position`, in order.
    pub(crate) fn steps(
        &self,
        position: u64,
        take: impl FnMut(Step) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        self.each(
            "select changes.chunk, changes.added, collection, heading, text, vector from changes
             left join chunks on chunks.id = changes.chunk left join documents on documents.id = owner
             where number > ?1 order by number",
            position,
            take,
        )
    }

    /// Calls `take` with an addition for every chunk that is there.
    pub(crate) fn all(&self, take: impl FnMut(Step) -> Result<(), IndexError>) -> Result<(), IndexError> {
        let select = "select chunks.id, 1, collection, heading, text, vector from chunks
                      join documents on documents.id = owner where chunks.id > ?1 order by chunks.id";
        self.each(select, 0, take)
    }

    fn each(
        &self,
        select: &str,
        from: u64,
        mut take: impl FnMut(Step) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let what = "reading its changes";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(what))?;
        let mut rows = statement.query([from]).map_err(failed(what))?;
        while let Some(row) = rows.next().map_err(failed(what))? {
            let step = step_of(row).map_err(failed(what))?;
            take(step)?;
        }
        Ok(())
    }

    /// Forgets changes up to `position`; returns the chunks that are gone for good.
    pub(crate) fn forget_before(&self, position: u64) -> Result<Vec<u64>, IndexError> {
        let what = "forgetting old changes";
        let select = "delete from changes where number <= ?1 returning chunk, added";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(what))?;
        let rows = statement.query_map([position], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed(what))?;
        let rows: Vec<(u64, bool)> = rows.collect::<Result<_, _>>().map_err(failed(what))?;
        Ok(rows.into_iter().filter(|(_, added)| !added).map(|(chunk, _)| chunk).collect())
    }

    /// The chunks that were found, in their order; one that has gone meanwhile is left out.
    pub(crate) fn hits(&self, found: &[Found]) -> Result<Vec<Hit>, IndexError> {
        let what = "reading chunks";
        let select = "select document, name, metadata, place, text, heading, first, past from chunks
                      join documents on documents.id = owner where chunks.id = ?1";
        let mut statement = self.connection.prepare_cached(select).map_err(failed(what))?;
        let mut hits = Vec::with_capacity(found.len());
        for found in found {
            let hit = statement.query_row([found.chunk], |row| hit_of(row, found)).optional();
            hits.extend(hit.map_err(failed(what))?);
        }
        Ok(hits)
    }

    /// How many documents a collection has, and how many bytes their text has.
    pub(crate) fn held_of(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        held_beside(&self.connection, collection, None).map_err(failed("counting documents"))
    }

    pub(crate) fn len(&self) -> Result<usize, IndexError> {
        let count = self.connection.query_row("select count(*) from chunks", [], |row| row.get(0));
        count.map_err(failed("counting chunks"))
    }
}

/// Adds the columns that an index of an earlier version does not have.
fn upgrade(connection: &Connection) -> rusqlite::Result<()> {
    let steps = [
        ("digest", "alter table documents add column digest text not null default ''"),
        (
            "bytes",
            "begin; alter table documents add column bytes integer not null default 0;
             update documents set bytes =
                 coalesce((select sum(octet_length(text)) from chunks where owner = documents.id), 0);
             commit",
        ),
    ];
    for (column, step) in steps {
        let select = "select count(*) from pragma_table_info('documents') where name = ?1";
        let columns: u32 = connection.query_row(select, [column], |row| row.get(0))?;
        if columns == 0 {
            connection.execute_batch(step)?;
        }
    }
    // What is counted for a quota is in the index alone.
    connection.execute_batch("create index if not exists documents_by_size on documents (collection, removed, bytes)")
}

/// How many documents a collection has, and how many bytes their text has, besides one of them.
fn held_beside(connection: &Connection, collection: &str, document: Option<u64>) -> rusqlite::Result<(u64, u64)> {
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
) -> Result<Made, IndexError> {
    let what = "writing a document";
    let (document, chunks) = (change.document(), change.chunks());
    if let Some((_, vector)) = chunks.iter().find(|(_, vector)| vector.len() != dimensions) {
        let why =
            format!("`{}` has vectors of {} dimensions, and the index {dimensions}", document.document, vector.len());
        return Err(IndexError::Invalid(why));
    }
    let held = held(transaction, document).map_err(failed(what))?;
    if let Some((owner, held)) = &held {
        let same = held.has_row_of(change)
            && match change {
                Change::Replace { chunks, .. } => {
                    same_chunks(&chunks_of(transaction, *owner).map_err(failed(what))?, chunks)
                }
                Change::Remove(_) | Change::Confirm(_) => true,
            };
        let stale = held.is_newer_than(change);
        if same && !stale {
            let update = "update documents set uploaded_at = ?2, digest = ?3 where id = ?1";
            transaction.execute(update, params![owner, document.uploaded_at, document.digest]).map_err(failed(what))?;
        }
        if same || stale || matches!(change, Change::Confirm(_)) {
            let count = "select count(*) from chunks where owner = ?1";
            let chunks = transaction.query_row(count, [owner], |row| row.get(0)).map_err(failed(what))?;
            return Ok(Made { applied: held.kept(change, chunks, same), written: None });
        }
    } else if matches!(change, Change::Confirm(_)) {
        return Ok(Made { applied: Applied::default(), written: None });
    }
    if change.is_bounded(quotas) {
        let own = held.as_ref().map(|(owner, _)| *owner);
        let beside = held_beside(transaction, &document.collection, own).map_err(failed(what))?;
        change.check_quota(quotas, beside)?;
    }
    let insert = "insert into documents
                  (collection, document, name, version, uploaded_at, metadata, removed, digest, bytes)
                  values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) on conflict (collection, document) do update set name = ?3,
                  version = ?4, uploaded_at = ?5, metadata = ?6, removed = ?7, digest = ?8, bytes = ?9 returning id";
    let removed = matches!(change, Change::Remove(_));
    let metadata = serde_json::to_string(&document.metadata).map_err(IndexError::failed(what))?;
    let Document { collection, document: key, name, version, uploaded_at, digest, .. } = document;
    let bytes = i64::try_from(change.text_bytes()).unwrap_or(i64::MAX);
    let values = params![collection, key, name, version, uploaded_at, metadata, removed, digest, bytes];
    let owner = transaction.query_row(insert, values, |row| row.get(0)).map_err(failed(what))?;
    replace_chunks(transaction, owner, chunks).map_err(failed(what))?;
    let replaced = held.is_some_and(|(_, held)| !held.removed);
    let applied = Applied { chunks: chunks.len(), replaced, latest_upload: *uploaded_at, ..Applied::default() };
    Ok(Made { applied, written: Some(owner) })
}

/// The row of a document, and its number.
fn held(transaction: &Transaction<'_>, document: &Document) -> rusqlite::Result<Option<(u64, Held)>> {
    let select = "select id, uploaded_at, removed, name, version, digest, metadata from documents
                  where collection = ?1 and document = ?2";
    let mut statement = transaction.prepare_cached(select)?;
    let read = |row: &Row<'_>| {
        let metadata: String = row.get(6)?;
        let held = Held {
            uploaded_at: row.get(1)?,
            removed: row.get(2)?,
            name: row.get(3)?,
            version: row.get(4)?,
            digest: row.get(5)?,
            metadata: serde_json::from_str(&metadata).unwrap_or_default(),
        };
        Ok((row.get(0)?, held))
    };
    statement.query_row([&document.collection, &document.document], read).optional()
}

/// The chunks of a document, each with its vector.
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

fn document_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Document> {
    let metadata: String = row.get(first + 5)?;
    Ok(Document {
        collection: row.get(first)?,
        document: row.get(first + 1)?,
        name: row.get(first + 2)?,
        version: row.get(first + 3)?,
        uploaded_at: row.get(first + 4)?,
        metadata: serde_json::from_str(&metadata).unwrap_or_default(),
        digest: row.get(first + 6)?,
    })
}

fn step_of(row: &Row<'_>) -> rusqlite::Result<Step> {
    let chunk = row.get(0)?;
    let text: Option<String> = row.get(4)?;
    // A chunk that was added and has gone since has no row any more: its removal comes later.
    let (true, Some(text)) = (row.get::<_, bool>(1)?, text) else { return Ok(Step::Remove { chunk }) };
    let heading: Vec<String> = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
    let vector = vector_of(row, 5)?;
    Ok(Step::Add { chunk, collection: row.get(2)?, heading: heading.join(" "), text, vector })
}

fn vector_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<f32>> {
    let vector: Vec<u8> = row.get(column)?;
    Ok(vector.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect())
}

/// The chunk whose columns begin with its place.
fn chunk_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Chunk> {
    let heading: String = row.get(first + 2)?;
    Ok(Chunk {
        index: row.get(first)?,
        text: row.get(first + 1)?,
        heading: serde_json::from_str(&heading).unwrap_or_default(),
        start: row.get(first + 3)?,
        end: row.get(first + 4)?,
    })
}

fn hit_of(row: &Row<'_>, found: &Found) -> rusqlite::Result<Hit> {
    let metadata: String = row.get(2)?;
    Ok(Hit {
        id: found.chunk.to_string(),
        document: row.get(0)?,
        name: row.get(1)?,
        metadata: serde_json::from_str(&metadata).unwrap_or_default(),
        chunk: chunk_of(row, 3)?,
        score: found.score,
        bm25: found.bm25,
        similarity: found.similarity,
        lexical_rank: found.lexical_rank,
        dense_rank: found.dense_rank,
    })
}
