//! What is uploaded, and its text.

use crate::code::Language;
use base64::{Engine, prelude::BASE64_STANDARD};
use data_encoding::HEXLOWER;
use nerve_core::Event;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The collection of a document that names none.
pub const DEFAULT_COLLECTION: &str = "default";

/// Which document of which collection, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What is searched together.
    #[serde(default = "default_collection")]
    pub collection: String,
    /// What a later upload replaces.
    pub document: String,
    /// For people: a file's name, a page's title.
    #[serde(default)]
    pub name: String,
    /// SHA-256 of the text, in hexadecimal.
    #[serde(default)]
    pub version: String,
    /// SHA-256 of its upload and of how it is chunked, in hexadecimal; empty where its chunker gives none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// When it was uploaded, in nanoseconds since 1970: of two uploads the later stays.
    #[serde(default)]
    pub uploaded_at: i64,
    /// What searches can be narrowed by.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

fn default_collection() -> String {
    DEFAULT_COLLECTION.to_owned()
}

/// How a text is written, as far as it decides where it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// CommonMark; what HTML and other markup become too.
    Markdown,
    /// A programming language whose syntax is known.
    Code(Language),
    /// Anything else.
    Plain,
}

/// A document with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Which it is.
    pub document: Document,
    /// Its text, as chunks quote it.
    pub text: String,
    /// How that is written.
    pub format: Format,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Upload {
    collection: Option<String>,
    document: Option<String>,
    name: Option<String>,
    media_type: Option<String>,
    text: Option<String>,
    /// Base64, for what is not text.
    data: Option<String>,
    metadata: Map<String, Value>,
}

impl Uploaded {
    /// Reads an event: JSON with `text` or `data`, or the document itself as the body.
    ///
    /// The error says, for its sender, what is wrong with the event.
    pub fn read(event: &Event) -> Result<Self, String> {
        let mut bytes = None;
        let upload = if event.is_json() {
            serde_json::from_slice(&event.data).map_err(|error| format!("its data is not a document: {error}"))?
        } else {
            bytes = Some(event.data.to_vec());
            Upload { media_type: event.content_type.clone(), ..Upload::default() }
        };
        if let Some(data) = &upload.data {
            bytes = Some(BASE64_STANDARD.decode(data).map_err(|error| format!("its `data` is not Base64: {error}"))?);
        }
        let name = upload.name.or_else(|| event.subject.clone()).unwrap_or_default();
        let media = media_of(upload.media_type.as_deref(), &name);
        let (text, format) = match (upload.text, bytes) {
            (Some(text), _) => read_text(text, &media, &name)?,
            (None, Some(bytes)) => read_bytes(&bytes, &media, &name)?,
            (None, None) => return Err("its data has neither `text` nor `data`".to_owned()),
        };
        let named = (!name.is_empty()).then(|| name.clone());
        let document = upload.document.or_else(|| event.subject.clone()).or(named).unwrap_or_else(|| event.id.clone());
        let nanoseconds = event.time.map(|time| time.unix_timestamp_nanos()).unwrap_or_default();
        Ok(Self {
            document: Document {
                collection: upload.collection.unwrap_or_else(default_collection),
                name: if name.is_empty() { document.clone() } else { name },
                document,
                version: HEXLOWER.encode(&Sha256::digest(text.as_bytes())),
                digest: String::new(),
                uploaded_at: i64::try_from(nanoseconds).unwrap_or_default(),
                metadata: upload.metadata,
            },
            text,
            format,
        })
    }
}

/// The media type that was given, else the one that the name's ending stands for.
fn media_of(given: Option<&str>, name: &str) -> String {
    if let Some(given) = given {
        return given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    }
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "md" | "markdown" | "mdx" => "text/markdown",
        "html" | "htm" | "xhtml" => "text/html",
        "pdf" => "application/pdf",
        _ => "text/plain",
    }
    .to_owned()
}

fn read_text(text: String, media: &str, name: &str) -> Result<(String, Format), String> {
    match media {
        "text/html" | "application/xhtml+xml" => {
            let markdown = htmd::HtmlToMarkdown::builder().skip_tags(vec!["script", "style", "nav", "head"]).build();
            let markdown = markdown.convert(&text).map_err(|error| format!("its HTML cannot be read: {error}"))?;
            Ok((markdown, Format::Markdown))
        }
        "text/markdown" | "text/x-markdown" => Ok((text, Format::Markdown)),
        _ => {
            let generic = ["text/plain", "application/octet-stream"].contains(&media);
            let named = Language::of_name(name).filter(|_| generic);
            Ok((text, Language::of_media(media).or(named).map_or(Format::Plain, Format::Code)))
        }
    }
}

fn read_bytes(bytes: &[u8], media: &str, name: &str) -> Result<(String, Format), String> {
    if media == "application/pdf" || bytes.starts_with(b"%PDF-") {
        // The reader panics on some broken files; one of them must not take a worker's thread along.
        let read = std::panic::catch_unwind(|| pdf_extract::extract_text_from_mem(bytes));
        let text = read.map_err(|_| "its PDF is broken: the reader gave up".to_owned())?;
        return Ok((text.map_err(|error| format!("its PDF cannot be read: {error}"))?, Format::Plain));
    }
    let text = String::from_utf8(bytes.to_vec());
    let text = text.map_err(|_| format!("it is {media} and not UTF-8: send text, HTML, Markdown or PDF"))?;
    read_text(text, media, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::json;

    fn event(media: &str, data: impl AsRef<[u8]>) -> Event {
        let event = Event::new("e1", "/test", EventType::parse("document.uploaded").unwrap());
        event.with_data(media, data.as_ref().to_vec())
    }

    fn json_event(data: &Value) -> Event {
        event("application/json", serde_json::to_vec(data).unwrap())
    }

    #[test]
    fn a_document_is_json_or_the_body_itself() {
        let data = json!({"name": "guide.md", "text": "# A\n\nb", "metadata": {"team": "x"}});
        let uploaded = Uploaded::read(&json_event(&data)).unwrap();
        assert_eq!((uploaded.document.document.as_str(), uploaded.format), ("guide.md", Format::Markdown));
        assert_eq!(
            (uploaded.document.collection.as_str(), &uploaded.document.metadata["team"]),
            ("default", &json!("x"))
        );
        let plain = Uploaded::read(&event("text/plain", "a text")).unwrap();
        assert_eq!((plain.document.document.as_str(), plain.text.as_str()), ("e1", "a text"));
        let data = json!({"document": "d", "data": BASE64_STANDARD.encode("a text"), "name": "a.txt"});
        assert_eq!(Uploaded::read(&json_event(&data)).unwrap().text, "a text");
    }

    #[test]
    fn code_is_known_by_its_name_or_its_media_type() {
        let format = |event: &Event| Uploaded::read(event).unwrap().format;
        assert_eq!(
            format(&json_event(&json!({"name": "src/main.rs", "text": "fn a() {}"}))),
            Format::Code(Language::Rust)
        );
        assert_eq!(format(&event("text/x-python; charset=utf-8", "a = 1")), Format::Code(Language::Python));
        assert_eq!(format(&event("application/javascript", "a()")), Format::Code(Language::JavaScript));
        let named = json!({"name": "a.go", "media_type": "text/plain", "text": "package a"});
        assert_eq!(format(&json_event(&named)), Format::Code(Language::Go));
        let other = json!({"name": "a.go", "media_type": "text/markdown", "text": "# A"});
        assert_eq!(format(&json_event(&other)), Format::Markdown);
        assert_eq!(format(&json_event(&json!({"name": "a.txt", "text": "a"}))), Format::Plain);
    }

    #[test]
    fn html_becomes_markdown_without_its_scripts() {
        let html = "<html><head><title>t</title></head><body><h1>Late fees</h1><script>x()</script><p>Ten percent.</p></body></html>";
        let uploaded = Uploaded::read(&event("text/html; charset=utf-8", html)).unwrap();
        assert_eq!(uploaded.format, Format::Markdown);
        assert!(uploaded.text.contains("# Late fees") && !uploaded.text.contains("x()"), "{}", uploaded.text);
    }

    /// A PDF of one page with one line.
    fn pdf(line: &str) -> Vec<u8> {
        let content = format!("BT /F1 12 Tf 72 720 Td ({line}) Tj ET");
        let objects = [
            "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R \
             /Resources << /Font << /F1 5 0 R >> >> >>"
                .to_owned(),
            format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()),
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
        ];
        let mut file = "%PDF-1.4\n".to_owned();
        let mut offsets = String::new();
        for (index, object) in objects.iter().enumerate() {
            offsets.push_str(&format!("{:010} 00000 n \n", file.len()));
            file.push_str(&format!("{} 0 obj\n{object}\nendobj\n", index + 1));
        }
        let start = file.len();
        file.push_str(&format!("xref\n0 6\n0000000000 65535 f \n{offsets}trailer\n<< /Size 6 /Root 1 0 R >>\n"));
        file.push_str(&format!("startxref\n{start}\n%%EOF\n"));
        file.into_bytes()
    }

    #[test]
    fn a_pdf_gives_its_text() {
        let data = json!({"name": "fees.pdf", "data": BASE64_STANDARD.encode(pdf("Late invoices cost ten percent."))});
        let uploaded = Uploaded::read(&json_event(&data)).unwrap();
        assert_eq!(uploaded.text.trim(), "Late invoices cost ten percent.");
        assert_eq!(uploaded.document.document, "fees.pdf");
    }

    #[test]
    fn what_is_no_document_is_told() {
        for (event, said) in [
            (json_event(&json!({"name": "a"})), "neither `text` nor `data`"),
            (json_event(&json!([1])), "not a document"),
            (json_event(&json!({"data": "%"})), "not Base64"),
            (event("application/octet-stream", b"\xff\xfe"), "not UTF-8"),
            (event("application/pdf", b"%PDF-1.4 broken"), "PDF"),
        ] {
            let why = Uploaded::read(&event).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }
}
