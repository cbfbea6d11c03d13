use super::*;

#[test]
fn counter_subject_encodes_any_name() {
    for name in ["git-hub_2", "key/ada", "collection/a.b c>*", "é%"] {
        let counter = Counter { scope: DuplicateScope::Caller, name: name.to_owned(), reason: DuplicateReason::Id };
        let subject = counter.to_string();
        assert_eq!(subject.split('.').count(), 4, "{subject}");
        assert!(subject.is_ascii() && !subject.contains([' ', '*', '>']), "{subject}");
        assert_eq!(parts_of(&subject), Some((name.to_owned(), "id")));
    }
    let source = Counter { scope: DuplicateScope::Source, name: "github".to_owned(), reason: DuplicateReason::Window };
    assert_eq!(source.to_string(), "drops.source.github.window");
    assert_eq!(parts_of("drops.source"), None);
}

#[test]
fn counts_are_summed_until_they_are_written() {
    let drops = DuplicateCounters::default();
    drops.count(DuplicateScope::Source, "a", DuplicateReason::Id, 0);
    assert!(drops.next().is_none());
    for number in [1, 2] {
        drops.count(DuplicateScope::Source, "a", DuplicateReason::Id, number);
    }
    drops.count(DuplicateScope::Source, "a", DuplicateReason::Signed, 5);
    let first = drops.next().unwrap();
    drops.count(DuplicateScope::Source, "a", DuplicateReason::Id, 4);
    let again = drops.next().unwrap();
    assert_eq!((first.number, first.message_id.as_str()), (3, again.message_id.as_str()), "until it is acknowledged");
    drops.unwritten().writing = None;
    let next = drops.next().unwrap();
    assert_eq!((next.number, next.counter.reason), (4, DuplicateReason::Id));
    drops.unwritten().writing = None;
    assert_eq!(drops.next().unwrap().number, 5);
}

#[test]
fn number_of_waiting_counters_is_limited() {
    let drops = DuplicateCounters::default();
    for number in 0..=MAX_WAITING_COUNTERS {
        drops.count(DuplicateScope::Caller, &number.to_string(), DuplicateReason::Id, 1);
    }
    drops.count(DuplicateScope::Caller, "0", DuplicateReason::Id, 1);
    let unwritten = drops.unwritten();
    assert_eq!(unwritten.counts.len(), MAX_WAITING_COUNTERS);
    assert_eq!(unwritten.counts.values().max(), Some(&2));
}
