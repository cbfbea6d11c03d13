//! Lexical and dense candidates, and their chunks.

use super::{
    error::failed,
    tsvector::{self, TsvectorAnalyzer},
};
use crate::{
    error::IndexError,
    fusion::{Candidate, fuse},
    query::Query,
};
use deadpool_postgres::Transaction;
use nerve_events::{documents::Chunk, retrieval::Hit};
use pgvector::Vector;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use tokio_postgres::types::ToSql;

/// Values of `hnsw.ef_search`, tried in order until enough rows pass the filter; after the last, an exact search
/// follows. 1000 is pgvector's maximum.
const EF_SEARCH_VALUES: [usize; 2] = [200, 1000];
/// `ts_rank` weights of the labels D, C, B and A; headings have A. As in the embedded index, a match in a heading
/// counts 1.5 times.
const RANK_WEIGHTS: &str = "'{0.667, 0.667, 0.667, 1}'";
/// Share of chunks from which a lexeme is common.
const COMMON_SHARE: f32 = 0.05;
/// Maximum number of filter values looked up in the metadata index before the exact comparison.
const MAX_INDEXED_FILTER_VALUES: usize = 16;

type Parameter = Box<dyn ToSql + Sync + Send>;

/// Returns the best chunks, best first.
pub(crate) async fn search(
    transaction: &Transaction<'_>,
    query: &Query,
    iterative_scans: bool,
) -> Result<Vec<Hit>, IndexError> {
    let filter = FilterCondition::of(query);
    let lexical_candidates = lexical_candidates(transaction, query, &filter).await?;
    let dense_candidates = dense_candidates(transaction, query, &filter, iterative_scans).await?;
    let mut best = fuse(&lexical_candidates, &dense_candidates, query.weights);
    best.truncate(query.limit);
    hits(transaction, &best, &query.vector).await
}

/// SQL condition on `documents` for a collection and a filter.
struct FilterCondition {
    /// The condition, with parameters from `$2`.
    condition: String,
    values: Vec<Parameter>,
}

impl FilterCondition {
    fn of(query: &Query) -> Self {
        let mut filter = Self { condition: String::new(), values: Vec::new() };
        let collection = filter.value(query.collection.clone());
        filter.condition = format!("collection = {collection}::text");
        for (key, value) in &query.filter {
            let any = match value {
                Value::Array(any) => any.clone(),
                one => vec![one.clone()],
            };
            filter.require_any(key, any);
        }
        filter
    }

    /// Requires one of these values, or an array with one of them.
    fn require_any(&mut self, key: &str, any: Vec<Value>) {
        // Containment has an index but matches more than equal values.
        if any.len() <= MAX_INDEXED_FILTER_VALUES {
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

    /// Adds a parameter and returns its placeholder.
    fn value(&mut self, value: impl ToSql + Sync + Send + 'static) -> String {
        self.values.push(Box::new(value));
        format!("${}", self.values.len() + 1)
    }

    /// Chunks with their scores, for the query in `$1`.
    async fn query_ranked(
        &self,
        transaction: &Transaction<'_>,
        select: &str,
        ranked_by: &(dyn ToSql + Sync),
        operation: &'static str,
    ) -> Result<Vec<(u64, f32)>, IndexError> {
        let values = self.values.iter().map(|value| -> &(dyn ToSql + Sync) { value.as_ref() });
        let values: Vec<&(dyn ToSql + Sync)> = std::iter::once(ranked_by).chain(values).collect();
        // The number of distinct queries is too large to cache a statement for each.
        let rows = transaction.query(select, &values).await.map_err(failed(operation))?;
        let ranked = rows.iter().map(|row| Ok((row.try_get::<_, i64>(0)?.cast_unsigned(), row.try_get(1)?)));
        ranked.collect::<Result<_, _>>().map_err(failed(operation))
    }
}

/// The lexical candidates, best first.
async fn lexical_candidates(
    transaction: &Transaction<'_>,
    query: &Query,
    filter: &FilterCondition,
) -> Result<Vec<(u64, f32)>, IndexError> {
    let mut words = TsvectorAnalyzer::new().query_lexemes(&query.text);
    let common_lexemes = common_lexemes(transaction, &words).await?;
    words.sort_by_key(|word| common_lexemes.contains(word));
    let quoted: Vec<String> = words.iter().map(|word| tsvector::quote_lexeme(word)).collect();
    let rarer = words.len() - common_lexemes.len();
    // Each matching chunk costs time, and a common lexeme alone is a weak match: requires a rarer lexeme, unless too
    // few chunks have one.
    let mut found = Vec::new();
    for required in if common_lexemes.is_empty() { [0, words.len()] } else { [rarer, words.len()] } {
        if required > 0 && found.len() < query.candidates() {
            let select = lexical_select(words.len(), required, &filter.condition, query.candidates());
            found = filter.query_ranked(transaction, &select, &quoted, "searching the lexical index").await?;
        }
    }
    Ok(found)
}

/// The lexemes that many chunks contain, by the planner's statistics; empty before the first `analyze`.
async fn common_lexemes(transaction: &Transaction<'_>, words: &[String]) -> Result<HashSet<String>, IndexError> {
    let operation = "reading lexeme statistics";
    let select = "select word from pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs) as common (word, share)
                  where schemaname = 'nerve' and tablename = 'chunks' and attname = 'words' and share > $2
                  and word = any ($1)";
    let select = transaction.prepare_cached(select).await.map_err(failed(operation))?;
    let rows = transaction.query(&select, &[&words, &COMMON_SHARE]).await.map_err(failed(operation))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(operation))
}

/// Ranks chunks by all `words`, an array in `$1`, that contain one of the first `required`.
///
/// PostgreSQL's rank uses the frequency of a lexeme in a chunk but not its rarity, which is computed from the matches.
fn lexical_select(words: usize, required: usize, condition: &str, count: usize) -> String {
    let each = |words: usize, write: &dyn Fn(usize) -> String, between: &str| {
        (1..=words).map(write).collect::<Vec<_>>().join(between)
    };
    let rank = |n| format!("ts_rank({RANK_WEIGHTS}::float4[], words, ($1::text[])[{n}]::tsquery) as rank_{n}");
    let rarity =
        |n| format!("ln(1 + count(*)::float8 / greatest(count(*) filter (where rank_{n} > 0), 1)) as rarity_{n}");
    format!(
        "with found as materialized (
             select chunks.id, {ranks} from chunks join documents on documents.id = owner
             where words @@ ({any}) and {condition}),
         rare as (select {rarities} from found)
         select id, ({sum})::float4 as rank from found, rare order by rank desc, id limit {count}",
        ranks = each(words, &rank, ", "),
        any = each(required, &|n| format!("($1::text[])[{n}]::tsquery"), " || "),
        rarities = each(words, &rarity, ", "),
        sum = each(words, &|n| format!("rank_{n} * rarity_{n}"), " + "),
    )
}

/// The chunks nearest to the question, nearest first, with their cosine similarity.
async fn dense_candidates(
    transaction: &Transaction<'_>,
    query: &Query,
    filter: &FilterCondition,
    iterative_scans: bool,
) -> Result<Vec<(u64, f32)>, IndexError> {
    let operation = "searching vectors";
    let vector = Vector::from(query.vector.clone());
    let (count, condition) = (query.candidates(), &filter.condition);
    for ef_search in EF_SEARCH_VALUES {
        let settings = format!("set local hnsw.ef_search = {ef_search}");
        transaction.batch_execute(&settings).await.map_err(failed(operation))?;
        let select = if iterative_scans {
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
                     order by vector <=> $1 limit {ef_search}) as near
                 join documents on documents.id = owner where {condition} order by distance, chunk limit {count}"
            )
        };
        let found = filter.query_ranked(transaction, &select, &vector, operation).await?;
        if found.len() >= count {
            return Ok(found);
        }
    }
    // Few chunks pass the filter, or the scans met many dead rows; an exact search is cheap then.
    let select = format!(
        "with counted as materialized (
             select chunk, vector <=> $1 as distance from documents join vectors on owner = documents.id where {condition})
         select chunk, (1 - distance)::float4 from counted order by distance, chunk limit {count}"
    );
    filter.query_ranked(transaction, &select, &vector, operation).await
}

/// Reads the chunks in their order, each with its cosine similarity to the question.
async fn hits(transaction: &Transaction<'_>, best: &[Candidate], vector: &[f32]) -> Result<Vec<Hit>, IndexError> {
    let operation = "reading chunks";
    let ids: Vec<i64> = best.iter().map(|found| found.chunk.cast_signed()).collect();
    let select = "select chunks.id, document, name, metadata, place, text, heading, first, past,
                         (1 - (vector <=> $2))::float4 from chunks
                  join documents on documents.id = chunks.owner left join vectors on vectors.chunk = chunks.id
                  where chunks.id = any ($1)";
    let select = transaction.prepare_cached(select).await.map_err(failed(operation))?;
    let rows = transaction.query(&select, &[&ids, &Vector::from(vector.to_vec())]).await.map_err(failed(operation))?;
    let rows = rows.iter().map(|row| Ok((row.try_get::<_, i64>(0)?.cast_unsigned(), row)));
    let rows: HashMap<u64, &tokio_postgres::Row> = rows.collect::<Result<_, _>>().map_err(failed(operation))?;
    let found = best.iter().filter_map(|found| Some(hit_of(rows.get(&found.chunk)?, found)));
    found.collect::<Result<_, _>>().map_err(failed(operation))
}

fn hit_of(row: &tokio_postgres::Row, found: &Candidate) -> Result<Hit, tokio_postgres::Error> {
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
        relevance: None,
    })
}
