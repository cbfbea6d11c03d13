//! The documentation of a route, from which its operation is made.

use crate::{
    api::{
        idempotency::MAX_KEY_BYTES,
        openapi::{KEY_SCHEME, Schemas, event_schema_name},
    },
    http::problem::{self, Document, ErrorFormat, OpenAiError, ProblemType},
    routes::{Access, Route, Thread},
};
use http::StatusCode;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        Content, HttpMethod, Ref, RefOr, Required, Response, Schema,
        header::{Header, HeaderBuilder},
        path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn},
        request_body::{RequestBody, RequestBodyBuilder},
        schema::{AllOfBuilder, AnyOfBuilder, ArrayBuilder, ObjectBuilder, Type},
        security::SecurityRequirement,
    },
};

/// The documentation of a route's handler.
pub(crate) struct Docs {
    operation: Operation,
    responses: BTreeMap<u16, Response>,
    schemas: Schemas,
    problems: Vec<ProblemType>,
    format: ErrorFormat,
}

/// Each event of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the fields of frames, which api::sse writes")]
struct ServerSentEvent {
    /// The value that the client sends as `Last-Event-ID` to resume after this event.
    id: Option<String>,
    /// The name of the event; `message` if it has none.
    event: Option<String>,
    /// The data: JSON, or `[DONE]`.
    data: String,
}

/// A text.
pub(crate) fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).into()
}

/// A text of at least one character, of ASCII if its length is limited.
fn nonempty_text(max_length: Option<usize>) -> RefOr<Schema> {
    let pattern = max_length.map(|_| "^[ -~]+$");
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    text.max_length(max_length).pattern(pattern).into()
}

/// Any JSON.
pub(crate) fn any() -> RefOr<Schema> {
    Value::schema()
}

/// A list of such values.
pub(crate) fn list_of(item: impl Into<RefOr<Schema>>) -> RefOr<Schema> {
    ArrayBuilder::new().items(item.into()).into()
}

/// One of these.
pub(crate) fn one_of<const N: usize>(schemas: [RefOr<Schema>; N]) -> RefOr<Schema> {
    // One value may be an example of several.
    schemas.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).into()
}

impl Docs {
    /// What the route table says of a route.
    pub(super) fn of(route: &Route) -> Self {
        let id = format!("{}{}", route.method.to_lowercase(), route.path.replace(['/', '.', '-'], "_"));
        let tag =
            route.path.trim_start_matches("/v1").split('/').nth(1).filter(|tag| !tag.is_empty()).unwrap_or("gateway");
        let operation = OperationBuilder::new()
            .operation_id(Some(id.replace(['{', '}'], "")))
            .summary(Some(route.summary))
            .tag(tag.split('.').next().unwrap_or(tag));
        let operation = match route.access {
            Access::Public => operation,
            Access::Caller => operation.security(SecurityRequirement::new(KEY_SCHEME, Vec::<String>::new())),
        };
        let problems = common_problems(route);
        let (responses, schemas) = (BTreeMap::new(), Schemas::new());
        Self { operation: operation.build(), responses, schemas, problems, format: route.errors }
    }

    /// The parameter of the path.
    pub(crate) fn path(mut self, name: &str, description: &str) -> Self {
        self.problems.push(ProblemType::NotFound);
        self.parameter(ParameterIn::Path, (name, description), nonempty_text(None))
    }

    /// An optional header of the request.
    pub(crate) fn header(self, name: &str, description: &str) -> Self {
        self.parameter(ParameterIn::Header, (name, description), text())
    }

    /// The header with which a client resumes a stream.
    pub(crate) fn resumable(self, description: &str) -> Self {
        let sequence = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        self.parameter(ParameterIn::Header, ("Last-Event-ID", description), sequence.into())
    }

    /// The header by which a repeated request is recognized.
    pub(crate) fn idempotent(self) -> Self {
        let description =
            "A request that is repeated with the same key within gateway.idempotency_window is executed once";
        let types = [ProblemType::IdempotencyKeyReused, ProblemType::InProgress];
        let key = nonempty_text(Some(MAX_KEY_BYTES));
        self.parameter(ParameterIn::Header, ("Idempotency-Key", description), key).problems(&types).problems(BROKER)
    }

    /// The query, as the handler reads it.
    pub(crate) fn query<T: IntoParams>(mut self) -> Self {
        let parameters = T::into_params(|| Some(ParameterIn::Query));
        self.operation.parameters.get_or_insert_default().extend(parameters);
        self
    }

    fn parameter(mut self, place: ParameterIn, (name, description): (&str, &str), schema: RefOr<Schema>) -> Self {
        let required = if place == ParameterIn::Path { Required::True } else { Required::False };
        let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(required);
        let parameter = parameter.description(Some(description)).schema(Some(schema)).build();
        self.operation.parameters.get_or_insert_default().push(parameter);
        self
    }

    /// A body of JSON, as the handler reads it.
    pub(crate) fn body<T: ToSchema>(mut self) -> Self {
        let schema = self.schema_of::<T>();
        self.problems.push(ProblemType::InvalidJson);
        self.body_like("application/json", schema)
    }

    /// A body of another media type or schema, beside those of earlier calls.
    pub(crate) fn body_like(mut self, media_type: &str, schema: RefOr<Schema>) -> Self {
        use ProblemType::{BodyTooLarge, Overloaded, SlowBody, TruncatedBody, UnsupportedMediaType};
        self.problems.extend([TruncatedBody, SlowBody, BodyTooLarge, UnsupportedMediaType, Overloaded]);
        let mut body = self.operation.request_body.take().unwrap_or_else(required_body);
        body.content.insert(media_type.to_owned(), Content::new(Some(schema)));
        self.operation.request_body = Some(body);
        self
    }

    /// A response of JSON, as the handler writes it.
    pub(crate) fn json<T: ToSchema>(mut self, status: u16, description: &str) -> Self {
        let schema = self.schema_of::<T>();
        self.json_like(status, description, schema)
    }

    /// A response of JSON with a schema.
    pub(crate) fn json_like(self, status: u16, description: &str, schema: RefOr<Schema>) -> Self {
        self.content(status, description, Some(("application/json", schema)))
    }

    /// A response of text.
    pub(crate) fn text(self, status: u16, description: &str) -> Self {
        self.content(status, description, Some(("text/plain", text())))
    }

    /// A response that is a stream of server-sent events.
    pub(crate) fn stream(mut self, status: u16, description: &str) -> Self {
        let schema = self.schema_of::<ServerSentEvent>();
        self.content(status, description, Some(("text/event-stream", schema)))
    }

    /// A response without a body.
    pub(crate) fn empty(self, status: u16, description: &str) -> Self {
        self.content(status, description, None)
    }

    /// Problems that the handler responds with.
    pub(crate) fn problems(mut self, types: &[ProblemType]) -> Self {
        self.problems.extend(types);
        self
    }

    /// The reference to the schema of a type.
    pub(crate) fn schema_of<T: ToSchema>(&mut self) -> RefOr<Schema> {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        for (name, schema) in schemas {
            insert(&mut self.schemas, name, schema);
        }
        RefOr::Ref(Ref::from_schema_name(T::name()))
    }

    fn content(mut self, status: u16, description: &str, content: Option<(&str, RefOr<Schema>)>) -> Self {
        let response = self.response(status, description);
        if let Some((media_type, schema)) = content {
            response.content.insert(media_type.to_owned(), Content::new(Some(schema)));
        }
        self
    }

    /// The response with this status, whose description gets this one too.
    fn response(&mut self, status: u16, description: &str) -> &mut Response {
        let response = self.responses.entry(status).or_insert_with(|| Response::new(""));
        if !response.description.contains(description) {
            let separator = if response.description.is_empty() { "" } else { "; " };
            response.description.push_str(separator);
            response.description.push_str(description);
        }
        response
    }

    /// The operation; adds its schemas to those of the document.
    pub(super) fn finish(mut self, schemas: &mut Schemas) -> Operation {
        let format = self.format;
        let (schema, media_type) = match format {
            ErrorFormat::Problem => (self.schema_of::<Document<'_>>(), problem::MEDIA_TYPE),
            ErrorFormat::OpenAi => (self.schema_of::<OpenAiError<'_>>(), "application/json"),
        };
        let mut by_status: BTreeMap<StatusCode, Vec<ProblemType>> = BTreeMap::new();
        for ty in std::mem::take(&mut self.problems) {
            let types = by_status.entry(ty.status()).or_default();
            if !types.contains(&ty) {
                types.push(ty);
            }
        }
        for (status, types) in by_status {
            let described: Vec<String> = types.iter().map(|ty| format!("{} (`{}`)", ty.title(), ty.uri())).collect();
            let response = self.response(status.as_u16(), &described.join("; "));
            let of_types = AllOfBuilder::new().item(schema.clone()).item(types_schema(format, &types));
            response.content.insert(media_type.to_owned(), Content::new(Some(of_types)));
            if types.iter().any(|ty| ty.has_retry_after()) {
                response.headers.insert("Retry-After".to_owned(), retry_after());
            }
        }
        self.response(431, "The head of the request exceeds 64 KiB");
        for (name, schema) in self.schemas {
            insert(schemas, name, schema);
        }
        for (status, response) in self.responses {
            self.operation.responses.responses.insert(status.to_string(), RefOr::T(response));
        }
        self.operation
    }
}

/// A schema that allows these types of problems only.
fn types_schema(format: ErrorFormat, types: &[ProblemType]) -> ObjectBuilder {
    let names = |name: fn(ProblemType) -> &'static str| {
        let names: Vec<&str> = types.iter().map(|ty| name(*ty)).collect();
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names))
    };
    match format {
        ErrorFormat::Problem => ObjectBuilder::new().property("type", names(ProblemType::uri)),
        ErrorFormat::OpenAi => {
            let code = ObjectBuilder::new().property("code", names(ProblemType::name));
            ObjectBuilder::new().property("error", code)
        }
    }
}

/// While NATS is unavailable or full.
pub(crate) const BROKER: &[ProblemType] =
    &[ProblemType::BrokerUnavailable, ProblemType::StorageUnavailable, ProblemType::UpstreamRefused];

/// What the listener, the middleware and authentication respond with, on any route of this access and thread.
fn common_problems(route: &Route) -> Vec<ProblemType> {
    use ProblemType::{
        Forbidden, Internal, InvalidRequest, LocalCallersOnly, NotServing, Overloaded, RateLimited, Unauthenticated,
    };
    let mut problems = vec![InvalidRequest, LocalCallersOnly, Internal, NotServing];
    if route.thread != Thread::Unlimited {
        problems.push(Overloaded);
    }
    if route.access == Access::Caller {
        problems.extend([Unauthenticated, Forbidden, RateLimited]);
    }
    problems
}

/// The reference to the schema of the data of an event type.
pub(crate) fn event_schema(ty: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(event_schema_name(ty)))
}

pub(super) fn method(name: &str) -> Option<HttpMethod> {
    Some(match name {
        "GET" => HttpMethod::Get,
        "POST" => HttpMethod::Post,
        "DELETE" => HttpMethod::Delete,
        "OPTIONS" => HttpMethod::Options,
        _ => return None,
    })
}

fn insert(schemas: &mut Schemas, name: String, schema: RefOr<Schema>) {
    // Two types of one name would be one in the document.
    #[cfg(test)]
    assert!(schemas.get(&name).is_none_or(|known| *known == schema), "two types have the schema name {name}");
    schemas.insert(name, schema);
}

fn required_body() -> RequestBody {
    RequestBodyBuilder::new().required(Some(Required::True)).build()
}

fn retry_after() -> Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    HeaderBuilder::new().schema(seconds).description(Some("Seconds until a retry may succeed")).build()
}
