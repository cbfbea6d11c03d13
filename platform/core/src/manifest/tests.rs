use super::*;
use crate::EventType;
use std::time::Duration;

const GOOD: &str = r#"
[function.summarise]
runtime = "wasm"
source  = "./build/summarise.wasm"
on      = ["events.document.uploaded", "events.github.>"]
stream  = "EVENTS"
emits   = ["document.summarised"]
concurrency = 4
batch   = { size = 32, wait = "5ms" }
timeout = "10s"
memory  = "64MiB"
retry   = { attempts = 3, backoff = ["1s", "5s"] }
env     = { LANG = "en", EMPTY = "" }
secrets = ["OPENAI_API_KEY"]

[function.count]
runtime = "process"
command = ["python3", "count.py"]
on = ["events.document.uploaded"]

[source.github]
provider = "github"
secrets = ["GITHUB_WEBHOOK_SECRET"]

[source.billing]
provider = "custom"
secrets = ["A", "B"]
signature = "X-Signature"
prefix = "v1="
signed = "{timestamp}.{body}"
algorithm = "sha256"
encoding = "hex"
timestamp = "X-Time"
id = "X-Id"
type = "/event/type"
tolerance = "2m"
"#;

fn problems(text: &str) -> Vec<String> {
    Manifest::parse(text).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn manifest_is_parsed() {
    let manifest = Manifest::parse(GOOD).unwrap();
    let summarise = &manifest.functions[&Name::parse("summarise").unwrap()];
    assert_eq!(summarise.run, RuntimeSpec::Wasm { source: "build/summarise.wasm".into() });
    assert_eq!(summarise.memory, 64 << 20);
    assert_eq!(summarise.batch, Batch { size: 32, wait: Duration::from_millis(5) });
    assert!(summarise.may_emit(&EventType::parse("document.summarised").unwrap()));
    assert!(!summarise.may_emit(&EventType::parse("document.uploaded").unwrap()));
    let count = &manifest.functions[&Name::parse("count").unwrap()];
    assert_eq!((count.retry.attempts, count.concurrency, count.memory), (5, 16, limits::DEFAULT_PROCESS_MEMORY_BYTES));
    let billing = &manifest.sources[&Name::parse("billing").unwrap()];
    assert_eq!(billing.tolerance, Duration::from_secs(120));
    assert!(matches!(&billing.provider, Provider::Custom(scheme) if scheme.signature == "x-signature"));
}

#[test]
fn stored_specs_round_trip() {
    let manifest = Manifest::parse(GOOD).unwrap();
    for spec in manifest.functions.values() {
        let stored = serde_json::to_string(spec).unwrap();
        assert_eq!(&serde_json::from_str::<FunctionSpec>(&stored).unwrap(), spec, "{stored}");
    }
    for spec in manifest.sources.values() {
        let stored = serde_json::to_string(spec).unwrap();
        assert_eq!(&serde_json::from_str::<SourceSpec>(&stored).unwrap(), spec, "{stored}");
    }
}

#[test]
fn every_mistake_has_a_line_a_key_and_a_suggestion() {
    let text = "[function.a]\nruntime = \"wasm\"\nsorce = \"a.wasm\"\non = [\"events.>.x\"]\ntimeout = \"soon\"\nconcurrency = 0\n";
    let found = problems(text);
    assert!(
        found[0].contains("line 1") && found[0].contains("function.a.source") && found[0].contains("missing"),
        "{found:#?}"
    );
    assert!(
        found[1].starts_with("line 3, column 1: function.a.sorce: unknown key: did you mean `source`?"),
        "{found:#?}"
    );
    assert!(found[2].starts_with("line 4, column 7: function.a.on:"), "{found:#?}");
    assert!(found[3].contains("timeout") && found[3].contains("30s"), "{found:#?}");
    assert!(found[4].contains("from 1 to 1024"), "{found:#?}");
}

#[test]
fn planned_keys_are_rejected() {
    for (text, key) in [
        ("[sink.crm]\nurl = \"http://x\"\non = [\"e.x\"]\norder_by = \"partitionkey\"", "order_by"),
        ("[function.a]\nruntime=\"wasm\"\nsource=\"a\"\non=[\"e.x\"]\norder_by=\"partitionkey\"", "order_by"),
        ("[function.a]\nruntime=\"wasm\"\nsource=\"a\"\non=[\"e.x\"]\nallow={}", "allow"),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|p| p.contains(key) && p.contains("not yet supported")), "{found:#?}");
    }
}

#[test]
fn builtin_function_has_a_model_and_options() {
    let text = "[function.embed]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\nmodel = \"all-MiniLM-L6-v2\"\n\
                on = [\"events.chunk\"]\nemits = [\"embedded\"]\n\
                with = { input = \"/text\", dimensions = 128, normalise = true, scale = 0.5, keep = [\"id\"], map = { a = 1 } }\n";
    let manifest = Manifest::parse(text).unwrap();
    let spec = manifest.functions.values().next().unwrap();
    let RuntimeSpec::Builtin { function, model, with } = &spec.run else { panic!("{:?}", spec.run) };
    assert_eq!((function.as_str(), model.as_deref()), ("onnx/embed", Some("all-MiniLM-L6-v2")));
    let expected = serde_json::json!({
        "input": "/text", "dimensions": 128, "normalise": true, "scale": 0.5, "keep": ["id"], "map": {"a": 1}
    });
    assert_eq!(serde_json::Value::Object(with.clone()), expected);
    let stored = serde_json::to_string(spec).unwrap();
    assert_eq!(&serde_json::from_str::<FunctionSpec>(&stored).unwrap(), spec, "{stored}");
}

#[test]
fn mistakes_in_builtin_functions_are_reported() {
    for (line, expected) in [
        ("use = \"onnx/embd\"", "did you mean `onnx/embed`?"),
        ("use = \"onnx/embed\"\nmodel = \"../m/\"", "is outside the manifest's directory"),
        ("use = \"onnx/embed\"\nmodel = \"a b\"", "is not a model name"),
        ("use = \"onnx/embed\"\nsource = \"x\"", "not supported with runtime"),
        ("use = \"onnx/embed\"\nwith = { a = 2020-01-01 }", "function.a.with.a: dates are not supported"),
        ("use = \"onnx/embed\"\nmemory = \"1GiB\"", "function.a.memory: not supported by built-in functions"),
        ("model = \"x\"", "function.a.use: missing"),
    ] {
        let found = problems(&format!("[function.a]\nruntime = \"builtin\"\non = [\"e.x\"]\n{line}\n"));
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}: {found:#?}");
    }
}

const TOOL: &str = "[function.find]\nruntime = \"process\"\ncommand = [\"x\"]\n";

#[test]
fn tool_has_a_name_a_description_and_parameters() {
    let text = format!(
        "{TOOL}on = [\"events.tool.called.find\"]\nemits = [\"tool.returned\"]\n\
         [function.find.tool]\ndescription = \"Finds.\"\n\
         parameters = {{ properties = {{ what = {{ type = \"string\" }} }}, required = [\"what\"] }}\n"
    );
    let manifest = Manifest::parse(&text).unwrap();
    let spec = manifest.functions.values().next().unwrap();
    let tool = spec.as_tool().unwrap();
    assert_eq!((tool.name.as_str(), tool.spec.description.as_str()), ("find", "Finds."));
    let parameters =
        serde_json::json!({"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]});
    assert_eq!(serde_json::Value::Object(tool.spec.parameters), parameters);
    let stored = serde_json::to_string(spec).unwrap();
    assert_eq!(&serde_json::from_str::<FunctionSpec>(&stored).unwrap(), spec, "{stored}");
}

#[test]
fn mistakes_in_tools_are_reported() {
    let good = "tool = { description = \"d\" }";
    for (on, emits, tool, expected) in [
        ("events.find", "tool.returned", good, "on = [\"events.tool.called.NAME\"]"),
        ("events.tool.called.*", "tool.returned", good, "on = [\"events.tool.called.NAME\"]"),
        ("events.tool.called.find", "found", good, "add \"tool.returned\""),
        ("events.tool.called.find", "tool.returned", "tool = {}", "function.find.tool.description: missing"),
        (
            "events.tool.called.find",
            "tool.returned",
            "tool = { description = \"d\", parameters = { type = \"string\" } }",
            "arguments must be an object",
        ),
        ("events.tool.called.find", "tool.returned", "tool = { describtion = \"d\" }", "did you mean `description`?"),
    ] {
        let found = problems(&format!("{TOOL}on = [\"{on}\"]\nemits = [\"{emits}\"]\n{tool}\n"));
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}: {found:#?}");
    }
}

#[test]
fn mistakes_in_sources_are_reported() {
    for (text, expected) in [
        ("[source.s]\nprovider=\"github\"", "a secret is required"),
        ("[source.s]\nprovider=\"githb\"\nsecrets=[\"A\"]", "did you mean `github`?"),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nprefix=\"x\"", "only with provider = \"custom\""),
        ("[source.s]\nprovider=\"custom\"\nsecrets=[\"A\"]", "source.s.signature: missing"),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nrate=\"fast\"", "source.s.rate: `fast` is not a rate"),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nrate=\"0/s\"", "`0/s` is not a rate"),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nconcurrency=0", "a whole number from 1 to 65536"),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nallow=[\"10.0.0.0/33\"]", "`10.0.0.0/33` is not a network"),
        (
            "[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nallow=[]",
            "source.s.allow: an empty list rejects all senders",
        ),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nmax_body=\"big\"", "`big` is not a size"),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nmax_body=\"0\"", "must be at least \"1B\""),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nallowed=[]", "did you mean `allow`?"),
        ("[source.s]\nprovider=\"sns\"", "source.s.topics: missing"),
        ("[source.s]\nprovider=\"sns\"\ntopics=[\"x\"]", "`x` is not a topic ARN"),
        (
            "[source.s]\nprovider=\"sns\"\nsecrets=[\"A\"]\ntopics=[\"arn:aws:sns:a:1:b\"]",
            "not supported with provider = \"sns\"",
        ),
        (
            "[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\ntopics=[\"arn:aws:sns:a:1:b\"]",
            "only with provider = \"sns\"",
        ),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\nverify_token=\"B\"", "only with provider = \"meta\""),
        ("[source.s]\nprovider=\"github\"\nsecrets=[\"A\"]\ndedupe=\"body\"", "use \"none\", \"id\" or \"signed\""),
        (
            "[source.s]\nprovider=\"custom\"\nsecrets=[\"A\"]\nalgorithm=\"token\"\nsigned=\"{body}\"",
            "not supported with algorithm = \"token\"",
        ),
    ] {
        assert!(problems(text).iter().any(|p| p.contains(expected)), "{:#?}", problems(text));
    }
    let scheme =
        "[source.s]\nprovider=\"custom\"\nsecrets=[\"A\"]\nsignature=\"x\"\nalgorithm=\"sha256\"\nencoding=\"hex\"\n";
    for (signed, expected) in [
        ("{timestamp}", "requires timestamp"),
        ("{bdy}", "{body}, {timestamp}, {id}, {url}, {method} and {form} are supported"),
        ("x", "must cover {body}"),
    ] {
        let found = problems(&format!("{scheme}signed=\"{signed}\""));
        assert!(found.iter().any(|p| p.contains(expected)), "{found:#?}");
    }
}

#[test]
fn source_limits_are_read_and_stored() {
    let text = "[source.s]\nprovider=\"square\"\nsecrets=[\"A\"]\nrate=\"100/s\"\nconcurrency=8\n\
                allow=[\"10.0.0.0/8\",\"2001:db8::1\"]\nmax_body=\"64KiB\"\n";
    let spec = Manifest::parse(text).unwrap().sources.into_values().next().unwrap();
    assert_eq!(spec.rate.unwrap().to_string(), "100/s");
    assert_eq!((spec.concurrency, spec.max_body, spec.allow.len()), (Some(8), Some(64 << 10), 2));
    assert!(spec.needs_url() && !SourceSpec::new(Provider::Github).needs_url());
    let stored = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<SourceSpec>(&stored).unwrap(), spec, "{stored}");
}

#[test]
fn every_provider_is_known_by_name_and_has_defaults() {
    for provider in Provider::BUILT_IN {
        let more = match provider {
            Provider::Sns => "topics = [\"arn:aws:sns:eu-west-1:123456789012:orders\"]",
            _ => "secrets = [\"A\"]\npublic_url = \"https://n.example/hooks/s\"",
        };
        let manifest = Manifest::parse(&format!("[source.s]\nprovider = \"{}\"\n{more}\n", provider.name())).unwrap();
        let spec = manifest.sources.values().next().unwrap();
        assert_eq!(
            (&spec.provider, spec.tolerance, spec.dedupe()),
            (provider, provider.tolerance(), provider.dedupe())
        );
        let stored = serde_json::to_string(spec).unwrap();
        assert_eq!(&serde_json::from_str::<SourceSpec>(&stored).unwrap(), spec, "{stored}");
        assert!(stored.contains(&format!("\"{}\"", provider.name())), "{stored}");
    }
    assert_eq!(Provider::BUILT_IN.len(), 28);
}

#[test]
fn custom_scheme_supports_all_scheme_features() {
    let text = "[source.s]\nprovider = \"custom\"\nsecrets = [\"A\"]\nsignature = \"X-Signature-*\"\nsigned = \"{timestamp}.{body}\"\n\
                algorithm = \"ecdsa-p256\"\nencoding = \"base64\"\ntimestamp = \"X-Signature-1:t\"\ntimestamp_unit = \"rfc3339\"\n\
                batch = \".\"\nid = \"/id\"\nchallenge = \"/challenge\"\ndedupe = \"id\"\n";
    let manifest = Manifest::parse(text).unwrap();
    let spec = manifest.sources.values().next().unwrap();
    let Provider::Custom(scheme) = &spec.provider else { panic!("{spec:?}") };
    assert_eq!((scheme.signature.as_str(), scheme.timestamp.as_deref()), ("x-signature-*", Some("x-signature-1:t")));
    assert_eq!((scheme.algorithm, scheme.timestamp_unit), (Algorithm::EcdsaP256, TimestampUnit::Rfc3339));
    assert_eq!((scheme.batch.as_deref(), scheme.challenge.as_deref()), (Some("."), Some("/challenge")));
    assert_eq!((spec.dedupe(), spec.provider.dedupe()), (Dedupe::Id, Dedupe::Signed));
    let token =
        "[source.s]\nprovider = \"custom\"\nsecrets = [\"A\"]\nsignature = \"X-Token\"\nalgorithm = \"token\"\n";
    assert_eq!(Manifest::parse(token).unwrap().sources.values().next().unwrap().dedupe(), Dedupe::Id);
}

#[test]
fn source_has_dedupe_and_id_scope() {
    let source = |text: &str| {
        let manifest = Manifest::parse(&format!("[source.s]\nsecrets = [\"A\"]\n{text}")).unwrap();
        let spec = manifest.sources.into_values().next().unwrap();
        let stored = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SourceSpec>(&stored).unwrap(), spec, "{stored}");
        (spec.dedupe(), spec.ids())
    };
    let custom = |signed: &str| {
        format!(
            "provider = \"custom\"\nsignature = \"X-S\"\nsigned = \"{signed}\"\nalgorithm = \"sha256\"\n\
             encoding = \"hex\"\nid = \"X-Id\"\n"
        )
    };
    assert_eq!(source("provider = \"github\""), (Dedupe::Id, Ids::Unique));
    assert_eq!(source("provider = \"gitlab\""), (Dedupe::Id, Ids::Reused));
    assert_eq!(source(&custom("{body}")), (Dedupe::Id, Ids::Reused));
    assert_eq!(source(&custom("{id}.{body}")), (Dedupe::Signed, Ids::Unique));
    assert_eq!(source(&(custom("{id}.{body}") + "verify = \"none\"")).1, Ids::Reused, "the id is not signed");
    assert_eq!(source(&(custom("{body}") + "dedupe = \"none\"\nids = \"unique\"")), (Dedupe::None, Ids::Unique));
    let wrong = problems("[source.s]\nprovider = \"github\"\nsecrets = [\"A\"]\ndedupe = \"off\"\nids = \"both\"\n");
    for expected in ["\"none\", \"id\" or \"signed\"", "\"unique\" or \"reused\""] {
        assert!(wrong.iter().any(|problem| problem.contains(expected)), "{wrong:?}");
    }
}

#[test]
fn sinks_and_schedules_are_parsed() {
    let text = r#"[sink.crm-eu]
url = "https://crm.example/hooks"
on = ["events.answer.generated"]

[sink.chat]
url = "https://chat.example/hook"
on = ["events.>"]
secrets = ["NEW", "OLD"]
template = '{"text": {{ data.text }}}'
headers = { Authorization = "Bearer ${CHAT_TOKEN}", "X-Team" = "a" }
timeout = "5s"
concurrency = 2
rate = "10/m"
retry = { attempts = 2, backoff = ["1s"] }
order = true
allow = ["10.0.0.0/8", "::1"]
disable_after = "1d"

[schedule.digest]
cron = "0 0 7 * * mon-fri"
emit = "digest.due"
data = { limit = 3 }
timezone = "Europe/Rome"
"#;
    let manifest = Manifest::parse(text).unwrap();
    let named = |name: &str| manifest.sinks[&Name::parse(name).unwrap()].clone();
    let crm = named("crm-eu");
    assert_eq!((crm.secrets, crm.body, crm.retry.attempts), (vec!["SINK_CRM_EU_SECRET".into()], SinkBody::Standard, 8));
    let chat = named("chat");
    assert_eq!(chat.secret_names(), ["CHAT_TOKEN", "NEW", "OLD"]);
    assert_eq!(chat.headers["authorization"], "Bearer ${CHAT_TOKEN}");
    assert_eq!(chat.rate.map(|rate| rate.to_string()).as_deref(), Some("10/m"));
    assert!(matches!(&chat.body, SinkBody::Template { content_type, .. } if content_type == "application/json"));
    assert!(chat.order && chat.allow[0].contains(&"10.9.8.7".parse().unwrap()));
    for spec in manifest.sinks.values() {
        let stored = serde_json::to_string(spec).unwrap();
        assert_eq!(&serde_json::from_str::<SinkSpec>(&stored).unwrap(), spec, "{stored}");
    }
    let digest = manifest.schedules.values().next().unwrap();
    assert_eq!((digest.cron.as_str(), digest.emit.as_str()), ("0 0 7 * * mon-fri", "digest.due"));
    let stored = serde_json::to_string(digest).unwrap();
    assert_eq!(&serde_json::from_str::<ScheduleSpec>(&stored).unwrap(), digest);
}

#[test]
fn mistakes_in_sinks_are_reported() {
    let good = "url = \"https://x.example\"\non = [\"events.>\"]\n";
    for (lines, expected) in [
        ("on = [\"events.>\"]".to_owned(), "sink.crm.url: missing"),
        ("url = \"https://x.example\"".to_owned(), "sink.crm.on: missing"),
        ("url = \"ftp://x\"\non = [\"events.>\"]".to_owned(), "not an http:// or https:// URL"),
        ("url = \"https://me:pw@x.example/\"\non = [\"events.>\"]".to_owned(), "a user or a password"),
        (format!("{good}rate = \"fast\""), "is not a rate"),
        (format!("{good}rate = \"0/s\""), "is not a rate"),
        (format!("{good}allow = [\"10.0.0.0/99\"]"), "is not a network"),
        (format!("{good}headers = {{ Webhook-Id = \"1\" }}"), "reserved for Nerve"),
        (format!("{good}headers = {{ X = \"${{no good}}\" }}"), "is not a secret name"),
        (format!("{good}format = \"xml\""), "is not a format"),
        (format!("{good}format = \"data\"\ntemplate = \"x\""), "remove one of the two"),
        (format!("{good}order = 1"), "must be true or false"),
        (format!("{good}retries = 1"), "did you mean `retry`?"),
    ] {
        let found = problems(&format!("[sink.crm]\n{lines}\n"));
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}: {found:#?}");
    }
    let twice = format!("[function.a]\nruntime=\"wasm\"\nsource=\"a\"\non=[\"e.x\"]\n[sink.a]\n{good}");
    assert!(problems(&twice)[0].contains("`a` is already used by a function"));
}

#[test]
fn mistakes_in_schedules_are_reported() {
    for (lines, expected) in [
        ("cron = \"0 7 * * *\"\nemit = \"a\"", "use \"0 0 7 * * *\""),
        ("cron = \"soon\"\nemit = \"a\"", "use six fields"),
        ("cron = \"@dayly\"\nemit = \"a\"", "did you mean `@daily`?"),
        ("cron = \"@every 10ms\"\nemit = \"a\"", "at least 1s"),
        ("cron = \"@every 1m\"\nemit = \"a\"\ntimezone = \"Europe/Rome\"", "no time zone"),
        ("cron = \"@daily\"\nemit = \"events.a\"", "use `a`"),
        ("cron = \"@daily\"\nemit = \"a.*\"", "wildcards are not allowed"),
        ("emit = \"a\"", "schedule.d.cron: missing"),
    ] {
        let found = problems(&format!("[schedule.d]\n{lines}\n"));
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}: {found:#?}");
    }
}
