//! Extracts the text of documents.

use crate::code::Language;

/// First bytes of every PDF.
const PDF_SIGNATURE: &[u8] = b"%PDF-";

/// Format of a text, as far as it affects splitting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// CommonMark, also converted from HTML.
    Markdown,
    /// A supported programming language.
    Code(Language),
    /// Any other text.
    Plain,
}

/// Text of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtractedText {
    /// The text, as chunks quote it.
    pub text: String,
    /// Its format.
    pub format: Format,
}

/// Metadata of a document's content.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContentMetadata<'s> {
    /// Media type given by the sender.
    pub media_type: Option<&'s str>,
    /// Name, such as a file name.
    pub name: &'s str,
    /// Whether the sender sent it as text.
    pub sent_as_text: bool,
}

/// Extracts the text of a document. Content with the PDF signature is read as PDF, whatever its media type.
///
/// # Errors
/// Tells the sender why the document cannot be read.
pub fn extract(bytes: &[u8], source: ContentMetadata<'_>) -> Result<ExtractedText, String> {
    let media = media_type_of(source);
    // Text extracted from a PDF may have the name of the PDF.
    let named_pdf = media == "application/pdf" && !source.sent_as_text;
    if named_pdf || bytes.starts_with(PDF_SIGNATURE) {
        return read_pdf(bytes).map(|text| ExtractedText { text, format: Format::Plain });
    }
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| format!("it is {media} and not UTF-8: send text, HTML, Markdown or PDF"))?;
    match media.as_str() {
        "text/html" | "application/xhtml+xml" => {
            read_html(text).map(|text| ExtractedText { text, format: Format::Markdown })
        }
        "text/markdown" | "text/x-markdown" => Ok(ExtractedText { text: text.to_owned(), format: Format::Markdown }),
        _ => {
            let generic = ["text/plain", "application/octet-stream"].contains(&media.as_str());
            let named = Language::from_file_name(source.name).filter(|_| generic);
            let format = Language::from_media_type(&media).or(named).map_or(Format::Plain, Format::Code);
            Ok(ExtractedText { text: text.to_owned(), format })
        }
    }
}

/// The given media type, else the one of the file extension.
fn media_type_of(source: ContentMetadata<'_>) -> String {
    if let Some(given) = source.media_type {
        return given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    }
    let extension =
        source.name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "md" | "markdown" | "mdx" => "text/markdown",
        "html" | "htm" | "xhtml" => "text/html",
        "pdf" => "application/pdf",
        _ => "text/plain",
    }
    .to_owned()
}

fn read_html(html: &str) -> Result<String, String> {
    let markdown = htmd::HtmlToMarkdown::builder().skip_tags(vec!["script", "style", "nav", "head"]).build();
    markdown.convert(html).map_err(|error| format!("its HTML cannot be read: {error}"))
}

fn read_pdf(bytes: &[u8]) -> Result<String, String> {
    // The PDF library panics on some malformed files.
    let read = std::panic::catch_unwind(|| pdf_extract::extract_text_from_mem(bytes));
    let text = read.map_err(|_| "its PDF is malformed: the parser failed".to_owned())?;
    text.map_err(|error| format!("its PDF cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: impl AsRef<[u8]>, media_type: Option<&str>, name: &str) -> Result<ExtractedText, String> {
        extract(bytes.as_ref(), ContentMetadata { media_type, name, sent_as_text: false })
    }

    #[test]
    fn language_is_detected_by_name_or_media_type() {
        let format = |media, name, text: &str| read(text, media, name).unwrap().format;
        assert_eq!(format(None, "src/main.rs", "fn a() {}"), Format::Code(Language::Rust));
        assert_eq!(format(Some("text/x-python; charset=utf-8"), "", "a = 1"), Format::Code(Language::Python));
        assert_eq!(format(Some("application/javascript"), "", "a()"), Format::Code(Language::JavaScript));
        assert_eq!(format(Some("text/plain"), "a.go", "package a"), Format::Code(Language::Go));
        assert_eq!(format(Some("text/markdown"), "a.go", "# A"), Format::Markdown);
        assert_eq!(format(None, "guide.md", "# A\n\nb"), Format::Markdown);
        assert_eq!(format(None, "a.txt", "a"), Format::Plain);
    }

    #[test]
    fn html_becomes_markdown_without_its_scripts() {
        let html = "<html><head><title>t</title></head><body><h1>Late fees</h1><script>x()</script><p>Ten percent.</p></body></html>";
        let ExtractedText { text, format } = read(html, Some("text/html; charset=utf-8"), "").unwrap();
        assert_eq!(format, Format::Markdown);
        assert!(text.contains("# Late fees") && !text.contains("x()"), "{text}");
    }

    /// A one-page PDF with one line of ASCII.
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
    fn pdf_is_detected_by_its_signature() {
        let file = pdf("Late invoices cost ten percent.");
        let sources = [
            ContentMetadata { name: "fees.pdf", ..ContentMetadata::default() },
            ContentMetadata { media_type: Some("text/plain"), ..ContentMetadata::default() },
            ContentMetadata { name: "fees.txt", sent_as_text: true, ..ContentMetadata::default() },
        ];
        for source in sources {
            assert_eq!(extract(&file, source).unwrap().text.trim(), "Late invoices cost ten percent.", "{source:?}");
        }
        let as_text = ContentMetadata { name: "fees.pdf", sent_as_text: true, ..ContentMetadata::default() };
        assert_eq!(extract(b"Late invoices.", as_text).unwrap().text, "Late invoices.");
    }

    #[test]
    fn unreadable_bytes_are_rejected_with_a_reason() {
        for (bytes, media, as_text) in [
            (b"\xff\xfe".as_slice(), "application/octet-stream", "not UTF-8"),
            (b"%PDF-1.4 broken", "application/pdf", "PDF"),
            (b"nothing", "application/pdf", "PDF"),
        ] {
            let why = read(bytes, Some(media), "").unwrap_err();
            assert!(why.contains(as_text), "{why}");
        }
    }
}
