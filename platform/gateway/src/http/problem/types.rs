//! The types of problems, each with its status, its title and its documentation.

use http::StatusCode;

/// Declares [`ProblemType`]. Each variant is its name in the URI, its status, whether the response has `Retry-After`, its title, and its
/// cause and the next step.
macro_rules! problem_types {
    ($($variant:ident: $name:literal, $status:ident, $retry:ident, $title:literal, $documentation:literal;)*) => {
        /// The type of a problem: what the caller has to do, not where it happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum ProblemType {
            $(#[doc = $documentation] $variant,)*
        }

        impl ProblemType {
            /// Every type, by status.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            const fn about(self) -> About {
                match self {
                    $(Self::$variant => About {
                        name: $name,
                        uri: concat!("/problems/", $name),
                        status: StatusCode::$status,
                        retry: Retry::$retry,
                        title: $title,
                        documentation: $documentation,
                    },)*
                }
            }
        }
    };
}

/// The facts about a type.
struct About {
    name: &'static str,
    uri: &'static str,
    status: StatusCode,
    retry: Retry,
    title: &'static str,
    documentation: &'static str,
}

/// Whether the response says when to retry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// It has `Retry-After`.
    Later,
    /// It has none: the same request gets the same response until something is changed.
    No,
}

problem_types! {
    InvalidRequest: "invalid-request", BAD_REQUEST, No, "Invalid request",
        "A header, a parameter or a field has an invalid value, or a required one is missing. Correct the one that the detail names.";
    InvalidJson: "invalid-json", BAD_REQUEST, No, "Invalid JSON",
        "The body is not JSON, or a field has the wrong type. Correct it at the named line and column; the schema is in /openapi.json.";
    InvalidEvent: "invalid-event", BAD_REQUEST, No, "Invalid event",
        "The request is not a valid CloudEvent, or its data violates the schema of its type. See GET /v1/event-types.";
    TruncatedBody: "truncated-body", BAD_REQUEST, No, "Truncated body",
        "The connection ended within the body, or the body is shorter than its Content-Length. Send the request again.";
    Unauthenticated: "unauthenticated", UNAUTHORIZED, No, "Missing or unknown API key",
        "The request has no key of gateway.keys. Send one in the header `Authorization: Bearer KEY`.";
    InvalidSignature: "invalid-signature", UNAUTHORIZED, No, "Invalid signature",
        "The webhook is unsigned, signed with another secret, or too old. Compare the secret with that of the sender, and the clocks.";
    Forbidden: "forbidden", FORBIDDEN, No, "Forbidden",
        "The key is for another collection, or the address or the verify token of a webhook sender is not allowed. Use another key, or \
         allow the sender in the manifest of the source.";
    LocalCallersOnly: "local-callers-only", FORBIDDEN, No, "Local callers only",
        "Without gateway.keys the API answers only the user of the server on the same machine, and no foreign web page. Configure a key.";
    NotFound: "not-found", NOT_FOUND, No, "Not found",
        "There is no such path, or what the path or the body names does not exist. Correct the name, or deploy what is missing.";
    MethodNotAllowed: "method-not-allowed", METHOD_NOT_ALLOWED, No, "Method not allowed",
        "The path has no such method. The header Allow lists those that it has.";
    SlowBody: "slow-body", REQUEST_TIMEOUT, No, "Body too slow",
        "The body did not arrive in time. Send it faster, or in several smaller requests.";
    Conflict: "conflict", CONFLICT, No, "Conflict",
        "The state of the resource does not allow the request: the answer is complete, in progress or cancelled, or the signed bytes of \
         the webhook were accepted before. Read the state, then decide.";
    AnswerExpired: "answer-expired", GONE, No, "Answer expired",
        "The answer of this Idempotency-Key is no longer stored (streams.answers_max_age). Ask again with a new key.";
    BodyTooLarge: "body-too-large", PAYLOAD_TOO_LARGE, No, "Body too large",
        "The body or the number of its items exceeds a limit. Send less per request, or raise the limit that the detail names.";
    UnsupportedMediaType: "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, No, "Unsupported media type",
        "The body is compressed, or in a format of CloudEvents other than JSON. Send it uncompressed, as JSON.";
    InputRefused: "input-refused", UNPROCESSABLE_ENTITY, No, "Input refused by the function",
        "The function reports that its input is invalid. Correct the input; the detail has the message of the function.";
    IdempotencyKeyReused: "idempotency-key-reused", UNPROCESSABLE_ENTITY, No, "Idempotency-Key of another request",
        "Another request was sent with this Idempotency-Key. Repeat that request unchanged, or send this one with a new key.";
    RateLimited: "rate-limited", TOO_MANY_REQUESTS, Later, "Too many requests",
        "A rate or a limit of concurrent requests is reached: of the source, the key or the model. Nothing was stored; retry later.";
    QuotaExceeded: "quota-exceeded", TOO_MANY_REQUESTS, Later, "Quota exceeded",
        "The collection has used up its events per minute or tokens per day. Retry after the time in Retry-After, or raise the quota.";
    Internal: "internal", INTERNAL_SERVER_ERROR, No, "Internal error",
        "The gateway or a model failed. The detail or the log of the gateway has the cause; report a panic as a bug.";
    FunctionFailed: "function-failed", BAD_GATEWAY, No, "Function failed",
        "The function crashed or gave up. The detail has its message; correct the function, then retry.";
    UpstreamRefused: "upstream-refused", BAD_GATEWAY, No, "Refused by another service",
        "NATS or AWS refused what the gateway asked for. The log of the gateway has the cause.";
    Overloaded: "overloaded", SERVICE_UNAVAILABLE, Later, "Overloaded",
        "The limit of concurrent requests, of event streams or of memory is reached. Retry later, or raise the limit that the detail names.";
    NotServing: "not-serving", SERVICE_UNAVAILABLE, Later, "Starting or shutting down",
        "The gateway is starting or shutting down. Retry, also at another gateway.";
    BrokerUnavailable: "broker-unavailable", SERVICE_UNAVAILABLE, Later, "NATS unavailable",
        "NATS JetStream did not answer, so an event may or may not be stored. Retry with the same id or Idempotency-Key.";
    StorageUnavailable: "storage-unavailable", SERVICE_UNAVAILABLE, Later, "Storage full or unavailable",
        "The event log, a bucket or the spool is full or cannot be written. Nothing was stored; free space, or raise the limit that the \
         detail names, and retry.";
    FunctionUnavailable: "function-unavailable", SERVICE_UNAVAILABLE, Later, "Function unavailable",
        "No worker runs the function now, or the function asks for a retry. Retry later; start `nerve worker` if none runs.";
    NotDeployed: "not-deployed", SERVICE_UNAVAILABLE, No, "Pipeline not deployed",
        "No deployed function handles questions. Deploy functions/rag/nerve.toml, or run `nerve ingest`.";
    ModelUnavailable: "model-unavailable", SERVICE_UNAVAILABLE, No, "Model unavailable",
        "This server runs no models, or the files of the model cannot be loaded. Install ONNX Runtime, or add the model again.";
    SourceMisconfigured: "source-misconfigured", SERVICE_UNAVAILABLE, Later, "Source misconfigured",
        "The gateway cannot verify webhooks of this source, for example for lack of its secret. Store it with `nerve secrets set`.";
    CertificateUnavailable: "certificate-unavailable", SERVICE_UNAVAILABLE, Later, "Certificate unavailable",
        "AWS cannot be reached for the certificate that signs a webhook. AWS retries the delivery; check the network of the gateway.";
    InProgress: "in-progress", SERVICE_UNAVAILABLE, Later, "Same request in progress",
        "Another request stores the same delivery or the same Idempotency-Key at this moment. Retry to get its result.";
    Timeout: "timeout", GATEWAY_TIMEOUT, No, "Timeout",
        "The function, the model or the answer took longer than its timeout. Retry, or raise the timeout that the detail names.";
    StorageQuotaExceeded: "storage-quota-exceeded", INSUFFICIENT_STORAGE, No, "Storage quota exceeded",
        "The collection has as many documents, or as much text, as its quota allows. Delete documents, or raise the quota.";
}

impl ProblemType {
    /// The path of its documentation on the gateway, which identifies it (RFC 9457, section 3.1.1).
    pub(crate) fn uri(self) -> &'static str {
        self.about().uri
    }

    /// The last part of its URI.
    pub(crate) fn name(self) -> &'static str {
        self.about().name
    }

    pub(crate) fn status(self) -> StatusCode {
        self.about().status
    }

    pub(crate) fn title(self) -> &'static str {
        self.about().title
    }

    /// The cause and the next step.
    pub(crate) fn documentation(self) -> &'static str {
        self.about().documentation
    }

    /// Whether its responses have `Retry-After`.
    pub(crate) fn has_retry_after(self) -> bool {
        self.about().retry == Retry::Later
    }

    /// The `type` of OpenAI's errors that its clients map to the same exception.
    pub(crate) fn openai_type(self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn problem_types_are_distinct_and_documented() {
        let all = ProblemType::ALL;
        let distinct = |text: fn(ProblemType) -> &'static str| all.iter().map(|ty| text(*ty)).collect::<BTreeSet<_>>();
        assert_eq!((distinct(ProblemType::name).len(), distinct(ProblemType::title).len()), (all.len(), all.len()));
        for ty in all {
            assert!(ty.uri().strip_prefix("/problems/") == Some(ty.name()), "{ty:?}");
            assert!(
                ty.documentation().split(". ").count() >= 2 && ty.documentation().ends_with('.'),
                "{ty:?}: cause and next step"
            );
            assert!(ty.status().is_client_error() || ty.status().is_server_error(), "{ty:?}");
        }
        assert!(all.is_sorted_by_key(|ty| ty.status()), "by status");
    }
}
