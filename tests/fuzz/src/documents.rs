//! Documents of any format.

use nerve_text::{
    ReadRequest, Reader,
    extract::{ContentMetadata, ExtractedText, Format, extract},
};
use std::sync::LazyLock;

/// The largest chunk, in tokens, and how many of them two chunks share.
const SIZE: (usize, usize) = (24, 4);
/// The tokenizer that measures chunks.
pub const TOKENIZER: &[u8] = include_bytes!("../../fixtures/onnx/models/pooling-cls/tokenizer.json");

static READER: LazyLock<Reader> = LazyLock::new(|| Reader::new(TOKENIZER).expect("a tokenizer"));

/// A document out of arbitrary bytes: its media type or its name, a newline, and its bytes.
pub struct Document<'d> {
    request: ReadRequest,
    bytes: &'d [u8],
}

impl<'d> Document<'d> {
    /// Reads a document's name and its bytes.
    pub fn read(data: &'d [u8]) -> Option<Self> {
        let at = data.iter().position(|byte| *byte == b'\n')?;
        let name = std::str::from_utf8(data.get(..at)?).ok()?;
        let media_type = name.contains('/').then(|| name.to_owned());
        let (size, overlap) = SIZE;
        let request = ReadRequest { media_type, name: name.to_owned(), sent_as_text: false, size, overlap };
        Some(Self { request, bytes: data.get(at + 1..)? })
    }

    /// What a helper process is asked, and about which bytes.
    pub fn request(&self) -> (&ReadRequest, &'d [u8]) {
        (&self.request, self.bytes)
    }

    /// Extracts the text and cuts it; panics unless each chunk stands where it says in the text.
    pub fn try_out(&self) {
        let ReadRequest { media_type, name, sent_as_text, .. } = &self.request;
        let source = ContentMetadata { media_type: media_type.as_deref(), name, sent_as_text: *sent_as_text };
        let Ok(ExtractedText { text, format }) = extract(self.bytes, source) else { return };
        let (media_type, name) = match format {
            Format::Markdown => (Some("text/markdown".to_owned()), String::new()),
            Format::Plain => (Some("text/x-plain".to_owned()), String::new()),
            Format::Code(_) => (media_type.clone(), name.clone()),
        };
        let request = ReadRequest { media_type, name, ..self.request.clone() };
        // The text of a document may begin as a PDF does, and is then none.
        let Ok(read) = READER.read(&request, text.as_bytes()) else { return };
        for (index, chunk) in read.chunks.iter().enumerate() {
            assert_eq!(chunk.index, index);
            if !text.starts_with("%PDF-") {
                assert_eq!(text.get(chunk.start..chunk.end), Some(chunk.text.as_str()), "{chunk:?}");
            }
        }
    }
}

/// Extracts a document's text and cuts it.
pub fn run(data: &[u8]) {
    if let Some(document) = Document::read(data) {
        document.try_out();
    }
}
