//! Shopify.

use super::{
    super::scheme::{Scheme, SignatureScheme},
    EMPTY, body, header, id, one, ty,
};
use nerve_core::manifest::Encoding;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme { encoding: Encoding::Base64, ..body("x-shopify-hmac-sha256", "") }),
    id: id(header("x-shopify-webhook-id")),
    ty: ty(header("x-shopify-topic")),
    subject: header("x-shopify-shop-domain"),
    ..EMPTY
};
