//! Reads `[function.NAME]`.

use super::{
    BUILTINS, Batch, FunctionSpec, RuntimeSpec, limits,
    reader::{Reader, Section, did_you_mean},
    values::{parse_secret_name, parse_size, parse_stream, parse_url, read_count, read_retry},
};
use crate::{
    ModelName, Pattern, RetryPolicy,
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
/// Built-in functions that call an endpoint with an API key.
const FUNCTIONS_WITH_SECRETS: [&str; 2] = ["rag/generate", "rag/agent"];
const RUNTIMES: &[&str] = &["wasm", "process", "http", "builtin"];

pub(super) fn read(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<FunctionSpec> {
    reader.check_keys(table, KEYS, PLANNED);
    let run = read_run(reader, table);
    let on = reader.list(table, "on", |text| Pattern::parse(text));
    let declared = table.get("on").map(|value| value.get_ref().as_array().is_none_or(|array| !array.is_empty()));
    if !declared.unwrap_or(false) {
        let message = "at least one subject is required, such as on = [\"events.github.>\"]";
        reader.report_key(table, "on", message);
    }
    let default_memory = match &run {
        Some(RuntimeSpec::Process { .. }) => limits::DEFAULT_PROCESS_MEMORY_BYTES,
        _ => limits::DEFAULT_WASM_MEMORY_BYTES,
    };
    let memory = read_memory(reader, table);
    if let (Some(RuntimeSpec::Wasm { .. }), Some(bytes)) = (&run, memory)
        && bytes > limits::MAX_WASM_MEMORY_BYTES
    {
        reader.report_key(table, "memory", "a component addresses at most 4GiB");
    }
    let tool = read_tool(reader, table, on.as_deref().unwrap_or_default());
    Some(FunctionSpec {
        tool,
        stream: reader.parsed(table, "stream", parse_stream),
        emits: reader.list(table, "emits", parse_emits).unwrap_or_default(),
        concurrency: read_count(reader, table, "concurrency", limits::DEFAULT_CONCURRENCY, limits::MAX_CONCURRENCY),
        batch: read_batch(reader, table),
        timeout: reader.duration(table, "timeout", limits::MAX_TIMEOUT).unwrap_or(limits::DEFAULT_TIMEOUT),
        memory: memory.unwrap_or(default_memory),
        retry: read_retry(reader, table, RetryPolicy::default()),
        env: read_env(reader, table),
        secrets: reader.list(table, "secrets", parse_secret_name).unwrap_or_default(),
        run: run?,
        on: on?,
    })
}

/// Reads `tool`. A tool subscribes only to its own calls and emits a result.
fn read_tool(reader: &mut Reader<'_>, table: &Section<'_, '_>, on: &[Pattern]) -> Option<ToolSpec> {
    let section = reader.table(table, "tool")?;
    reader.check_keys(&section, &["description", "parameters"], &[]);
    let description = reader.string(&section, "description");
    if section.get("description").is_none() {
        reader.report_key(&section, "description", "missing: describe what the tool does and when to use it");
    }
    let mut parameters = reader.json(&section, "parameters").unwrap_or_default();
    match parameters.get("type").map(|ty| ty.as_str()) {
        None => drop(parameters.insert("type".to_owned(), "object".into())),
        Some(Some("object")) => {}
        Some(_) => reader.report_key(
            &section,
            "parameters",
            "the arguments must be an object: use type = \"object\", or omit it",
        ),
    }
    let called =
        |on: &Pattern| on.as_str().strip_prefix("events.")?.strip_prefix(tool::CALL_TYPE_PREFIX).map(str::to_owned);
    match on.iter().map(called).collect::<Option<Vec<_>>>().as_deref() {
        Some([name]) if tool::is_name(name) => {}
        _ => {
            let message = "a tool subscribes to its own calls: on = [\"events.tool.called.NAME\"], \
                           where NAME is at most 64 letters, digits, - and _";
            reader.report_key(table, "on", message);
        }
    }
    let emits = table.get("emits").and_then(|emits| emits.get_ref().as_array());
    if !emits.is_some_and(|emits| emits.iter().any(|one| one.get_ref().as_str() == Some(tool::RETURNED))) {
        reader.report_key(table, "emits", "a tool emits its result: add \"tool.returned\"");
    }
    Some(ToolSpec { description: description?, parameters })
}

fn read_run(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<RuntimeSpec> {
    let Some(runtime) = reader.string(table, "runtime") else {
        if table.get("runtime").is_none() {
            reader.report_key(
                table,
                "runtime",
                "missing: add runtime = \"wasm\", \"process\", \"http\" or \"builtin\"",
            );
        }
        return None;
    };
    let supported: &[&str] = match runtime.as_str() {
        "wasm" => &["source"],
        "process" => &["command", "source"],
        "http" => &["url"],
        "builtin" => &["use", "model", "with"],
        other => {
            let message = format!("`{other}` is not a runtime{}", did_you_mean(other, RUNTIMES));
            reader.report_key(table, "runtime", message);
            return None;
        }
    };
    for key in ["source", "command", "url", "use", "model", "with"].into_iter().filter(|key| !supported.contains(key)) {
        if table.get(key).is_some() {
            reader.report_key(table, key, format!("not supported with runtime = \"{runtime}\": remove it"));
        }
    }
    if let Some(required) = supported.first().filter(|key| table.get(key).is_none()) {
        reader.report_key(table, required, format!("missing: runtime = \"{runtime}\" requires it"));
    }
    match runtime.as_str() {
        "wasm" => Some(RuntimeSpec::Wasm { source: reader.parsed(table, "source", parse_path)? }),
        "process" => {
            let command = reader.list(table, "command", |text| Ok::<_, String>(text.to_owned()))?;
            if command.first().is_none_or(String::is_empty) {
                reader.report_key(table, "command", "must start with a program, such as [\"python3\", \"main.py\"]");
            }
            Some(RuntimeSpec::Process { command, source: reader.parsed(table, "source", parse_path) })
        }
        "builtin" => read_builtin(reader, table),
        _ => Some(RuntimeSpec::Http { url: reader.parsed(table, "url", parse_url)? }),
    }
}

fn read_builtin(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<RuntimeSpec> {
    for key in ["env", "memory"] {
        if table.get(key).is_some() {
            reader.report_key(table, key, "not supported by built-in functions: remove it");
        }
    }
    let function = reader.parsed(table, "use", |text| match BUILTINS.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not a built-in function{}", did_you_mean(text, BUILTINS))),
    });
    let has_secrets = function.as_deref().is_some_and(|function| FUNCTIONS_WITH_SECRETS.contains(&function));
    if !has_secrets && table.get("secrets").is_some() {
        let supported = FUNCTIONS_WITH_SECRETS.join(" and ");
        reader.report_key(
            table,
            "secrets",
            format!("among the built-in functions, only {supported} support secrets: remove it"),
        );
    }
    let model = reader.parsed(table, "model", parse_model);
    let with = reader.json(table, "with").unwrap_or_default();
    Some(RuntimeSpec::Builtin { function: function?, model, with })
}

/// Parses a model: a path if it contains a `/`, otherwise a name.
fn parse_model(text: &str) -> Result<String, String> {
    if text.contains('/') {
        let path = parse_path(text)?;
        return Ok(if path.contains('/') { path } else { format!("./{path}") });
    }
    ModelName::parse(text).map(String::from).map_err(|error| match text.ends_with(".onnx") {
        true => format!("{error}; for a file next to nerve.toml, use ./{text}"),
        false => error.to_string(),
    })
}

/// Parses a path below the manifest's directory.
fn parse_path(text: &str) -> Result<String, String> {
    let leaves = text.starts_with('/') || text.split('/').any(|part| part == "..");
    if leaves || text.contains('\\') {
        return Err(format!("`{text}` is outside the manifest's directory: use a relative path below it, with `/`"));
    }
    Ok(text.trim_start_matches("./").to_owned())
}

fn parse_emits(text: &str) -> Result<Pattern, String> {
    if let Some(ty) = text.strip_prefix("events.") {
        return Err(format!("event types are expected, not subjects: use `{ty}`"));
    }
    Pattern::parse(text).map_err(|error| error.to_string())
}

fn read_memory(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Option<u64> {
    let bytes = reader.parsed(table, "memory", parse_size)?;
    if bytes < limits::MIN_MEMORY_BYTES {
        reader.report_key(table, "memory", "must be at least 64KiB");
    }
    Some(bytes)
}

fn read_batch(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> Batch {
    let single = Batch { size: 1, wait: Duration::ZERO };
    let Some(batch) = reader.table(table, "batch") else { return single };
    reader.check_keys(&batch, &["size", "wait"], &[]);
    Batch {
        size: read_count(reader, &batch, "size", 1, limits::MAX_BATCH_SIZE),
        wait: reader.duration(&batch, "wait", limits::MAX_BATCH_WAIT).unwrap_or_default(),
    }
}

fn read_env(reader: &mut Reader<'_>, table: &Section<'_, '_>) -> BTreeMap<String, String> {
    let Some(env) = reader.table(table, "env") else { return BTreeMap::new() };
    let names: Vec<String> = env.table.keys().map(|key| key.get_ref().to_string()).collect();
    let mut values = BTreeMap::new();
    for name in names {
        // `string` would reject an empty value.
        match env.get(&name).and_then(|value| value.get_ref().as_str()) {
            Some(value) if !value.contains('\0') && !name.is_empty() && !name.contains(['=', '\0']) => {
                values.insert(name, value.to_owned());
            }
            _ => reader.report_key(
                &env,
                &name,
                "an environment variable must be a string, and its name must not contain `=`",
            ),
        }
    }
    values
}
