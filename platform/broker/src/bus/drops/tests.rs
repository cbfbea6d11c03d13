use super::*;

#[test]
fn counter_stands_in_a_subject_whatever_its_name() {
    for name in ["git-hub_2", "key/ada", "collection/a.b c>*", "é%"] {
        let counter = Counter { scope: DropScope::Caller, name: name.to_owned(), reason: DropReason::Id };
        let subject = counter.to_string();
        assert_eq!(subject.split('.').count(), 4, "{subject}");
        assert!(subject.is_ascii() && !subject.contains([' ', '*', '>']), "{subject}");
        assert_eq!(parts_of(&subject), Some((name.to_owned(), "id")));
    }
    let source = Counter { scope: DropScope::Source, name: "github".to_owned(), reason: DropReason::Window };
    assert_eq!(source.to_string(), "drops.source.github.window");
    assert_eq!(parts_of("drops.source"), None);
}

#[test]
fn counts_add_up_until_they_are_written() {
    let drops = Drops::default();
    drops.count(DropScope::Source, "a", DropReason::Id, 0);
    assert!(drops.next().is_none());
    for number in [1, 2] {
        drops.count(DropScope::Source, "a", DropReason::Id, number);
    }
    drops.count(DropScope::Source, "a", DropReason::Signed, 5);
    let first = drops.next().unwrap();
    drops.count(DropScope::Source, "a", DropReason::Id, 4);
    let again = drops.next().unwrap();
    assert_eq!((first.number, first.message_id.as_str()), (3, again.message_id.as_str()), "until it is acknowledged");
    drops.unwritten().writing = None;
    let next = drops.next().unwrap();
    assert_eq!((next.number, next.counter.reason), (4, DropReason::Id));
    drops.unwritten().writing = None;
    assert_eq!(drops.next().unwrap().number, 5);
}

#[test]
fn counters_that_wait_are_bounded() {
    let drops = Drops::default();
    for number in 0..=MAX_WAITING_COUNTERS {
        drops.count(DropScope::Caller, &number.to_string(), DropReason::Id, 1);
    }
    drops.count(DropScope::Caller, "0", DropReason::Id, 1);
    let unwritten = drops.unwritten();
    assert_eq!(unwritten.counts.len(), MAX_WAITING_COUNTERS);
    assert_eq!(unwritten.counts.values().max(), Some(&2));
}
