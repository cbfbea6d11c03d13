//! `[function.NAME]`

use super::{
    BUILTINS, Batch, FunctionSpec, Run, limits,
    read::{Reader, Section, did_you_mean, parse_duration},
};
use crate::{
    EventType, ModelName, Pattern, RetryPolicy, redact,
    tool::{self, ToolSpec},
};
use std::{collections::BTreeMap, time::Duration};

const KEYS: &[&str] = &[
    "runtime",
    "source",
    "command",
    "url",
    "use",
    "model",
    "with",
    "on",
    "stream",
    "emits",
    "concurrency",
    "batch",
    "timeout",
    "memory",
    "retry",
    "env",
    "secrets",
    "tool",
];
const PLANNED: &[&str] = &["order_by", "idle", "allow"];
/// The built-in functions that call others with a key.
const TAKE_A_SECRET: [&str; 2] = ["rag/generate", "rag/agent"];
const RUNTIMES: &[&str] = &["wasm", "process", "http", "builtin"];

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<FunctionSpec> {
    reader.check_keys(table, KEYS, PLANNED);
    let run = read_run(reader, table);
    let on = reader.list(table, "on", |text| Pattern::parse(text));
    let declared = table.get("on").map(|value| value.get_ref().as_array().is_none_or(|array| !array.is_empty()));
    if !declared.unwrap_or(false) {
        let message = "a function needs at least one subject to start it, such as on = [\"events.github.>\"]";
        reader.fault(table, "on", message);
    }
    let default_memory = match &run {
        Some(Run::Process { .. }) => limits::PROCESS_MEMORY,
        _ => limits::WASM_MEMORY,
    };
    let memory = read_memory(reader, table);
    if let (Some(Run::Wasm { .. }), Some(bytes)) = (&run, memory)
        && bytes > limits::WASM_MEMORY_MAX
    {
        reader.fault(table, "memory", "a component can address at most 4GiB");
    }
    let tool = read_tool(reader, table, on.as_deref().unwrap_or_default());
    Some(FunctionSpec {
        tool,
        stream: reader.parsed(table, "stream", parse_stream),
        emits: reader.list(table, "emits", parse_emits).unwrap_or_default(),
        concurrency: read_size(reader, table, "concurrency", limits::CONCURRENCY),
        batch: read_batch(reader, table),
        timeout: reader.duration(table, "timeout", limits::TIMEOUT.1).unwrap_or(limits::TIMEOUT.0),
        memory: memory.unwrap_or(default_memory),
        retry: read_retry(reader, table, RetryPolicy::default()),
        env: read_env(reader, table),
        secrets: reader.list(table, "secrets", parse_secret_name).unwrap_or_default(),
        run: run?,
        on: on?,
    })
}

/// What agents are told of a function that they may call: it is started by that alone, and answers it.
fn read_tool(reader: &mut Reader<'_>, table: &Section<'_, '_>, on: &[Pattern]) -> Option<ToolSpec> {
    let section = reader.table(table, "tool")?;
    reader.check_keys(&section, &["description", "parameters"], &[]);
    let description = reader.string(&section, "description");
    if section.get("description").is_none() {
        reader.fault(&section, "description", "it is missing: say what the tool does, and when to use it");
    }
    let mut parameters = reader.json(&section, "parameters").unwrap_or_default();
    match parameters.get("type").map(|ty| ty.as_str()) {
        None => drop(parameters.insert("type".to_owned(), "object".into())),
        Some(Some("object")) => {}
        Some(_) => reader.fault(&section, "parameters", "arguments are an object: type = \"object\", or leave it out"),
    }
    let called = |on: &Pattern| on.as_str().strip_prefix("events.")?.strip_prefix(tool::CALLED).map(str::to_owned);
    match on.iter().map(called).collect::<Option<Vec<_>>>().as_deref() {
        Some([name]) if tool::is_name(name) => {}
        _ => {
            let message = "a tool is started by the events that call it: on = [\"events.tool.called.NAME\"], \
                           where NAME has letters, digits, - and _, and 64 of them at most";
            reader.fault(table, "on", message);
        }
    }
    let answers = table.get("emits").and_then(|emits| emits.get_ref().as_array());
    if !answers.is_some_and(|emits| emits.iter().any(|one| one.get_ref().as_str() == Some(tool::RETURNED))) {
        reader.fault(table, "emits", "a tool answers: add \"tool.returned\"");
    }
    Some(ToolSpec { description: description?, parameters })
}

fn read_run(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<Run> {
    let Some(runtime) = reader.string(table, "runtime") else {
        if table.get("runtime").is_none() {
            reader.fault(
                table,
                "runtime",
                "it is missing: say runtime = \"wasm\", \"process\", \"http\" or \"builtin\"",
            );
        }
        return None;
    };
    let taken: &[&str] = match runtime.as_str() {
        "wasm" => &["source"],
        "process" => &["command", "source"],
        "http" => &["url"],
        "builtin" => &["use", "model", "with"],
        other => {
            let message = format!("`{other}` is not a runtime{}", did_you_mean(other, RUNTIMES));
            reader.fault(table, "runtime", message);
            return None;
        }
    };
    for key in ["source", "command", "url", "use", "model", "with"].into_iter().filter(|key| !taken.contains(key)) {
        if table.get(key).is_some() {
            reader.fault(table, key, format!("runtime = \"{runtime}\" does not take it: remove it"));
        }
    }
    if let Some(required) = taken.first().filter(|key| table.get(key).is_none()) {
        reader.fault(table, required, format!("it is missing: runtime = \"{runtime}\" needs it"));
    }
    match runtime.as_str() {
        "wasm" => Some(Run::Wasm { source: reader.parsed(table, "source", parse_path)? }),
        "process" => {
            let command = reader.list(table, "command", |text| Ok::<_, String>(text.to_owned()))?;
            if command.first().is_none_or(String::is_empty) {
                reader.fault(table, "command", "it must name a program, such as [\"python3\", \"main.py\"]");
            }
            Some(Run::Process { command, source: reader.parsed(table, "source", parse_path) })
        }
        "builtin" => read_builtin(reader, table),
        _ => Some(Run::Http { url: reader.parsed(table, "url", parse_url)? }),
    }
}

fn read_builtin(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<Run> {
    for key in ["env", "memory"] {
        if table.get(key).is_some() {
            reader.fault(table, key, "a built-in function does not take it: remove it");
        }
    }
    let function = reader.parsed(table, "use", |text| match BUILTINS.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not a built-in function{}", did_you_mean(text, BUILTINS))),
    });
    let takes = function.as_deref().is_some_and(|function| TAKE_A_SECRET.contains(&function));
    if !takes && table.get("secrets").is_some() {
        let they = TAKE_A_SECRET.join(" and ");
        reader.fault(table, "secrets", format!("of the built-in functions only {they} take it: remove it"));
    }
    let model = reader.parsed(table, "model", parse_model);
    let with = reader.json(table, "with").unwrap_or_default();
    Some(Run::Builtin { function: function?, model, with })
}

/// A path when it has a `/`, else a name.
fn parse_model(text: &str) -> Result<String, String> {
    if text.contains('/') {
        let path = parse_path(text)?;
        return Ok(if path.contains('/') { path } else { format!("./{path}") });
    }
    ModelName::parse(text).map(String::from).map_err(|error| match text.ends_with(".onnx") {
        true => format!("{error}; a file beside nerve.toml is written ./{text}"),
        false => error.to_string(),
    })
}

/// A path below the manifest's folder.
fn parse_path(text: &str) -> Result<String, String> {
    let leaves = text.starts_with('/') || text.split('/').any(|part| part == "..");
    if leaves || text.contains('\\') {
        return Err(format!("`{text}` leaves the manifest's folder: use a path below it, with `/`"));
    }
    Ok(text.trim_start_matches("./").to_owned())
}

pub(super) fn parse_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !text.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err(format!("`{}` is not an http:// or https:// URL", redact::urls(text))),
    }
}

pub(super) fn parse_stream(text: &str) -> Result<String, String> {
    let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a stream's name: use letters, digits, - and _"))
    }
}

fn parse_emits(text: &str) -> Result<Pattern, String> {
    if let Some(ty) = text.strip_prefix("events.") {
        return Err(format!("it names event types, not subjects: write `{ty}`"));
    }
    Pattern::parse(text).map_err(|error| error.to_string())
}

/// One type of events, where a subject is easily written.
pub(super) fn parse_emitted_type(text: &str) -> Result<EventType, String> {
    if let Some(ty) = text.strip_prefix("events.") {
        return Err(format!("it names an event type, not a subject: write `{ty}`"));
    }
    EventType::parse(text).map_err(|error| error.to_string())
}

/// Secrets become environment variables, so their names are theirs.
pub(super) fn parse_secret_name(text: &str) -> Result<String, String> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts_well && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a secret's name: use letters, digits and _, as in OPENAI_API_KEY"))
    }
}

pub(super) fn read_size(
    reader: &mut Reader<'_>,
    table: &Section<'_, '_>,
    key: &str,
    (default, max): (usize, usize),
) -> usize {
    let number = reader.number(table, key, 1..=u64::try_from(max).unwrap_or(u64::MAX));
    number.and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
}

/// Reads a size such as `64MiB`, in bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>();
    size.map(|size| size.0).map_err(|_| format!("`{text}` is not a size: write a number and a unit, such as \"64MiB\""))
}

fn read_memory(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<u64> {
    let bytes = reader.parsed(table, "memory", parse_size)?;
    if bytes < 64 << 10 {
        reader.fault(table, "memory", "nothing runs in less than 64KiB");
    }
    Some(bytes)
}

fn read_batch(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Batch {
    let single = Batch { size: 1, wait: Duration::ZERO };
    let Some(batch) = reader.table(table, "batch") else { return single };
    reader.check_keys(&batch, &["size", "wait"], &[]);
    Batch {
        size: read_size(reader, &batch, "size", (1, limits::BATCH_SIZE)),
        wait: reader.duration(&batch, "wait", limits::BATCH_WAIT).unwrap_or_default(),
    }
}

pub(super) fn read_retry(reader: &mut Reader<'_>, table: &Section<'_, '_>, default: RetryPolicy) -> RetryPolicy {
    let Some(retry) = reader.table(table, "retry") else { return default };
    reader.check_keys(&retry, &["attempts", "backoff"], &[]);
    let attempts = reader.number(&retry, "attempts", 1..=u64::from(limits::ATTEMPTS));
    RetryPolicy {
        attempts: attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(default.attempts),
        backoff: reader
            .list(&retry, "backoff", |text| parse_duration(text, limits::BACKOFF))
            .unwrap_or(default.backoff),
    }
}

fn read_env(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> BTreeMap<String, String> {
    let Some(env) = reader.table(table, "env") else { return BTreeMap::new() };
    let names: Vec<String> = env.table.keys().map(|key| key.get_ref().to_string()).collect();
    let mut values = BTreeMap::new();
    for name in names {
        // An empty value is a value here, so this does not go through `string`.
        match env.get(&name).and_then(|value| value.get_ref().as_str()) {
            Some(value) if !value.contains('\0') && !name.is_empty() && !name.contains(['=', '\0']) => {
                values.insert(name, value.to_owned());
            }
            _ => reader.fault(&env, &name, "an environment variable is a string, and its name has no `=`"),
        }
    }
    values
}
