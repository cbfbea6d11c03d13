//! Documents over the quota of their collection.

use super::*;
use nerve_core::quota::{Quota, QuotaKind, Quotas};

#[test]
fn no_document_is_written_over_the_quota_of_its_collection() {
    of_both(|index| {
        let quota = Quota { documents: Some(2), documents_bytes: Some(20), ..Quota::default() };
        let quotas = Quotas { default: Quota::default(), own: [("default".to_owned(), quota)].into() };
        let over = |changes: &[Change]| match index.apply_within(changes, &quotas) {
            Err(IndexError::QuotaExceeded(over)) => over.kind,
            other => panic!("{other:?}"),
        };
        index.apply_within(&[replace("a", 1, &[("ten bytes.", 1)])], &quotas).unwrap();
        assert_eq!(over(&[replace("b", 1, &[("eleven byte", 2)])]), QuotaKind::DocumentsBytes);
        // Of a batch nothing is written, not even what would fit.
        assert_eq!(over(&[replace("b", 1, &[("b", 2)]), replace("c", 1, &[("c", 3)])]), QuotaKind::Documents);
        assert_eq!(index.held_of("default").unwrap(), (1, 10));
        index.apply_within(&[replace("b", 1, &[("b", 2)])], &quotas).unwrap();
        // One that takes the place of another counts once, and a deletion makes room.
        index.apply_within(&[replace("b", 2, &[("another b", 2)])], &quotas).unwrap();
        assert_eq!(over(&[replace("c", 1, &[("c", 3)])]), QuotaKind::Documents);
        index.apply_within(&[Change::Remove(document("a", 2))], &quotas).unwrap();
        index.apply_within(&[replace("c", 1, &[("c", 3)])], &quotas).unwrap();
        assert_eq!(index.held_of("default").unwrap(), (2, 10));
    });
}
