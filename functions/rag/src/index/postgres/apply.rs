//! Changes, a batch in one transaction.

use super::super::{Applied, Change, IndexError};
use super::{fault::failed, words::Words};
use crate::{chunk::Chunk, document::Document};
use deadpool_postgres::Transaction;
use pgvector::Vector;
use std::collections::HashMap;

/// What is being done, for errors.
const WHAT: &str = "writing documents";

/// A document's row, which this transaction has locked.
#[derive(Debug, Clone, Copy)]
struct Row {
    id: i64,
    uploaded_at: i64,
    removed: bool,
}

type Rows<'c> = HashMap<(&'c str, &'c str), Row>;

/// Whether the changes fit an index of vectors of `dimensions` numbers.
pub(super) fn check(changes: &[Change], dimensions: usize) -> Result<(), IndexError> {
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
pub(super) async fn apply(transaction: &Transaction<'_>, changes: &[Change]) -> Result<Vec<Applied>, IndexError> {
    let mut rows = lock(transaction, changes).await?;
    let mut words = Words::new();
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        let (document, chunks): (&Document, &[(Chunk, Vec<f32>)]) = match change {
            Change::Replace { document, chunks } => (document, chunks),
            Change::Remove(document) => (document, &[]),
        };
        let row = rows.get_mut(&key(document)).ok_or_else(|| IndexError::failed(WHAT)("a document has no row"))?;
        let replaced = !row.removed;
        if row.uploaded_at > document.uploaded_at {
            let chunks = count(transaction, row.id).await?;
            applied.push(Applied { chunks, replaced, stale: true });
            continue;
        }
        let removed = matches!(change, Change::Remove(_));
        *row = Row { uploaded_at: document.uploaded_at, removed, ..*row };
        update(transaction, *row, document).await?;
        insert(transaction, row.id, chunks, &mut words).await?;
        applied.push(Applied { chunks: chunks.len(), replaced, stale: false });
    }
    Ok(applied)
}

fn key(document: &Document) -> (&str, &str) {
    (&document.collection, &document.document)
}

/// Makes the rows of documents that have none yet, as if they had been removed before any upload, and locks all of
/// them, in an order that is the same for every worker, so that none waits for another in a circle.
async fn lock<'c>(transaction: &Transaction<'_>, changes: &'c [Change]) -> Result<Rows<'c>, IndexError> {
    let documents = changes.iter().map(|change| match change {
        Change::Replace { document, .. } | Change::Remove(document) => document,
    });
    let mut keys: Vec<(&str, &str)> = documents.map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let (collections, documents): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let insert = "insert into documents (collection, document, name, version, uploaded_at, metadata, removed)
                  select collection, document, '', '', $3, '{}', true from unnest($1::text[], $2::text[])
                  with ordinality as given (collection, document, place) order by place on conflict do nothing";
    let insert = transaction.prepare_cached(insert).await.map_err(failed(WHAT))?;
    transaction.execute(&insert, &[&collections, &documents, &i64::MIN]).await.map_err(failed(WHAT))?;
    let select = "select place, documents.id, uploaded_at, removed from documents
                  join unnest($1::text[], $2::text[]) with ordinality as given (collection, document, place)
                  using (collection, document) order by place for update of documents";
    let select = transaction.prepare_cached(select).await.map_err(failed(WHAT))?;
    let found = transaction.query(&select, &[&collections, &documents]).await.map_err(failed(WHAT))?;
    let mut rows = HashMap::with_capacity(keys.len());
    for row in found {
        let place: i64 = row.try_get(0).map_err(failed(WHAT))?;
        let (id, uploaded_at) = (row.try_get(1).map_err(failed(WHAT))?, row.try_get(2).map_err(failed(WHAT))?);
        let row = Row { id, uploaded_at, removed: row.try_get(3).map_err(failed(WHAT))? };
        let key = usize::try_from(place).ok().and_then(|place| keys.get(place.checked_sub(1)?));
        rows.extend(key.map(|key| (*key, row)));
    }
    Ok(rows)
}

async fn count(transaction: &Transaction<'_>, owner: i64) -> Result<usize, IndexError> {
    let select = "select count(*) from chunks where owner = $1";
    let row = transaction.query_one(select, &[&owner]).await.map_err(failed(WHAT))?;
    let count: i64 = row.try_get(0).map_err(failed(WHAT))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Writes what a document is now, and takes its chunks away.
async fn update(transaction: &Transaction<'_>, row: Row, document: &Document) -> Result<(), IndexError> {
    let update = "update documents set name = $2, version = $3, uploaded_at = $4, metadata = $5, removed = $6
                  where id = $1";
    let update = transaction.prepare_cached(update).await.map_err(failed(WHAT))?;
    let metadata = serde_json::to_value(&document.metadata).map_err(IndexError::failed(WHAT))?;
    let Document { name, version, uploaded_at, .. } = document;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&row.id, name, version, uploaded_at, &metadata, &row.removed];
    transaction.execute(&update, &values).await.map_err(failed(WHAT))?;
    let delete = transaction.prepare_cached("delete from chunks where owner = $1").await.map_err(failed(WHAT))?;
    transaction.execute(&delete, &[&row.id]).await.map_err(failed(WHAT))?;
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
            // The one character that PostgreSQL's text cannot hold; a space keeps every offset.
            columns.texts.push(chunk.text.replace('\0', " "));
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
