//! The fields of spans and log lines.

use std::{
    error::Error,
    fmt::{self, Debug},
};
use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::{RecordFields, VisitOutput},
    fmt::{
        FormatFields,
        format::{DefaultVisitor, Writer},
    },
};

/// Formats fields as `tracing_subscriber` does by default. Every request and delivery has a span: text and numbers, its fields, are
/// written without the formatting machinery, which takes more than half of a span's time.
pub(crate) struct LogFields;

impl<'w> FormatFields<'w> for LogFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = FieldVisitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct FieldVisitor<'w> {
    writer: Writer<'w>,
    /// Whether no field has been written.
    is_first: bool,
    result: fmt::Result,
}

impl FieldVisitor<'_> {
    fn by_default(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        let mut default = DefaultVisitor::new(self.writer.by_ref(), self.is_first);
        record(&mut default);
        self.result = self.result.and(default.finish());
        self.is_first = false;
    }

    fn write_plain(&mut self, name: &str, quote: &str, value: &str) {
        let separator = if self.is_first { "" } else { " " };
        let mut pieces = [separator, name, "=", quote, value, quote].into_iter();
        let written = pieces.try_for_each(|piece| self.writer.write_str(piece));
        self.result = self.result.and(written);
        self.is_first = false;
    }
}

impl Visit for FieldVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let needs_escapes = |byte: u8| matches!(byte, b'"' | b'\\' | b'\'') || !(b' '..=b'~').contains(&byte);
        let is_plain = !self.writer.has_ansi_escapes() && !value.bytes().any(needs_escapes);
        match field.name() {
            name if is_plain && name != "message" && !name.starts_with("r#") => self.write_plain(name, "\"", value),
            _ => self.by_default(|visitor| visitor.record_str(field, value)),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match self.writer.has_ansi_escapes() {
            false => self.write_plain(field.name(), "", itoa::Buffer::new().format(value)),
            true => self.by_default(|visitor| visitor.record_u64(field, value)),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.by_default(|visitor| visitor.record_error(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.by_default(|visitor| visitor.record_debug(field, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use tracing_subscriber::fmt::{MakeWriter, format::DefaultFields};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What is logged with these fields.
    fn logged<F: for<'w> FormatFields<'w> + Send + Sync + 'static>(fields: F, has_colors: bool) -> String {
        let log = Log::default();
        let logger = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(has_colors).without_time();
        tracing::subscriber::with_default(logger.fmt_fields(fields).finish(), || {
            let failure = Failure::new("it fails").cause("a cause");
            let error: &(dyn Error + 'static) = &failure;
            let span = tracing::info_span!(
                "s",
                id = 7_u64,
                text = "plain",
                odd = "a \"b\" é\n",
                r#type = "t",
                e = tracing::field::Empty
            );
            let _entered = span.enter();
            span.record("e", "later");
            tracing::info!(text = "plain", count = 3, big = u64::MAX, ?span, %failure, error, "a message {}", "\u{1b}[1m");
            tracing::info!(only = "a'b");
            tracing::info!("only a message");
        });
        let bytes = log.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn fields_are_written_as_by_default() {
        for has_colors in [false, true] {
            assert_eq!(logged(LogFields, has_colors), logged(DefaultFields::new(), has_colors));
        }
        assert!(logged(LogFields, false).contains("s{id=7 text=\"plain\""));
    }
}
