use super::*;

fn read(text: &str) -> Vec<Reading> {
    ended(text, LineEnd::Newline)
}

fn ended(text: &str, end: LineEnd) -> Vec<Reading> {
    Line { bytes: text.as_bytes().to_vec(), end }.read()
}

/// The only mistake in the line.
#[track_caller]
fn mistake(text: &str) -> Mistake {
    match read(text).pop() {
        Some(Reading::Mistake(mistake)) => mistake,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn emissions(text: &str) -> Vec<Emission> {
    match read(text).pop() {
        Some(Reading::Answer(7, Answer::Done(Ok(emissions)))) => emissions,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn right_answer_is_read_as_written() {
    assert!(emissions(r#"{"id":7,"events":[]}"#).is_empty());
    assert!(emissions(r#" {"events": [], "id": 7, "error": null, "emit": null} "#).is_empty());
    assert!(emissions("\u{feff}{\"id\":7,\"events\":[]}\r").is_empty());
    let made = emissions(r#"{"id":7,"events":[{"type":"b","data":{"n":1.0},"subject":null,"partitionkey":"k"}]}"#);
    assert_eq!((&made[0].data[..], made[0].partition_key.as_deref()), (&br#"{"n":1.0}"#[..], Some("k")));
    let bytes = emissions(r#"{"id":7,"events":[{"type":"b","data_base64":"AP8=","datacontenttype":"image/png"}]}"#);
    assert_eq!(bytes[0].data[..], [0, 255]);
    let text = emissions(r#"{"id":7,"events":[{"type":"b","data":"x","datacontenttype":"text/plain"}]}"#);
    assert_eq!(text[0].data, "x");
    let failed = read(r#"{"id":7,"error":{"kind":"retry","message":"later"}}"#);
    let error = FunctionError::new(Fault::Retry { after: None }, "later");
    assert_eq!(failed, [Reading::Answer(7, Answer::Done(Err(error)))]);
    let early = read(r#"{"id":7,"emit":{"type":"b"}}"#);
    assert!(matches!(early.as_slice(), [Reading::Answer(7, Answer::Emit(emission))] if emission.ty.as_str() == "b"));
}

#[test]
fn event_that_is_passed_on_keeps_what_nerve_sets() {
    let passed = r#"{"specversion":"1.0","id":"1","source":"/s","time":"2026-01-01T00:00:00Z","correlationid":"c",
        "causationid":"d","traceparent":"00-1-2-01","type":"b","data":1}"#;
    assert_eq!(emissions(&format!(r#"{{"id":7,"events":[{}]}}"#, passed.replace('\n', "")))[0].data, "1");
}

#[test]
fn nearly_right_answer_names_its_event_and_the_reason() {
    for (line, why) in [
        (r#"{"id":7}"#, "none of `events`, `error` and `emit`"),
        (r#"{"id":7,"events":null}"#, "\"events\": []"),
        (r#"{"id":7,"result":{"a":1}}"#, "unknown field `result`"),
        (r#"{"id":7,"events":[],"result":1}"#, "unknown field `result`"),
        (r#"{"id":7,"event":{"type":"b"}}"#, "unknown field `event`"),
        (r#"{"id":7,"events":{"type":"b"}}"#, "expected a sequence"),
        (r#"{"id":7,"events":["b"]}"#, r#"expected an event, as {"type""#),
        (r#"{"id":7,"events":[{"type":"b","payload":{}}]}"#, "unknown field `payload`"),
        (r#"{"id":7,"events":[{"data":1}]}"#, "missing field `type`"),
        (r#"{"id":7,"events":[{"type":"b > c"}]}"#, "cannot be published"),
        (r#"{"id":7,"events":[{"type":"b","datacontenttype":"a/b\r\nNats-Msg-Id: 1"}]}"#, "is no media type"),
        (r#"{"id":7,"events":[{"type":"b","data":1,"data_base64":"AA=="}]}"#, "exclude each other"),
        (r#"{"id":7,"events":[{"type":"b","data_base64":"?"}]}"#, "not base64"),
        (r#"{"id":7,"events":[{"type":"b","data":NaN}]}"#, "not valid JSON"),
        (r#"{"id":7,"events":[{"type":"b","data":1}]"#, "not valid JSON"),
        (r#"{"id":7,"events":[],"events":[]}"#, "duplicate field"),
        (r#"{"id":7,"events":[],"error":{"kind":"retry","message":"x"}}"#, "more than one"),
        (r#"{"id":7,"events":[],"emit":{"type":"b"}}"#, "more than one"),
        (r#"{"id":7,"emit":[{"type":"b"}]}"#, "expected"),
        (r#"{"id":7,"emit":{"data":1}}"#, "missing field `type`"),
        (r#"{"id":7,"error":"boom"}"#, r#"expected an object, as {"kind""#),
        (r#"{"id":7,"error":{"kind":"fatal","message":"x"}}"#, "unknown variant `fatal`"),
        (r#"{"id":7,"error":{"message":"x"}}"#, "missing field `kind`"),
        (r#"{"id":7,"error":{"kind":"retry","message":"x","after":"5s"}}"#, "unknown field `after`"),
        (r#"{"id":7,"level":"error","error":"boom"}"#, "unknown field `level`"),
        (r#"{"id":"7","events":[]}"#, "invalid type: string"),
        (r#"{"id":7.0,"events":[]}"#, "invalid type: floating point"),
        (r#"{"id":7,"events":[]},"#, "more text follows"),
        (r#"{'id': 7, 'events': []}"#, "not valid JSON"),
        (r#"[{"id":7,"events":[]}]"#, "a list"),
    ] {
        let mistake = mistake(line);
        assert_eq!(mistake.ids, [7], "{line}");
        assert!(mistake.why.contains(why), "{line}: {}", mistake.why);
    }
}

#[test]
fn answer_without_a_usable_id_is_a_mistake_of_no_event() {
    for line in [
        r#"{"type":"b","payload":{"id":7}}"#,
        r#"{"events":[{"id":7,"type":"b"}]}"#,
        r#"{"error":"boom"}"#,
        r#"{"id":-7,"events":[]}"#,
        r#"{"id":null,"events":[]}"#,
        r#"{"result": "\"id\": 7"}"#,
    ] {
        assert!(mistake(line).ids.is_empty(), "{line}");
    }
}

#[test]
fn every_answer_of_a_line_counts() {
    let both = read(r#"{"id":7,"events":[]}{"id":8,"events":[]}"#);
    assert!(matches!(both.as_slice(), [Reading::Answer(7, _), Reading::Answer(8, _)]), "{both:?}");
    let second = read(r#"{"id":7,"events":[]} {"id":8,"events":NaN}"#);
    let [Reading::Answer(7, _), Reading::Mistake(mistake)] = second.as_slice() else { panic!("{second:?}") };
    assert_eq!(mistake.ids, [8]);
    assert_eq!(super::keys::Keys::of(br#"[{"id":7,"events":[{"id":9}]},{"id":8}]"#).ids, [7, 8]);
}

#[test]
fn other_text_is_no_answer() {
    for line in [
        "a greeting",
        "[INFO] {\"id\": 7}",
        "[1, 2]",
        "7",
        "{",
        "{'a': 1}",
        r#"{"_aws":{"Timestamp":1},"latency":3}"#,
        r#"{"level":30,"time":1,"pid":2,"hostname":"h","msg":"m","id":7}"#,
        r#"{"event":"started","level":"info"}"#,
        r#"{"severity":"ERROR","error":"boom"}"#,
    ] {
        assert_eq!(read(line), [Reading::Text], "{line}");
    }
    assert!(read("  \r").is_empty());
}

#[test]
fn line_that_was_cut_is_a_mistake_only_where_its_writer_lives() {
    let start = r#"{"id":7,"events":[{"type":"b","data":"xx"#;
    assert_eq!(ended(start, LineEnd::Pipe), [Reading::Text]);
    let cut = ended(start, LineEnd::Limit);
    let [Reading::Mistake(mistake)] = cut.as_slice() else { panic!("{cut:?}") };
    assert!(mistake.ids == [7] && mistake.why.contains("longer than"), "{mistake:?}");
    let whole = ended(r#"{"id":7,"events":[]}"#, LineEnd::Pipe);
    assert!(matches!(whole.as_slice(), [Reading::Answer(7, _)]), "{whole:?}");
}

#[test]
fn quote_is_bounded() {
    let line = |text: String| Line { bytes: text.into_bytes(), end: LineEnd::Newline }.quote();
    assert_eq!(line(" {} ".to_owned()), "{}");
    assert!(line("ü".repeat(1000)).len() < 210);
}

#[test]
fn line_of_many_objects_or_events_is_read_up_to_its_limits() {
    let readings = read(&r#"{"id":7}"#.repeat(MAX_OBJECTS + 9));
    assert_eq!(readings.len(), MAX_OBJECTS + 1);
    assert!(matches!(readings.last(), Some(Reading::Mistake(mistake)) if mistake.why.contains("4096 objects")));
    let events = vec![r#"{"type":"b"}"#; MAX_EVENTS + 1].join(",");
    let mistake = mistake(&format!(r#"{{"id":7,"events":[{events}]}}"#));
    assert!(mistake.ids == [7] && mistake.why.contains("10001 events"), "{mistake:?}");
}
