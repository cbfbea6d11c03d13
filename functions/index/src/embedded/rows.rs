//! Rows of SQLite as values.

use super::store::ChunkChange;
use crate::fusion::Candidate;
use nerve_events::{
    documents::{Chunk, Document},
    retrieval::Hit,
};
use rusqlite::Row;

/// The document whose columns start at `first`.
pub(super) fn document_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Document> {
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

/// The change of one chunk.
pub(super) fn chunk_change_of(row: &Row<'_>) -> rusqlite::Result<ChunkChange> {
    let chunk = row.get(0)?;
    let text: Option<String> = row.get(4)?;
    // A chunk that was added and later removed has no row; its removal follows.
    let (true, Some(text)) = (row.get::<_, bool>(1)?, text) else { return Ok(ChunkChange::Remove { chunk }) };
    let heading: Vec<String> = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
    let vector = vector_of(row, 5)?;
    Ok(ChunkChange::Add { chunk, collection: row.get(2)?, heading: heading.join(" "), text, vector })
}

/// The vector in a column.
pub(super) fn vector_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<f32>> {
    let vector: Vec<u8> = row.get(column)?;
    Ok(vector.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect())
}

/// The chunk whose columns start at `first`.
pub(super) fn chunk_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Chunk> {
    let heading: String = row.get(first + 2)?;
    Ok(Chunk {
        index: row.get(first)?,
        text: row.get(first + 1)?,
        heading: serde_json::from_str(&heading).unwrap_or_default(),
        start: row.get(first + 3)?,
        end: row.get(first + 4)?,
    })
}

/// The hit of a candidate.
pub(super) fn hit_of(row: &Row<'_>, found: &Candidate) -> rusqlite::Result<Hit> {
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
        relevance: None,
    })
}
