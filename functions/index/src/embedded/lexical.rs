//! The lexical index, in tantivy.

use super::store::{ChunkChange, Store};
use crate::{
    analyzer::{ANALYZER_NAME, new_analyzer, query_tokens},
    error::IndexError,
};
use parking_lot::Mutex;
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};
use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, Term,
    collector::TopDocs,
    query::{BooleanQuery, BoostQuery, Occur, Query, TermQuery},
    schema::{FAST, Field, INDEXED, IndexRecordOption, STRING, Schema, TextFieldIndexing, TextOptions},
};

/// Memory limit of uncommitted changes, in bytes.
const WRITER_MEMORY_BYTES: usize = 32 << 20;
/// Boost of matches in headings.
const HEADING_BOOST: f32 = 1.5;

#[derive(Debug, Clone, Copy)]
struct Fields {
    chunk: Field,
    collection: Field,
    heading: Field,
    text: Field,
}

/// The lexical index.
pub(crate) struct Lexical {
    index: Index,
    reader: IndexReader,
    writer: Mutex<IndexWriter>,
    fields: Fields,
    position: AtomicU64,
}

fn failed(operation: &'static str) -> impl FnOnce(tantivy::TantivyError) -> IndexError {
    IndexError::failed(operation)
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let words =
        TextFieldIndexing::default().set_tokenizer(ANALYZER_NAME).set_index_option(IndexRecordOption::WithFreqs);
    let words = TextOptions::default().set_indexing_options(words);
    let fields = Fields {
        chunk: schema.add_u64_field("chunk", FAST | INDEXED),
        collection: schema.add_text_field("collection", STRING),
        heading: schema.add_text_field("heading", words.clone()),
        text: schema.add_text_field("text", words),
    };
    (schema.build(), fields)
}

impl Lexical {
    pub(crate) fn open(folder: &Path) -> Result<Self, IndexError> {
        let (schema, fields) = schema();
        std::fs::create_dir_all(folder).map_err(IndexError::failed("creating the lexical index folder"))?;
        let index = match Index::open_in_dir(folder) {
            Ok(index) if index.schema() == schema => index,
            // An unusable index is rebuilt from the store.
            _ => {
                std::fs::remove_dir_all(folder).map_err(IndexError::failed("clearing the lexical index folder"))?;
                std::fs::create_dir_all(folder).map_err(IndexError::failed("creating the lexical index folder"))?;
                Index::create_in_dir(folder, schema).map_err(failed("creating the lexical index"))?
            }
        };
        index.tokenizers().register(ANALYZER_NAME, new_analyzer());
        let payload = index.load_metas().map_err(failed("reading the lexical index"))?.payload;
        let position = payload.and_then(|payload| payload.parse().ok()).unwrap_or_default();
        let writer =
            index.writer_with_num_threads(1, WRITER_MEMORY_BYTES).map_err(failed("opening the lexical index"))?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
        let reader = reader.map_err(failed("reading the lexical index"))?;
        Ok(Self { index, reader, writer: Mutex::new(writer), fields, position: AtomicU64::new(position) })
    }

    /// Number of the last committed change.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Applies the changes since the last one from the store.
    pub(crate) fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
        let (from, to) = (self.position(), store.position()?);
        if from == to {
            return Ok(());
        }
        let mut writer = self.writer.lock();
        let applied = if store.has_changes_since(from)? {
            store.for_each_change(from, |change| self.apply_change(&writer, change))
        } else {
            writer.delete_all_documents().map_err(failed("clearing the lexical index"))?;
            store.for_each_chunk(|change| self.apply_change(&writer, change))
        };
        self.commit(&mut writer, applied, to)
    }

    /// Rebuilds the lexical index in new files and deletes the old ones, which still contain removed text.
    pub(crate) fn rewrite(&self, store: &Store) -> Result<(), IndexError> {
        let to = store.position()?;
        let mut writer = self.writer.lock();
        writer.delete_all_documents().map_err(failed("clearing the lexical index"))?;
        let applied = store.for_each_chunk(|change| self.apply_change(&writer, change));
        self.commit(&mut writer, applied, to)?;
        // The next commit deletes files that a search still reads.
        writer.garbage_collect_files().wait().map(drop).map_err(failed("deleting old lexical index files"))
    }

    /// Commits applied changes up to this position of the store; rolls back if applying failed.
    fn commit(
        &self,
        writer: &mut IndexWriter,
        applied: Result<(), IndexError>,
        position: u64,
    ) -> Result<(), IndexError> {
        if let Err(error) = applied {
            writer.rollback().map_err(failed("rolling back the lexical index"))?;
            return Err(error);
        }
        let mut commit = writer.prepare_commit().map_err(failed("writing the lexical index"))?;
        commit.set_payload(&position.to_string());
        commit.commit().map_err(failed("writing the lexical index"))?;
        self.reader.reload().map_err(failed("reading the lexical index"))?;
        self.position.store(position, Ordering::Release);
        Ok(())
    }

    fn apply_change(&self, writer: &IndexWriter, change: ChunkChange) -> Result<(), IndexError> {
        let fields = self.fields;
        match change {
            ChunkChange::Add { chunk, collection, heading, text, .. } => {
                // Applying a change twice after a crash must add the chunk once.
                writer.delete_term(Term::from_field_u64(fields.chunk, chunk));
                let mut document = TantivyDocument::new();
                document.add_u64(fields.chunk, chunk);
                document.add_text(fields.collection, collection);
                document.add_text(fields.heading, heading);
                document.add_text(fields.text, text);
                writer.add_document(document).map_err(failed("adding a chunk to the lexical index"))?;
            }
            ChunkChange::Remove { chunk } => drop(writer.delete_term(Term::from_field_u64(fields.chunk, chunk))),
        }
        Ok(())
    }

    /// The chunks that match `text`, best first, with their BM25 score.
    pub(crate) fn search(
        &self,
        text: &str,
        collection: &str,
        limit: usize,
        filter: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, f32)>, IndexError> {
        let operation = "searching the lexical index";
        let tokens = self.index.tokenizers().get(ANALYZER_NAME).map(|mut analyzer| query_tokens(&mut analyzer, text));
        let tokens = tokens.unwrap_or_default();
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let searcher = self.reader.searcher();
        let query = self.query(&tokens, collection);
        let mut candidates = limit;
        loop {
            let top = searcher
                .search(&query, &TopDocs::with_limit(candidates).order_by_score())
                .map_err(failed(operation))?;
            let complete = top.len() < candidates;
            let mut found = Vec::with_capacity(limit);
            for (score, address) in top {
                let segment = searcher.segment_reader(address.segment_ord);
                let ids = segment.fast_fields().u64("chunk").map_err(failed(operation))?;
                found.extend(ids.first(address.doc_id).filter(|chunk| filter(*chunk)).map(|chunk| (chunk, score)));
            }
            // A selective filter needs more candidates.
            if complete || found.len() >= limit || candidates >= limit * 64 {
                found.truncate(limit);
                return Ok(found);
            }
            candidates *= 8;
        }
    }

    fn query(&self, tokens: &[String], collection: &str) -> BooleanQuery {
        let term = |field: Field, token: &str| -> Box<dyn Query> {
            Box::new(TermQuery::new(Term::from_field_text(field, token), IndexRecordOption::WithFreqs))
        };
        let matches = tokens.iter().flat_map(|token| {
            let heading = Box::new(BoostQuery::new(term(self.fields.heading, token), HEADING_BOOST));
            [(Occur::Should, heading as Box<dyn Query>), (Occur::Should, term(self.fields.text, token))]
        });
        let matches: Box<dyn Query> = Box::new(BooleanQuery::new(matches.collect()));
        let collection_query =
            TermQuery::new(Term::from_field_text(self.fields.collection, collection), IndexRecordOption::Basic);
        let collection_query: Box<dyn Query> =
            Box::new(tantivy::query::ConstScoreQuery::new(Box::new(collection_query), 0.0));
        BooleanQuery::new(vec![(Occur::Must, matches), (Occur::Must, collection_query)])
    }
}
