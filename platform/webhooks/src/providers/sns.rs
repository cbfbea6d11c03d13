//! Amazon SNS.

use super::{
    super::scheme::{Handshake, KeyPrefix, Scheme, SignatureScheme, ValueLocation},
    EMPTY, HMAC, id, pointer, ty,
};
use nerve_core::manifest::{Algorithm, Encoding, TimestampUnit};

const SNS_2: SignatureScheme<'static> = SignatureScheme {
    signature: ValueLocation::Pointer("/Signature"),
    algorithm: Algorithm::RsaSha256,
    encoding: Encoding::Base64,
    key_prefix: KeyPrefix::Certificate,
    signed: "{sns}",
    timestamp: Some((ValueLocation::Pointer("/Timestamp"), TimestampUnit::Rfc3339)),
    guard_field: Some(("/SignatureVersion", "2")),
    ..HMAC
};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: [
        Some(SNS_2),
        Some(SignatureScheme { algorithm: Algorithm::RsaSha1, guard_field: Some(("/SignatureVersion", "1")), ..SNS_2 }),
    ],
    id: id(pointer("/MessageId")),
    ty: ty(pointer("/Type")),
    subject: pointer("/TopicArn"),
    handshake: Some(Handshake::Sns),
    ..EMPTY
};
