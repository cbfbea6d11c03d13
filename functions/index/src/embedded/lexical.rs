//! The words of chunks, in tantivy.

use super::store::{Step, Store};
use crate::{
    analyzer::{ANALYSER, analyser, words},
    error::IndexError,
};
use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, Term,
    collector::TopDocs,
    query::{BooleanQuery, BoostQuery, Occur, Query, TermQuery},
    schema::{FAST, Field, INDEXED, IndexRecordOption, STRING, Schema, TextFieldIndexing, TextOptions},
};

/// Memory that changes may take before they are written, in bytes.
const BUFFER: usize = 32 << 20;
/// How much more a word in a heading says.
const HEADING_BOOST: f32 = 1.5;

#[derive(Debug, Clone, Copy)]
struct Fields {
    chunk: Field,
    collection: Field,
    heading: Field,
    text: Field,
}

/// Words to chunks.
pub(crate) struct Lexical {
    index: Index,
    reader: IndexReader,
    writer: Mutex<IndexWriter>,
    fields: Fields,
    position: AtomicU64,
}

fn failed(what: &'static str) -> impl FnOnce(tantivy::TantivyError) -> IndexError {
    IndexError::failed(what)
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let words = TextFieldIndexing::default().set_tokenizer(ANALYSER).set_index_option(IndexRecordOption::WithFreqs);
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
        std::fs::create_dir_all(folder).map_err(IndexError::failed("making the folder of its words"))?;
        let index = match Index::open_in_dir(folder) {
            Ok(index) if index.schema() == schema => index,
            // Whatever is there cannot be used, and all of it can be made again.
            _ => {
                std::fs::remove_dir_all(folder).map_err(IndexError::failed("emptying the folder of its words"))?;
                std::fs::create_dir_all(folder).map_err(IndexError::failed("making the folder of its words"))?;
                Index::create_in_dir(folder, schema).map_err(failed("beginning its words"))?
            }
        };
        index.tokenizers().register(ANALYSER, analyser());
        let payload = index.load_metas().map_err(failed("reading its words"))?.payload;
        let position = payload.and_then(|payload| payload.parse().ok()).unwrap_or_default();
        let writer = index.writer_with_num_threads(1, BUFFER).map_err(failed("opening its words"))?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
        let reader = reader.map_err(failed("reading its words"))?;
        Ok(Self { index, reader, writer: Mutex::new(writer), fields, position: AtomicU64::new(position) })
    }

    /// The number of the last change that is written down.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Takes over what the store has since.
    pub(crate) fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
        let (from, to) = (self.position(), store.position()?);
        if from == to {
            return Ok(());
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = if store.remembers(from)? {
            store.steps(from, |step| self.take(&writer, step))
        } else {
            writer.delete_all_documents().map_err(failed("emptying its words"))?;
            store.all(|step| self.take(&writer, step))
        };
        self.commit(&mut writer, taken, to)
    }

    /// Makes the words of all chunks again in new files, and deletes the old ones, which still hold what was removed.
    pub(crate) fn rewrite(&self, store: &Store) -> Result<(), IndexError> {
        let to = store.position()?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.delete_all_documents().map_err(failed("emptying its words"))?;
        let taken = store.all(|step| self.take(&writer, step));
        self.commit(&mut writer, taken, to)?;
        // Files that a search still reads go with the next commit.
        writer.garbage_collect_files().wait().map(drop).map_err(failed("deleting its old words"))
    }

    /// Commits what was taken, up to this position of the store; where it was not taken whole, nothing of it.
    fn commit(&self, writer: &mut IndexWriter, taken: Result<(), IndexError>, position: u64) -> Result<(), IndexError> {
        if let Err(error) = taken {
            writer.rollback().map_err(failed("taking back its words"))?;
            return Err(error);
        }
        let mut commit = writer.prepare_commit().map_err(failed("writing its words"))?;
        commit.set_payload(&position.to_string());
        commit.commit().map_err(failed("writing its words"))?;
        self.reader.reload().map_err(failed("reading its words"))?;
        self.position.store(position, Ordering::Release);
        Ok(())
    }

    fn take(&self, writer: &IndexWriter, step: Step) -> Result<(), IndexError> {
        let Fields { chunk: id, collection: within, heading: above, text: words } = self.fields;
        match step {
            Step::Add { chunk, collection, heading, text, .. } => {
                // Taken twice after a crash, it must be there once.
                writer.delete_term(Term::from_field_u64(id, chunk));
                let mut document = TantivyDocument::new();
                document.add_u64(id, chunk);
                document.add_text(within, collection);
                document.add_text(above, heading);
                document.add_text(words, text);
                writer.add_document(document).map_err(failed("adding words"))?;
            }
            Step::Remove { chunk } => drop(writer.delete_term(Term::from_field_u64(id, chunk))),
        }
        Ok(())
    }

    /// The chunks that say what `text` does, the best first, with their BM25.
    pub(crate) fn search(
        &self,
        text: &str,
        collection: &str,
        count: usize,
        counts: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, f32)>, IndexError> {
        let what = "searching words";
        let words = self.index.tokenizers().get(ANALYSER).map(|mut analyser| words(&mut analyser, text));
        let words = words.unwrap_or_default();
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let searcher = self.reader.searcher();
        let query = self.query(&words, collection);
        let mut asked = count;
        loop {
            let top = searcher.search(&query, &TopDocs::with_limit(asked).order_by_score()).map_err(failed(what))?;
            let complete = top.len() < asked;
            let mut found = Vec::with_capacity(count);
            for (score, address) in top {
                let segment = searcher.segment_reader(address.segment_ord);
                let ids = segment.fast_fields().u64("chunk").map_err(failed(what))?;
                found.extend(ids.first(address.doc_id).filter(|chunk| counts(*chunk)).map(|chunk| (chunk, score)));
            }
            // A filter that few chunks pass wants more to choose from.
            if complete || found.len() >= count || asked >= count * 64 {
                found.truncate(count);
                return Ok(found);
            }
            asked *= 8;
        }
    }

    fn query(&self, words: &[String], collection: &str) -> BooleanQuery {
        let term = |field: Field, word: &str| -> Box<dyn Query> {
            Box::new(TermQuery::new(Term::from_field_text(field, word), IndexRecordOption::WithFreqs))
        };
        let either = words.iter().flat_map(|word| {
            let heading = Box::new(BoostQuery::new(term(self.fields.heading, word), HEADING_BOOST));
            [(Occur::Should, heading as Box<dyn Query>), (Occur::Should, term(self.fields.text, word))]
        });
        let either: Box<dyn Query> = Box::new(BooleanQuery::new(either.collect()));
        let within =
            TermQuery::new(Term::from_field_text(self.fields.collection, collection), IndexRecordOption::Basic);
        let within: Box<dyn Query> = Box::new(tantivy::query::ConstScoreQuery::new(Box::new(within), 0.0));
        BooleanQuery::new(vec![(Occur::Must, either), (Occur::Must, within)])
    }
}
