//! Finds the links in a document: one `document.links` with each address once, in the order of the text.

wit_bindgen::generate!({ path: "../../wit", world: "function" });

use serde_json::{Value, json};

struct DocumentLinks;

export!(DocumentLinks);

impl Guest for DocumentLinks {
    fn handle(event: Event) -> Result<Vec<Emission>, Failure> {
        let body: Value = serde_json::from_slice(&event.data)
            .map_err(|error| Failure::Invalid(format!("the body is not JSON: {error}")))?;
        let text = body.get("text").unwrap_or(&body).as_str().ok_or_else(|| {
            Failure::Invalid("the document has no text: send a string, or an object with `text`".into())
        })?;
        let links = links(text);
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let document = event.subject.unwrap_or(event.id);
        let data = json!({ "document": document, "links": links });
        Ok(vec![Emission {
            type_: "document.links".into(),
            data: data.to_string().into_bytes(),
            content_type: None,
            subject: None,
            partition_key: None,
        }])
    }
}

/// The http and https addresses in `text`, without the punctuation of the sentence around them.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("http") {
        let rest = &text[at..];
        if !rest.starts_with("http://") && !rest.starts_with("https://") {
            continue;
        }
        let end = rest.find(|c: char| c.is_whitespace() || "<>\"`|".contains(c)).unwrap_or(rest.len());
        let mut link = rest[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', '\'', '*', '_']);
        // A bracket at the end belongs to the link only if the link opens it.
        while unopened(link, '(', ')') || unopened(link, '[', ']') {
            link = link[..link.len() - 1].trim_end_matches(['.', ',']);
        }
        if link.len() > "https://".len() && !found.contains(&link) {
            found.push(link);
        }
    }
    found
}

/// Whether `link` ends in a closing bracket that nothing in it opens.
fn unopened(link: &str, open: char, close: char) -> bool {
    link.ends_with(close) && link.matches(close).count() > link.matches(open).count()
}

#[cfg(test)]
mod tests {
    use super::links;

    #[test]
    fn punctuation_around_a_link_is_not_part_of_it() {
        let text = "See [docs](https://a.example/x_(y)), http://b.example. Again: https://a.example/x_(y)!";
        assert_eq!(links(text), ["https://a.example/x_(y)", "http://b.example"]);
        assert_eq!(links("http, https:// and nothing"), [""; 0]);
    }
}
