//! Batches of changes, each in one transaction.

use super::{error::failed, tsvector::TsvectorAnalyzer};
use crate::change::{Change, ChangeResult};
use crate::error::IndexError;
use crate::stored::{StoredDocument, same_chunks};
use deadpool_postgres::Transaction;
use nerve_core::quota::Quotas;
use nerve_events::documents::{Chunk, Document};
use pgvector::Vector;
use std::collections::{BTreeSet, HashMap};

/// The operation, for errors.
const OPERATION: &str = "writing documents";

/// Row of a document, locked by this transaction.
#[derive(Debug)]
struct Row {
    id: i64,
    stored: StoredDocument,
}

type Rows<'c> = HashMap<(&'c str, &'c str), Row>;

/// Checks the dimensions of all vectors.
///
/// # Errors
/// [`IndexError::Invalid`] if a vector has other dimensions than the index.
pub(crate) fn check(changes: &[Change], dimensions: usize) -> Result<(), IndexError> {
    for change in changes {
        let Change::Replace { document, chunks } = change else { continue };
        if let Some((_, vector)) = chunks.iter().find(|(_, vector)| vector.len() != dimensions) {
            return Err(IndexError::Invalid(format!(
                "`{}` has vectors with {} dimensions, but the index has {dimensions}",
                document.document,
                vector.len()
            )));
        }
    }
    Ok(())
}

/// Applies changes in order.
pub(crate) async fn apply(
    transaction: &Transaction<'_>,
    changes: &[Change],
    quotas: &Quotas,
) -> Result<Vec<ChangeResult>, IndexError> {
    lock_collections(transaction, changes, quotas).await?;
    let mut rows = lock_documents(transaction, changes).await?;
    let mut analyzer = TsvectorAnalyzer::new();
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        let document = change.document();
        let row = match (rows.get_mut(&key(document)), change) {
            (Some(row), _) => row,
            (None, Change::Confirm(_)) => {
                applied.push(ChangeResult::default());
                continue;
            }
            (None, _) => return Err(IndexError::failed(OPERATION)("a document has no row")),
        };
        let same = row.stored.row_matches(change)
            && match change {
                Change::Replace { chunks, .. } => has_chunks(transaction, row.id, chunks).await?,
                Change::Remove(_) | Change::Confirm(_) => true,
            };
        let stale = row.stored.is_newer_than(change);
        if same || stale || matches!(change, Change::Confirm(_)) {
            let without_write = row.stored.without_write(change, count(transaction, row.id).await?, same);
            applied.push(without_write);
            if same && !stale {
                row.stored.uploaded_at = document.uploaded_at;
                row.stored.digest.clone_from(&document.digest);
                confirm(transaction, row).await?;
            }
            continue;
        }
        if change.has_quota(quotas) {
            change.check_quota(quotas, usage_without(transaction, &document.collection, Some(row.id)).await?)?;
        }
        let (replaced, chunks) = (!row.stored.removed, change.chunks());
        row.stored = StoredDocument::after(change);
        update(transaction, row, change.text_bytes()).await?;
        insert(transaction, row.id, chunks, &mut analyzer).await?;
        let latest_upload = document.uploaded_at;
        applied.push(ChangeResult { chunks: chunks.len(), replaced, latest_upload, ..ChangeResult::default() });
    }
    Ok(applied)
}

/// Locks the collections with a quota until the end of the transaction, in a fixed order.
async fn lock_collections(
    transaction: &Transaction<'_>,
    changes: &[Change],
    quotas: &Quotas,
) -> Result<(), IndexError> {
    let bounded = changes.iter().filter(|change| change.has_quota(quotas));
    let collections: BTreeSet<&str> = bounded.map(|change| change.document().collection.as_str()).collect();
    for collection in collections {
        let lock = "select pg_advisory_xact_lock(hashtextextended($1, 0))";
        let lock = transaction.prepare_cached(lock).await.map_err(failed(OPERATION))?;
        transaction.query(&lock, &[&collection]).await.map_err(failed(OPERATION))?;
    }
    Ok(())
}

/// Number of documents in a collection, and the size of their text in bytes, without one document.
pub(crate) async fn usage_without(
    transaction: &Transaction<'_>,
    collection: &str,
    document: Option<i64>,
) -> Result<(u64, u64), IndexError> {
    let select = "select count(*), coalesce(sum(bytes), 0)::bigint from documents
                  where collection = $1 and not removed and id is distinct from $2";
    let select = transaction.prepare_cached(select).await.map_err(failed(OPERATION))?;
    let row = transaction.query_one(&select, &[&collection, &document]).await.map_err(failed(OPERATION))?;
    let number = |column| row.try_get(column).map(|number: i64| u64::try_from(number).unwrap_or_default());
    Ok((number(0).map_err(failed(OPERATION))?, number(1).map_err(failed(OPERATION))?))
}

fn key(document: &Document) -> (&str, &str) {
    (&document.collection, &document.document)
}

/// Inserts missing rows of changed documents as removed, and locks the rows of all documents in a fixed order, which
/// prevents deadlocks.
async fn lock_documents<'c>(transaction: &Transaction<'_>, changes: &'c [Change]) -> Result<Rows<'c>, IndexError> {
    let sorted = |include: fn(&Change) -> bool| {
        let mut keys: Vec<(&str, &str)> =
            changes.iter().filter(|change| include(change)).map(|change| key(change.document())).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let written = sorted(|change| !matches!(change, Change::Confirm(_)));
    let (collections, documents): (Vec<&str>, Vec<&str>) = written.into_iter().unzip();
    let insert = "insert into documents (collection, document, name, version, uploaded_at, metadata, removed)
                  select collection, document, '', '', $3, '{}', true from unnest($1::text[], $2::text[])
                  with ordinality as given (collection, document, place) order by place on conflict do nothing";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(OPERATION))?;
    transaction.execute(&insert, &[&collections, &documents, &i64::MIN]).await.map_err(failed(OPERATION))?;
    let keys = sorted(|_| true);
    let (collections, documents): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let select = "select place, documents.id, uploaded_at, removed, name, version, digest, metadata from documents
                  join unnest($1::text[], $2::text[]) with ordinality as given (collection, document, place)
                  using (collection, document) order by place for update of documents";
    let select = transaction.prepare_cached(select).await.map_err(failed(OPERATION))?;
    let found = transaction.query(&select, &[&collections, &documents]).await.map_err(failed(OPERATION))?;
    let mut rows = HashMap::with_capacity(keys.len());
    for row in found {
        let (position, row) = row_of(&row).map_err(failed(OPERATION))?;
        let key = usize::try_from(position).ok().and_then(|position| keys.get(position.checked_sub(1)?));
        rows.extend(key.map(|key| (*key, row)));
    }
    Ok(rows)
}

/// Row of a document, and its position in the request.
fn row_of(row: &tokio_postgres::Row) -> Result<(i64, Row), tokio_postgres::Error> {
    let metadata: serde_json::Value = row.try_get(7)?;
    let stored = StoredDocument {
        uploaded_at: row.try_get(2)?,
        removed: row.try_get(3)?,
        name: row.try_get(4)?,
        version: row.try_get(5)?,
        digest: row.try_get(6)?,
        metadata: metadata.as_object().cloned().unwrap_or_default(),
    };
    Ok((row.try_get(0)?, Row { id: row.try_get(1)?, stored }))
}

/// Whether a document has these chunks, as PostgreSQL stores them.
async fn has_chunks(
    transaction: &Transaction<'_>,
    owner: i64,
    chunks: &[(Chunk, Vec<f32>)],
) -> Result<bool, IndexError> {
    let select = "select place, text, heading, first, past, vector from chunks join vectors on chunk = id
                  where chunks.owner = $1 order by place";
    let select = transaction.prepare_cached(select).await.map_err(failed(OPERATION))?;
    let rows = transaction.query(&select, &[&owner]).await.map_err(failed(OPERATION))?;
    let stored: Vec<(Chunk, Vec<f32>)> =
        rows.iter().map(chunk_of).collect::<Result<_, _>>().map_err(failed(OPERATION))?;
    let without_write = |(chunk, vector): &(Chunk, Vec<f32>)| {
        (Chunk { text: storable_text(&chunk.text), ..chunk.clone() }, vector.clone())
    };
    Ok(same_chunks(&stored, &chunks.iter().map(without_write).collect::<Vec<_>>()))
}

fn chunk_of(row: &tokio_postgres::Row) -> Result<(Chunk, Vec<f32>), tokio_postgres::Error> {
    let number = |column| row.try_get(column).map(|number: i64| usize::try_from(number).unwrap_or_default());
    let (heading, vector): (String, Vector) = (row.try_get(2)?, row.try_get(5)?);
    let heading = serde_json::from_str(&heading).unwrap_or_default();
    let chunk = Chunk { index: number(0)?, text: row.try_get(1)?, heading, start: number(3)?, end: number(4)? };
    Ok((chunk, vector.to_vec()))
}

/// Text as PostgreSQL stores it: NUL becomes a space, which preserves offsets.
fn storable_text(text: &str) -> String {
    text.replace('\0', " ")
}

async fn count(transaction: &Transaction<'_>, owner: i64) -> Result<usize, IndexError> {
    let select = "select count(*) from chunks where owner = $1";
    let row = transaction.query_one(select, &[&owner]).await.map_err(failed(OPERATION))?;
    let count: i64 = row.try_get(0).map_err(failed(OPERATION))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Records a later upload of an unchanged document.
async fn confirm(transaction: &Transaction<'_>, row: &Row) -> Result<(), IndexError> {
    let update = "update documents set uploaded_at = $2, digest = $3 where id = $1";
    let update = transaction.prepare_cached(update).await.map_err(failed(OPERATION))?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&row.id, &row.stored.uploaded_at, &row.stored.digest];
    transaction.execute(&update, &values).await.map_err(failed(OPERATION))?;
    Ok(())
}

/// Updates the row of a document and deletes its chunks.
async fn update(transaction: &Transaction<'_>, row: &Row, bytes: u64) -> Result<(), IndexError> {
    let update = "update documents set name = $2, version = $3, uploaded_at = $4, metadata = $5, removed = $6,
                  digest = $7, bytes = $8 where id = $1";
    let update = transaction.prepare_cached(update).await.map_err(failed(OPERATION))?;
    let Row { id, stored: StoredDocument { uploaded_at, removed, name, version, digest, metadata } } = row;
    let metadata = serde_json::to_value(metadata).map_err(IndexError::failed(OPERATION))?;
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [id, name, version, uploaded_at, &metadata, removed, digest, &bytes];
    transaction.execute(&update, &values).await.map_err(failed(OPERATION))?;
    let delete = transaction.prepare_cached("delete from chunks where owner = $1").await.map_err(failed(OPERATION))?;
    transaction.execute(&delete, &[id]).await.map_err(failed(OPERATION))?;
    Ok(())
}

/// Columns of chunks, as arrays for one statement.
#[derive(Default)]
struct Columns {
    positions: Vec<i64>,
    texts: Vec<String>,
    headings: Vec<String>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    words: Vec<String>,
    vectors: Vec<Vector>,
}

impl Columns {
    fn of(chunks: &[(Chunk, Vec<f32>)], analyzer: &mut TsvectorAnalyzer) -> Self {
        let mut columns = Self::default();
        for (chunk, vector) in chunks {
            let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            columns.positions.push(number(chunk.index));
            columns.texts.push(storable_text(&chunk.text));
            columns.headings.push(serde_json::to_string(&chunk.heading).unwrap_or_default());
            columns.starts.push(number(chunk.start));
            columns.ends.push(number(chunk.end));
            columns.words.push(analyzer.tsvector(&chunk.heading.join(" "), &chunk.text));
            columns.vectors.push(Vector::from(vector.clone()));
        }
        columns
    }
}

async fn insert(
    transaction: &Transaction<'_>,
    owner: i64,
    chunks: &[(Chunk, Vec<f32>)],
    analyzer: &mut TsvectorAnalyzer,
) -> Result<(), IndexError> {
    if chunks.is_empty() {
        return Ok(());
    }
    let Columns { positions, texts, headings, starts, ends, words, vectors } = Columns::of(chunks, analyzer);
    let number = "select nextval('chunk_ids') from generate_series(1, $1::bigint)";
    let number = transaction.prepare_cached(number).await.map_err(failed(OPERATION))?;
    let count = i64::try_from(chunks.len()).unwrap_or(i64::MAX);
    let numbers = transaction.query(&number, &[&count]).await.map_err(failed(OPERATION))?;
    let ids: Vec<i64> =
        numbers.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(OPERATION))?;
    let insert = "insert into chunks (id, owner, place, text, heading, first, past, words)
                  select id, $1, place, text, heading, first, past, words::tsvector
                  from unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[])
                  as given (id, place, text, heading, first, past, words)";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(OPERATION))?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [&owner, &ids, &positions, &texts, &headings, &starts, &ends, &words];
    transaction.execute(&insert, &values).await.map_err(failed(OPERATION))?;
    let insert = "insert into vectors (chunk, owner, vector)
                  select chunk, $1, vector from unnest($2::bigint[], $3::vector[]) as given (chunk, vector)";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(OPERATION))?;
    transaction.execute(&insert, &[&owner, &ids, &vectors]).await.map_err(failed(OPERATION))?;
    Ok(())
}
