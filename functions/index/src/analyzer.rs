//! Words of texts, as both kinds of index know them.

use tantivy::tokenizer::{
    AsciiFoldingFilter, Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, StopWordFilter, TextAnalyzer,
};

/// Words longer than this, in bytes, are no words.
const LONGEST: usize = 64;
/// The analyser's name, which changes when it does, so that the words are made again.
pub(crate) const ANALYSER: &str = "words-1";
/// The most words of a question that are looked for.
const MOST_WORDS: usize = 64;

pub(crate) fn analyser() -> TextAnalyzer {
    let plain = TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(LONGEST))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter);
    match StopWordFilter::new(Language::English) {
        Some(stop_words) => plain.filter(stop_words).filter(Stemmer::new(Language::English)).build(),
        None => plain.filter(Stemmer::new(Language::English)).build(),
    }
}

/// The words of a question that are looked for, each once.
pub(crate) fn words(analyser: &mut TextAnalyzer, text: &str) -> Vec<String> {
    let mut stream = analyser.token_stream(text);
    let mut words = Vec::new();
    while let Some(token) = stream.next() {
        if !words.contains(&token.text) {
            words.push(token.text.clone());
        }
    }
    words.truncate(MOST_WORDS);
    words
}
