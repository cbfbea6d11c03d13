//! Documents that no reader should have to read.

use crate::sandbox::{deflated_blanks, pdf, upload as post};
use nerve_tests::Nerve;

/// Uploads all of them; their names, and what their dead letters say.
pub(super) async fn upload(nerve: &Nerve) -> Vec<(String, &'static str)> {
    let documents = documents();
    for (index, (name, body, _)) in documents.iter().enumerate() {
        let media_type = match name.rsplit_once('.').expect("an ending").1 {
            "pdf" => "application/pdf",
            "html" => "text/html",
            "md" => "text/markdown",
            _ => "text/plain",
        };
        post(nerve, &format!("bad-{}", index % 3), name, media_type, body.clone()).await;
    }
    documents.into_iter().map(|(name, _, said)| (name.to_owned(), said)).collect()
}

fn documents() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let whole = pdf(b"BT /F1 12 Tf 72 720 Td (Whole.) Tj ET", "", "");
    let replaced = |from: &str, to: &str| {
        let text = String::from_utf8(whole.clone()).expect("a PDF in ASCII");
        assert!(text.contains(from), "{from}");
        text.replace(from, to).into_bytes()
    };
    let attributes: Vec<String> = (0..250_000).map(|number| format!("a{number}=1")).collect();
    let nested = |open: &str, close: &str| format!("{}x{}", open.repeat(300_000), close.repeat(300_000));
    vec![
        ("form-in-itself.pdf", pdf(b"/X Do", "", "/X Do"), "nested too deeply"),
        ("inflated.pdf", pdf(&deflated_blanks(1024), "/Filter /FlateDecode", ""), "more than 256 MiB"),
        ("cut.pdf", whole[..whole.len() / 2].to_vec(), "PDF"),
        ("head.pdf", b"%PDF-1.7\n".to_vec(), "PDF"),
        (
            "noise.pdf",
            [
                &b"%PDF-1.7\n"[..],
                &(0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>(),
            ]
            .concat(),
            "PDF",
        ),
        ("far-table.pdf", replaced("startxref\n", "startxref\n9999999999999"), "PDF"),
        ("arrays.pdf", pdf(nested("[", "]").as_bytes(), "", ""), ""),
        ("reopened.html", "<font><i><b><p>".repeat(200_000).into_bytes(), "more than 256 MiB"),
        ("attributes.html", format!("<p {}>x</p>", attributes.join(" ")).into_bytes(), "longer than 15s"),
        ("not-utf8.html", [&b"<p>"[..], &[0xff; 1000]].concat(), "UTF-8"),
        ("not-utf8.txt", vec![0x80; 1 << 20], "UTF-8"),
        ("not-utf8.md", vec![0xc0; 10], "UTF-8"),
    ]
}
