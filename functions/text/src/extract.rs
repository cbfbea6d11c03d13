//! The text of a document, whatever it was written in.

use crate::code::Language;

/// What every PDF begins with.
const PDF: &[u8] = b"%PDF-";

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

/// A document's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The text, as chunks quote it.
    pub text: String,
    /// How it is written.
    pub format: Format,
}

/// What is known of a document besides its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Source<'s> {
    /// The media type that its sender named.
    pub media_type: Option<&'s str>,
    /// Its name, such as a file's.
    pub name: &'s str,
    /// Whether its sender sent it as text.
    pub sent_as_text: bool,
}

/// Extracts the text of a document. What begins as a PDF is read as one, whatever its sender says of it.
///
/// # Errors
/// Says, for the document's sender, why it cannot be read.
pub fn extract(bytes: &[u8], source: Source<'_>) -> Result<Text, String> {
    let media = media_of(source);
    // A text may be what a PDF says, under the PDF's name.
    let named_pdf = media == "application/pdf" && !source.sent_as_text;
    if named_pdf || bytes.starts_with(PDF) {
        return read_pdf(bytes).map(|text| Text { text, format: Format::Plain });
    }
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| format!("it is {media} and not UTF-8: send text, HTML, Markdown or PDF"))?;
    match media.as_str() {
        "text/html" | "application/xhtml+xml" => read_html(text).map(|text| Text { text, format: Format::Markdown }),
        "text/markdown" | "text/x-markdown" => Ok(Text { text: text.to_owned(), format: Format::Markdown }),
        _ => {
            let generic = ["text/plain", "application/octet-stream"].contains(&media.as_str());
            let named = Language::of_name(source.name).filter(|_| generic);
            let format = Language::of_media(&media).or(named).map_or(Format::Plain, Format::Code);
            Ok(Text { text: text.to_owned(), format })
        }
    }
}

/// The media type that was given, else the one that the name's ending stands for.
fn media_of(source: Source<'_>) -> String {
    if let Some(given) = source.media_type {
        return given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    }
    let ending = source.name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
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
    // The reader panics on some broken files.
    let read = std::panic::catch_unwind(|| pdf_extract::extract_text_from_mem(bytes));
    let text = read.map_err(|_| "its PDF is broken: the reader gave up".to_owned())?;
    text.map_err(|error| format!("its PDF cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: impl AsRef<[u8]>, media_type: Option<&str>, name: &str) -> Result<Text, String> {
        extract(bytes.as_ref(), Source { media_type, name, sent_as_text: false })
    }

    #[test]
    fn code_is_known_by_its_name_or_its_media_type() {
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
        let Text { text, format } = read(html, Some("text/html; charset=utf-8"), "").unwrap();
        assert_eq!(format, Format::Markdown);
        assert!(text.contains("# Late fees") && !text.contains("x()"), "{text}");
    }

    /// A PDF of one page with one line, all of it ASCII.
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
    fn pdf_is_read_as_one_whatever_its_sender_calls_it() {
        let file = pdf("Late invoices cost ten percent.");
        let sources = [
            Source { name: "fees.pdf", ..Source::default() },
            Source { media_type: Some("text/plain"), ..Source::default() },
            Source { name: "fees.txt", sent_as_text: true, ..Source::default() },
        ];
        for source in sources {
            assert_eq!(extract(&file, source).unwrap().text.trim(), "Late invoices cost ten percent.", "{source:?}");
        }
        let said = Source { name: "fees.pdf", sent_as_text: true, ..Source::default() };
        assert_eq!(extract(b"Late invoices.", said).unwrap().text, "Late invoices.");
    }

    #[test]
    fn unreadable_bytes_are_refused_with_the_reason() {
        for (bytes, media, said) in [
            (b"\xff\xfe".as_slice(), "application/octet-stream", "not UTF-8"),
            (b"%PDF-1.4 broken", "application/pdf", "PDF"),
            (b"nothing", "application/pdf", "PDF"),
        ] {
            let why = read(bytes, Some(media), "").unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }
}
