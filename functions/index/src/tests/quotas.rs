//! Quotas of documents.

use super::*;
use nerve_core::quota::{Quota, QuotaKind, Quotas};

#[test]
fn document_over_its_quota_is_not_written() {
    for_both_kinds(|index| {
        let quota = Quota { documents: Some(2), documents_bytes: Some(20), ..Quota::default() };
        let quotas = Quotas { default: Quota::default(), own: [("default".to_owned(), quota)].into() };
        let over = |changes: &[Change]| match index.apply_with_quotas(changes, &quotas) {
            Err(IndexError::QuotaExceeded(over)) => over.kind,
            other => panic!("{other:?}"),
        };
        index.apply_with_quotas(&[replace("a", 1, &[("ten bytes.", 1)])], &quotas).unwrap();
        assert_eq!(over(&[replace("b", 1, &[("eleven byte", 2)])]), QuotaKind::DocumentsBytes);
        // A batch is rejected as a whole, including documents that would fit.
        assert_eq!(over(&[replace("b", 1, &[("b", 2)]), replace("c", 1, &[("c", 3)])]), QuotaKind::Documents);
        assert_eq!(index.collection_usage("default").unwrap(), (1, 10));
        index.apply_with_quotas(&[replace("b", 1, &[("b", 2)])], &quotas).unwrap();
        // A replaced document counts once, and a deletion frees its quota.
        index.apply_with_quotas(&[replace("b", 2, &[("another b", 2)])], &quotas).unwrap();
        assert_eq!(over(&[replace("c", 1, &[("c", 3)])]), QuotaKind::Documents);
        index.apply_with_quotas(&[Change::Remove(document("a", 2))], &quotas).unwrap();
        index.apply_with_quotas(&[replace("c", 1, &[("c", 3)])], &quotas).unwrap();
        assert_eq!(index.collection_usage("default").unwrap(), (2, 10));
    });
}
