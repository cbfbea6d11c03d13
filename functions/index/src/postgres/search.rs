//! Candidates by words and by meaning, and the chunks that come of them.

use super::{
    fault::failed,
    words::{self, Words},
};
use crate::{
    error::IndexError,
    fusion::{Found, fuse},
    query::{Hit, Query},
};
use deadpool_postgres::Transaction;
use nerve_text::chunk::Chunk;
use pgvector::Vector;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use tokio_postgres::types::ToSql;

/// Chunks that a walk through the graph of vectors looks for, one after the other until a collection and a filter have
/// let enough through; what comes after the last is every chunk that they let through. 1000 is the most that pgvector does.
const WALKS: [usize; 2] = [200, 1000];
/// What words are worth where they stand: `ts_rank`'s weights of the labels D, C, B and A, which headings have. A word
/// in a heading says half as much again, as in the embedded index.
const WORTH: &str = "'{0.667, 0.667, 0.667, 1}'";
/// The share of chunks that have a word, from which on it is common.
const COMMON: f32 = 0.05;
/// The most values of a filter's key that are looked up in the index of metadata, before they are compared.
const LOOKED_UP: usize = 16;

type Parameter = Box<dyn ToSql + Sync + Send>;

/// The best chunks, the best first.
pub(crate) async fn search(
    transaction: &Transaction<'_>,
    query: &Query,
    scans_on: bool,
) -> Result<Vec<Hit>, IndexError> {
    let within = Within::of(query);
    let by_words = by_words(transaction, query, &within).await?;
    let by_meaning = by_meaning(transaction, query, &within, scans_on).await?;
    let mut best = fuse(&by_words, &by_meaning, query.weights);
    best.truncate(query.limit);
    hits(transaction, &best, &query.vector).await
}

/// Which documents count: those of the collection that have what the filter asks for.
struct Within {
    /// On `documents`, with parameters from `$2` on.
    condition: String,
    values: Vec<Parameter>,
}

impl Within {
    fn of(query: &Query) -> Self {
        let mut within = Self { condition: String::new(), values: Vec::new() };
        let collection = within.value(query.collection.clone());
        within.condition = format!("collection = {collection}::text");
        for (key, wanted) in &query.filter {
            let any = match wanted {
                Value::Array(any) => any.clone(),
                one => vec![one.clone()],
            };
            within.narrow(key, any);
        }
        within
    }

    /// One of these values, or an array with one of them.
    fn narrow(&mut self, key: &str, any: Vec<Value>) {
        // Containment has an index, but lets through more than what is equal.
        if any.len() <= LOOKED_UP {
            let contained = any.iter().flat_map(|one| [json!({key: one}), json!({key: [one]})]);
            let contained: Vec<String> =
                contained.map(|value| format!("metadata @> {}::jsonb", self.value(value))).collect();
            let contained = if contained.is_empty() { "false".to_owned() } else { contained.join(" or ") };
            self.condition.push_str(&format!(" and ({contained})"));
        }
        let (key, any) = (self.value(key.to_owned()), self.value(any));
        self.condition.push_str(&format!(
            " and metadata ? {key}::text and exists (
                select from jsonb_array_elements(case jsonb_typeof(metadata -> {key}::text) when 'array'
                    then metadata -> {key}::text else jsonb_build_array(metadata -> {key}::text) end) as has (one)
                where one = any ({any}::jsonb[]))"
        ));
    }

    /// Its place among the parameters.
    fn value(&mut self, value: impl ToSql + Sync + Send + 'static) -> String {
        self.values.push(Box::new(value));
        format!("${}", self.values.len() + 1)
    }

    /// Chunks and their values, for what is searched for as `$1`.
    async fn ranked(
        &self,
        transaction: &Transaction<'_>,
        select: &str,
        searched: &(dyn ToSql + Sync),
        what: &'static str,
    ) -> Result<Vec<(u64, f32)>, IndexError> {
        let values = self.values.iter().map(|value| -> &(dyn ToSql + Sync) { value.as_ref() });
        let values: Vec<&(dyn ToSql + Sync)> = std::iter::once(searched).chain(values).collect();
        // There are too many ways to ask for a connection to keep a statement for each.
        let rows = transaction.query(select, &values).await.map_err(failed(what))?;
        let ranked = rows.iter().map(|row| Ok((row.try_get::<_, i64>(0)?.cast_unsigned(), row.try_get(1)?)));
        ranked.collect::<Result<_, _>>().map_err(failed(what))
    }
}

/// The chunks that say what the question does, the best first.
async fn by_words(
    transaction: &Transaction<'_>,
    query: &Query,
    within: &Within,
) -> Result<Vec<(u64, f32)>, IndexError> {
    let mut words = Words::new().query(&query.text);
    let common = common(transaction, &words).await?;
    words.sort_by_key(|word| common.contains(word));
    let quoted: Vec<String> = words.iter().map(|word| words::quoted(word)).collect();
    let rarer = words.len() - common.len();
    // Every chunk that is looked at costs time, and a common word alone says little: one with a rarer word is enough,
    // unless there are too few of them.
    let mut found = Vec::new();
    for looked_for in if common.is_empty() { [0, words.len()] } else { [rarer, words.len()] } {
        if looked_for > 0 && found.len() < query.candidates() {
            let select = select_by_words(words.len(), looked_for, &within.condition, query.candidates());
            found = within.ranked(transaction, &select, &quoted, "searching words").await?;
        }
    }
    Ok(found)
}

/// Those of the words that many chunks have, by what the server's planner knows of them; none before it has looked.
async fn common(transaction: &Transaction<'_>, words: &[String]) -> Result<HashSet<String>, IndexError> {
    let what = "reading how common words are";
    let select = "select word from pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs) as common (word, share)
                  where schemaname = 'nerve' and tablename = 'chunks' and attname = 'words' and share > $2
                  and word = any ($1)";
    let select = transaction.prepare_cached(select).await.map_err(failed(what))?;
    let rows = transaction.query(&select, &[&words, &COMMON]).await.map_err(failed(what))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(what))
}

/// Ranks chunks by all `words`, an array in `$1`, that have one of the first `looked_for`.
///
/// PostgreSQL's rank knows how often a word is in a chunk, and not how rare it is: that is counted in what was found.
fn select_by_words(words: usize, looked_for: usize, condition: &str, count: usize) -> String {
    let each = |words: usize, write: &dyn Fn(usize) -> String, between: &str| {
        (1..=words).map(write).collect::<Vec<_>>().join(between)
    };
    let rank = |n| format!("ts_rank({WORTH}::float4[], words, ($1::text[])[{n}]::tsquery) as rank_{n}");
    let rarity =
        |n| format!("ln(1 + count(*)::float8 / greatest(count(*) filter (where rank_{n} > 0), 1)) as rarity_{n}");
    format!(
        "with found as materialized (
             select chunks.id, {ranks} from chunks join documents on documents.id = owner
             where words @@ ({any}) and {condition}),
         rare as (select {rarities} from found)
         select id, ({sum})::float4 as rank from found, rare order by rank desc, id limit {count}",
        ranks = each(words, &rank, ", "),
        any = each(looked_for, &|n| format!("($1::text[])[{n}]::tsquery"), " || "),
        rarities = each(words, &rarity, ", "),
        sum = each(words, &|n| format!("rank_{n} * rarity_{n}"), " + "),
    )
}

/// The chunks nearest to the question, the nearest first, with their cosine.
async fn by_meaning(
    transaction: &Transaction<'_>,
    query: &Query,
    within: &Within,
    scans_on: bool,
) -> Result<Vec<(u64, f32)>, IndexError> {
    let what = "searching vectors";
    let vector = Vector::from(query.vector.clone());
    let (count, condition) = (query.candidates(), &within.condition);
    for walk in WALKS {
        let settings = format!("set local hnsw.ef_search = {walk}");
        transaction.batch_execute(&settings).await.map_err(failed(what))?;
        let select = if scans_on {
            format!(
                "select chunk, (1 - distance)::float4 from (
                     select chunk, vector <=> $1 as distance from vectors
                     where exists (select from documents where documents.id = owner and {condition})
                     order by vector <=> $1 limit {count}) as near
                 order by distance, chunk"
            )
        } else {
            format!(
                "select chunk, (1 - distance)::float4 from (
                     select chunk, owner, vector <=> $1 as distance from vectors
                     order by vector <=> $1 limit {walk}) as near
                 join documents on documents.id = owner where {condition} order by distance, chunk limit {count}"
            )
        };
        let found = within.ranked(transaction, &select, &vector, what).await?;
        if found.len() >= count {
            return Ok(found);
        }
    }
    // Few pass, or a walk has met many that are gone and not yet cleared away: so few that each is compared.
    let select = format!(
        "with counted as materialized (
             select chunk, vector <=> $1 as distance from documents join vectors on owner = documents.id where {condition})
         select chunk, (1 - distance)::float4 from counted order by distance, chunk limit {count}"
    );
    within.ranked(transaction, &select, &vector, what).await
}

/// The chunks that were found, in their order, each with the cosine of its vector and the question's.
async fn hits(transaction: &Transaction<'_>, best: &[Found], vector: &[f32]) -> Result<Vec<Hit>, IndexError> {
    let what = "reading chunks";
    let ids: Vec<i64> = best.iter().map(|found| found.chunk.cast_signed()).collect();
    let select = "select chunks.id, document, name, metadata, place, text, heading, first, past,
                         (1 - (vector <=> $2))::float4 from chunks
                  join documents on documents.id = chunks.owner left join vectors on vectors.chunk = chunks.id
                  where chunks.id = any ($1)";
    let select = transaction.prepare_cached(select).await.map_err(failed(what))?;
    let rows = transaction.query(&select, &[&ids, &Vector::from(vector.to_vec())]).await.map_err(failed(what))?;
    let rows = rows.iter().map(|row| Ok((row.try_get::<_, i64>(0)?.cast_unsigned(), row)));
    let rows: HashMap<u64, &tokio_postgres::Row> = rows.collect::<Result<_, _>>().map_err(failed(what))?;
    let found = best.iter().filter_map(|found| Some(hit_of(rows.get(&found.chunk)?, found)));
    found.collect::<Result<_, _>>().map_err(failed(what))
}

fn hit_of(row: &tokio_postgres::Row, found: &Found) -> Result<Hit, tokio_postgres::Error> {
    let number = |column: usize| Ok(usize::try_from(row.try_get::<_, i64>(column)?).unwrap_or_default());
    let (metadata, heading): (Value, String) = (row.try_get(3)?, row.try_get(6)?);
    Ok(Hit {
        id: found.chunk.to_string(),
        document: row.try_get(1)?,
        name: row.try_get(2)?,
        metadata: if let Value::Object(metadata) = metadata { metadata } else { serde_json::Map::new() },
        chunk: Chunk {
            index: number(4)?,
            text: row.try_get(5)?,
            heading: serde_json::from_str(&heading).unwrap_or_default(),
            start: number(7)?,
            end: number(8)?,
        },
        score: found.score,
        bm25: found.bm25,
        similarity: row.try_get(9)?,
        lexical_rank: found.lexical_rank,
        dense_rank: found.dense_rank,
    })
}
