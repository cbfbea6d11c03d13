//! Changes, a batch in one transaction.

use super::{fault::failed, words::Words};
use crate::change::{Applied, Change};
use crate::document::Document;
use crate::error::IndexError;
use crate::held::{Held, same_chunks};
use deadpool_postgres::Transaction;
use nerve_core::quota::Quotas;
use nerve_text::chunk::Chunk;
use pgvector::Vector;
use std::collections::{BTreeSet, HashMap};

/// What is being done, for errors.
const WHAT: &str = "writing documents";

/// A document's row, which this transaction has locked.
#[derive(Debug)]
struct Row {
    id: i64,
    held: Held,
}

type Rows<'c> = HashMap<(&'c str, &'c str), Row>;

/// Whether the changes fit an index of vectors of `dimensions` numbers.
pub(crate) fn check(changes: &[Change], dimensions: usize) -> Result<(), IndexError> {
    for change in changes {
        let Change::Replace { document, chunks } = change else { continue };
        if let Some((_, vector)) = chunks.iter().find(|(_, vector)| vector.len() != dimensions) {
            return Err(IndexError::Invalid(format!(
                "`{}` has vectors of {} dimensions, and the index {dimensions}",
                document.document,
                vector.len()
            )));
        }
    }
    Ok(())
}

/// Applies changes in their order.
pub(crate) async fn apply(
    transaction: &Transaction<'_>,
    changes: &[Change],
    quotas: &Quotas,
) -> Result<Vec<Applied>, IndexError> {
    lock_collections(transaction, changes, quotas).await?;
    let mut rows = lock(transaction, changes).await?;
    let mut words = Words::new();
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        let document = change.document();
        let row = match (rows.get_mut(&key(document)), change) {
            (Some(row), _) => row,
            (None, Change::Confirm(_)) => {
                applied.push(Applied::default());
                continue;
            }
            (None, _) => return Err(IndexError::failed(WHAT)("a document has no row")),
        };
        let same = row.held.has_row_of(change)
            && match change {
                Change::Replace { chunks, .. } => has_chunks(transaction, row.id, chunks).await?,
                Change::Remove(_) | Change::Confirm(_) => true,
            };
        let stale = row.held.is_newer_than(change);
        if same || stale || matches!(change, Change::Confirm(_)) {
            let kept = row.held.kept(change, count(transaction, row.id).await?, same);
            applied.push(kept);
            if same && !stale {
                row.held.uploaded_at = document.uploaded_at;
                row.held.digest.clone_from(&document.digest);
                confirm(transaction, row).await?;
            }
            continue;
        }
        if change.is_bounded(quotas) {
            change.check_quota(quotas, held_beside(transaction, &document.collection, Some(row.id)).await?)?;
        }
        let (replaced, chunks) = (!row.held.removed, change.chunks());
        row.held = Held::after(change);
        update(transaction, row, change.text_bytes()).await?;
        insert(transaction, row.id, chunks, &mut words).await?;
        let latest_upload = document.uploaded_at;
        applied.push(Applied { chunks: chunks.len(), replaced, latest_upload, ..Applied::default() });
    }
    Ok(applied)
}

/// Keeps other workers from changing the collections that a quota bounds until the end of the transaction, in an order that is the
/// same for every worker.
async fn lock_collections(
    transaction: &Transaction<'_>,
    changes: &[Change],
    quotas: &Quotas,
) -> Result<(), IndexError> {
    let bounded = changes.iter().filter(|change| change.is_bounded(quotas));
    let collections: BTreeSet<&str> = bounded.map(|change| change.document().collection.as_str()).collect();
    for collection in collections {
        let lock = "select pg_advisory_xact_lock(hashtextextended($1, 0))";
        let lock = transaction.prepare_cached(lock).await.map_err(failed(WHAT))?;
        transaction.query(&lock, &[&collection]).await.map_err(failed(WHAT))?;
    }
    Ok(())
}

/// How many documents a collection has, and how many bytes their text has, besides one of them.
pub(crate) async fn held_beside(
    transaction: &Transaction<'_>,
    collection: &str,
    document: Option<i64>,
) -> Result<(u64, u64), IndexError> {
    let select = "select count(*), coalesce(sum(bytes), 0)::bigint from documents
                  where collection = $1 and not removed and id is distinct from $2";
    let select = transaction.prepare_cached(select).await.map_err(failed(WHAT))?;
    let row = transaction.query_one(&select, &[&collection, &document]).await.map_err(failed(WHAT))?;
    let number = |column| row.try_get(column).map(|number: i64| u64::try_from(number).unwrap_or_default());
    Ok((number(0).map_err(failed(WHAT))?, number(1).map_err(failed(WHAT))?))
}

fn key(document: &Document) -> (&str, &str) {
    (&document.collection, &document.document)
}

/// Makes the rows of documents that have none yet and are changed, as if they had been removed before any upload, and
/// locks the rows of all documents, in an order that is the same for every worker, so that none waits for another in a
/// circle.
async fn lock<'c>(transaction: &Transaction<'_>, changes: &'c [Change]) -> Result<Rows<'c>, IndexError> {
    let sorted = |wanted: fn(&Change) -> bool| {
        let mut keys: Vec<(&str, &str)> =
            changes.iter().filter(|change| wanted(change)).map(|change| key(change.document())).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let written = sorted(|change| !matches!(change, Change::Confirm(_)));
    let (collections, documents): (Vec<&str>, Vec<&str>) = written.into_iter().unzip();
    let insert = "insert into documents (collection, document, name, version, uploaded_at, metadata, removed)
                  select collection, document, '', '', $3, '{}', true from unnest($1::text[], $2::text[])
                  with ordinality as given (collection, document, place) order by place on conflict do nothing";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(WHAT))?;
    transaction.execute(&insert, &[&collections, &documents, &i64::MIN]).await.map_err(failed(WHAT))?;
    let keys = sorted(|_| true);
    let (collections, documents): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let select = "select place, documents.id, uploaded_at, removed, name, version, digest, metadata from documents
                  join unnest($1::text[], $2::text[]) with ordinality as given (collection, document, place)
                  using (collection, document) order by place for update of documents";
    let select = transaction.prepare_cached(select).await.map_err(failed(WHAT))?;
    let found = transaction.query(&select, &[&collections, &documents]).await.map_err(failed(WHAT))?;
    let mut rows = HashMap::with_capacity(keys.len());
    for row in found {
        let (place, row) = row_of(&row).map_err(failed(WHAT))?;
        let key = usize::try_from(place).ok().and_then(|place| keys.get(place.checked_sub(1)?));
        rows.extend(key.map(|key| (*key, row)));
    }
    Ok(rows)
}

/// A document's row, and its place among those that were asked for.
fn row_of(row: &tokio_postgres::Row) -> Result<(i64, Row), tokio_postgres::Error> {
    let metadata: serde_json::Value = row.try_get(7)?;
    let held = Held {
        uploaded_at: row.try_get(2)?,
        removed: row.try_get(3)?,
        name: row.try_get(4)?,
        version: row.try_get(5)?,
        digest: row.try_get(6)?,
        metadata: metadata.as_object().cloned().unwrap_or_default(),
    };
    Ok((row.try_get(0)?, Row { id: row.try_get(1)?, held }))
}

/// Whether a document has these chunks, as far as PostgreSQL can hold them.
async fn has_chunks(
    transaction: &Transaction<'_>,
    owner: i64,
    chunks: &[(Chunk, Vec<f32>)],
) -> Result<bool, IndexError> {
    let select = "select place, text, heading, first, past, vector from chunks join vectors on chunk = id
                  where chunks.owner = $1 order by place";
    let select = transaction.prepare_cached(select).await.map_err(failed(WHAT))?;
    let rows = transaction.query(&select, &[&owner]).await.map_err(failed(WHAT))?;
    let held: Vec<(Chunk, Vec<f32>)> = rows.iter().map(chunk_of).collect::<Result<_, _>>().map_err(failed(WHAT))?;
    let kept =
        |(chunk, vector): &(Chunk, Vec<f32>)| (Chunk { text: kept_text(&chunk.text), ..chunk.clone() }, vector.clone());
    Ok(same_chunks(&held, &chunks.iter().map(kept).collect::<Vec<_>>()))
}

fn chunk_of(row: &tokio_postgres::Row) -> Result<(Chunk, Vec<f32>), tokio_postgres::Error> {
    let number = |column| row.try_get(column).map(|number: i64| usize::try_from(number).unwrap_or_default());
    let (heading, vector): (String, Vector) = (row.try_get(2)?, row.try_get(5)?);
    let heading = serde_json::from_str(&heading).unwrap_or_default();
    let chunk = Chunk { index: number(0)?, text: row.try_get(1)?, heading, start: number(3)?, end: number(4)? };
    Ok((chunk, vector.to_vec()))
}

/// The text as PostgreSQL holds it: without the one character that it cannot hold; a space keeps every offset.
fn kept_text(text: &str) -> String {
    text.replace('\0', " ")
}

async fn count(transaction: &Transaction<'_>, owner: i64) -> Result<usize, IndexError> {
    let select = "select count(*) from chunks where owner = $1";
    let row = transaction.query_one(select, &[&owner]).await.map_err(failed(WHAT))?;
    let count: i64 = row.try_get(0).map_err(failed(WHAT))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Writes that a document is as it was at a later upload.
async fn confirm(transaction: &Transaction<'_>, row: &Row) -> Result<(), IndexError> {
    let update = "update documents set uploaded_at = $2, digest = $3 where id = $1";
    let update = transaction.prepare_cached(update).await.map_err(failed(WHAT))?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&row.id, &row.held.uploaded_at, &row.held.digest];
    transaction.execute(&update, &values).await.map_err(failed(WHAT))?;
    Ok(())
}

/// Writes what a document is now, and takes its chunks away.
async fn update(transaction: &Transaction<'_>, row: &Row, bytes: u64) -> Result<(), IndexError> {
    let update = "update documents set name = $2, version = $3, uploaded_at = $4, metadata = $5, removed = $6,
                  digest = $7, bytes = $8 where id = $1";
    let update = transaction.prepare_cached(update).await.map_err(failed(WHAT))?;
    let Row { id, held: Held { uploaded_at, removed, name, version, digest, metadata } } = row;
    let metadata = serde_json::to_value(metadata).map_err(IndexError::failed(WHAT))?;
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [id, name, version, uploaded_at, &metadata, removed, digest, &bytes];
    transaction.execute(&update, &values).await.map_err(failed(WHAT))?;
    let delete = transaction.prepare_cached("delete from chunks where owner = $1").await.map_err(failed(WHAT))?;
    transaction.execute(&delete, &[id]).await.map_err(failed(WHAT))?;
    Ok(())
}

/// The columns of chunks, as arrays that travel as one statement.
#[derive(Default)]
struct Columns {
    places: Vec<i64>,
    texts: Vec<String>,
    headings: Vec<String>,
    firsts: Vec<i64>,
    pasts: Vec<i64>,
    words: Vec<String>,
    vectors: Vec<Vector>,
}

impl Columns {
    fn of(chunks: &[(Chunk, Vec<f32>)], words: &mut Words) -> Self {
        let mut columns = Self::default();
        for (chunk, vector) in chunks {
            let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            columns.places.push(number(chunk.index));
            columns.texts.push(kept_text(&chunk.text));
            columns.headings.push(serde_json::to_string(&chunk.heading).unwrap_or_default());
            columns.firsts.push(number(chunk.start));
            columns.pasts.push(number(chunk.end));
            columns.words.push(words.vector(&chunk.heading.join(" "), &chunk.text));
            columns.vectors.push(Vector::from(vector.clone()));
        }
        columns
    }
}

async fn insert(
    transaction: &Transaction<'_>,
    owner: i64,
    chunks: &[(Chunk, Vec<f32>)],
    words: &mut Words,
) -> Result<(), IndexError> {
    if chunks.is_empty() {
        return Ok(());
    }
    let Columns { places, texts, headings, firsts, pasts, words, vectors } = Columns::of(chunks, words);
    let number = "select nextval('chunk_ids') from generate_series(1, $1::bigint)";
    let number = transaction.prepare_cached(number).await.map_err(failed(WHAT))?;
    let count = i64::try_from(chunks.len()).unwrap_or(i64::MAX);
    let numbers = transaction.query(&number, &[&count]).await.map_err(failed(WHAT))?;
    let ids: Vec<i64> = numbers.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(WHAT))?;
    let insert = "insert into chunks (id, owner, place, text, heading, first, past, words)
                  select id, $1, place, text, heading, first, past, words::tsvector
                  from unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[])
                  as given (id, place, text, heading, first, past, words)";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(WHAT))?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [&owner, &ids, &places, &texts, &headings, &firsts, &pasts, &words];
    transaction.execute(&insert, &values).await.map_err(failed(WHAT))?;
    let insert = "insert into vectors (chunk, owner, vector)
                  select chunk, $1, vector from unnest($2::bigint[], $3::vector[]) as given (chunk, vector)";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(WHAT))?;
    transaction.execute(&insert, &[&owner, &ids, &vectors]).await.map_err(failed(WHAT))?;
    Ok(())
}
