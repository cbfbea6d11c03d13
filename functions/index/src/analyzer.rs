//! The text analyzer of both kinds of index.

use tantivy::tokenizer::{
    AsciiFoldingFilter, Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, StopWordFilter, TextAnalyzer,
};

/// Maximum length of a token in bytes; longer tokens are dropped.
const MAX_TOKEN_BYTES: usize = 64;
/// Name of the analyzer. A change of the analyzer requires a new name, so that the lexical index is rebuilt.
pub(crate) const ANALYZER_NAME: &str = "words-1";
/// Maximum number of distinct query tokens.
const MAX_QUERY_TOKENS: usize = 64;

pub(crate) fn new_analyzer() -> TextAnalyzer {
    let base = TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(MAX_TOKEN_BYTES))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter);
    match StopWordFilter::new(Language::English) {
        Some(stop_words) => base.filter(stop_words).filter(Stemmer::new(Language::English)).build(),
        None => base.filter(Stemmer::new(Language::English)).build(),
    }
}

/// The distinct tokens of a query.
pub(crate) fn query_tokens(analyzer: &mut TextAnalyzer, text: &str) -> Vec<String> {
    let mut stream = analyzer.token_stream(text);
    let mut tokens = Vec::new();
    while let Some(token) = stream.next() {
        if !tokens.contains(&token.text) {
            tokens.push(token.text.clone());
        }
    }
    tokens.truncate(MAX_QUERY_TOKENS);
    tokens
}
