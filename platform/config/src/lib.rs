//! Settings: the embedded defaults < `nerve-server.toml` < `NERVE_*`, each stage with a section of its own.
//!
//! Everything is read and checked here, before anything binds or connects.

mod error;
mod file;
mod gateway;
mod home;
mod keys;
mod onnx;
mod sandbox;
mod trust;

pub use error::ConfigError;
pub use gateway::{GatewayConfig, LocalUsers};
pub use home::{HomeError, make_private};
pub use keys::Keys;
pub use nerve_broker::{EventsFull, StreamsConfig};
pub use onnx::{OnnxConfig, Optimisation, Provider};
pub use sandbox::SandboxConfig;
pub use trust::{Untrusted, Why, check_trusted};

use file::SettingsFile;
use gateway::MOST_THREADS;
use nerve_broker::NatsSettings;
use nerve_core::{Secret, manifest::Network, quota::Quota};
use serde::Deserialize;
use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

const DEFAULTS: &str = include_str!("default.toml");
const PREFIX: &str = "NERVE_";
/// The settings file of the current folder.
const FILE: &str = "nerve-server.toml";
/// Variables with our prefix that are no settings of the server.
const NOT_SETTINGS: &[&str] = &["NERVE_LOG"];
/// Settings that a variable gives as a list with commas.
const LISTS: &[&str] = &["gateway.keys", "gateway.trusted_proxies", "onnx.providers", "sinks.allow"];

/// What `gateway.idempotency_window` may be.
const IDEMPOTENCY_WINDOW: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(30 * 24 * 3600);
/// Longer than any retry waits.
const LONGEST_WAIT: Duration = Duration::from_secs(48 * 3600);

/// The least that EVENTS may be bounded by, in bytes.
const LEAST_EVENTS_BYTES: i64 = 16 << 10;

/// The least that the other streams may be bounded by, in bytes.
const LEAST_STREAM_BYTES: i64 = 1 << 20;
/// The least that a function may log in a second, in bytes.
const LEAST_LOG_BYTES: usize = 64 << 10;

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[nats]`
    pub nats: NatsSettings,
    /// What the gateway of this process connects with, where that is not what its worker does.
    #[serde(skip)]
    pub gateway_nats: Option<NatsSettings>,
    /// The settings file, if there is one.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// `[data]`
    pub data: DataConfig,
    /// `[streams]`
    pub streams: StreamsConfig,
    /// `[worker]`
    pub worker: WorkerConfig,
    /// `[gateway]`
    pub gateway: GatewayConfig,
    /// `[onnx]`
    pub onnx: OnnxConfig,
    /// `[rag]`
    pub rag: RagConfig,
    /// `[sandbox]`
    pub sandbox: SandboxConfig,
    /// `[collections]`: what a collection may have that no quota was set for.
    pub collections: Quota,
    /// `[sinks]`
    pub sinks: SinksConfig,
    /// `[secrets]`
    pub secrets: SecretsConfig,
}

/// Where files are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The folder.
    pub dir: PathBuf,
}

/// How functions are run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// The longest that a delivery goes without an extension before it is redelivered.
    #[serde(deserialize_with = "duration")]
    pub ack_wait: Duration,
    /// How long shutdown waits for what is running.
    #[serde(deserialize_with = "duration")]
    pub grace: Duration,
    /// The most results of functions in a row, each of the one before.
    pub max_hops: u32,
    /// Lines that a function may log in a second.
    pub log_lines: u32,
    /// Bytes that a function may log in a second.
    pub log_bytes: usize,
}

/// Where documents are indexed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RagConfig {
    /// The URL of a PostgreSQL database, which holds a password; the data folder when none.
    #[serde(deserialize_with = "secret")]
    pub postgres: Option<Secret>,
}

/// What sinks may reach.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinksConfig {
    /// Networks that every sink may reach although they are not public.
    pub allow: Vec<Network>,
}

/// How secrets are unsealed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsConfig {
    /// The private key as 64 hexadecimal digits; from `<data.dir>/secrets.key` when none.
    #[serde(default, deserialize_with = "secret")]
    pub key: Option<Secret>,
}

impl Config {
    /// Reads the defaults, then `file` (or `./nerve-server.toml` where there is one), then `NERVE_*` out of
    /// `environment`, and checks the whole.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let here = Path::new(FILE);
        let path = match file {
            Some(named) => Some(named),
            // What stands here and cannot be read is no reason to start without settings.
            None if here.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => None,
            // A file that is named is meant; one that happens to be here may be anybody's.
            None => {
                check_trusted(here)?;
                Some(here)
            }
        };
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = path {
            builder = builder.add_source(SettingsFile::read(path)?);
        }
        for (name, value) in environment {
            let Some(key) = setting(&name) else { continue };
            builder = if LISTS.contains(&key.as_str()) {
                let items: Vec<&str> = value.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
                builder.set_override(key, items)?
            } else {
                builder.set_override(key, value)?
            };
        }
        let config = Self { file: path.map(Path::to_owned), ..builder.build()?.try_deserialize()? };
        config.check()?;
        Ok(config)
    }

    /// The data folder, and all other files that hold keys or passwords of this server, as absolute paths.
    ///
    /// # Errors
    /// When there is no current folder.
    pub fn private_paths(&self) -> io::Result<Vec<PathBuf>> {
        let nats = [Some(&self.nats), self.gateway_nats.as_ref()].into_iter().flatten().flat_map(|nats| {
            [&nats.password_file, &nats.token_file, &nats.nkey_file, &nats.creds, &nats.tls_client_key]
        });
        let files = nats.chain([&self.gateway.tls_key, &self.file]).flatten();
        files.chain([&self.data.dir]).map(std::path::absolute).collect()
    }

    /// Where fetched files lie.
    pub fn artifacts(&self) -> PathBuf {
        self.data.dir.join("artifacts")
    }

    /// Where webhooks wait for the broker.
    pub fn spool(&self) -> PathBuf {
        self.data.dir.join("spool.sqlite")
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.nats.check()?;
        let wrong = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        if ![1, 3, 5].contains(&self.streams.replicas) {
            return wrong("streams.replicas", "it must be 1, 3 or 5");
        }
        if self.streams.dedupe_window < Duration::from_secs(10) {
            return wrong("streams.dedupe_window", "redeliveries come later than that: give it at least 10s");
        }
        let age = self.streams.events_max_age;
        if !age.is_zero() && age < self.streams.dedupe_window {
            return wrong("streams.events_max_age", "it must be at least streams.dedupe_window");
        }
        let bytes = self.streams.events_max_bytes;
        if bytes != -1 && bytes < LEAST_EVENTS_BYTES {
            return wrong("streams.events_max_bytes", "it must be -1 (no bound), or at least 16384");
        }
        if self.streams.events_full == EventsFull::Refuse && bytes == -1 {
            return wrong("streams.events_full", "\"refuse\" needs a bound: set streams.events_max_bytes");
        }
        let age = self.streams.timers_max_age;
        if !age.is_zero() && age < LONGEST_WAIT {
            return wrong("streams.timers_max_age", "a retry may wait for a day: give it at least 48h");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&self.worker.ack_wait) {
            return wrong("worker.ack_wait", "it must be from 1s to 5m");
        }
        if self.worker.log_lines == 0 || self.worker.log_bytes < LEAST_LOG_BYTES {
            return wrong(
                "worker",
                "log_lines must be at least 1, and log_bytes at least 65536: a line may have 16 KiB",
            );
        }
        let bounds = [self.streams.logs_max_bytes, self.streams.answers_max_bytes, self.streams.dead_max_bytes];
        let streams = &self.streams;
        let buckets = [streams.artifacts_max_bytes, streams.bodies_max_bytes, streams.views_max_bytes];
        let bounds = bounds.into_iter().chain([streams.attempts_max_bytes, streams.requests_max_bytes]).chain(buckets);
        if bounds.into_iter().any(|bytes| bytes != -1 && bytes < LEAST_STREAM_BYTES) {
            return wrong("streams", "each of the bounds in bytes must be -1 (none), or at least 1048576");
        }
        if self.worker.max_hops == 0 {
            return wrong("worker.max_hops", "it must be at least 1: no function could publish a result");
        }
        if self.gateway.max_requests == 0 || self.gateway.max_streams == 0 {
            return wrong("gateway", "max_requests and max_streams must be at least 1");
        }
        if self.gateway.threads > MOST_THREADS {
            return wrong("gateway.threads", "it must be at most 256; 0 takes half of the cores");
        }
        if self.gateway.tls_cert.is_some() != self.gateway.tls_key.is_some() {
            return wrong("gateway", "tls_cert and tls_key go together: name both files, or neither");
        }
        self.gateway.check_keys()?;
        if !IDEMPOTENCY_WINDOW.contains(&self.gateway.idempotency_window) {
            return wrong("gateway.idempotency_window", "it must be from 10s to 30d");
        }
        if self.gateway.answer_timeout.is_zero() || self.gateway.answer_timeout > self.streams.answers_max_age {
            return wrong("gateway.answer_timeout", "it must be more than 0s and at most streams.answers_max_age");
        }
        let schemes = ["postgres://", "postgresql://"];
        if self.rag.postgres.as_ref().is_some_and(|url| !schemes.iter().any(|it| url.expose().starts_with(it))) {
            return wrong("rag.postgres", "it must be postgres://user:password@host:5432/database, or empty");
        }
        self.sandbox.check()?;
        self.onnx.check()
    }
}

/// An error without the line of the file that the parser quotes, which may hold a secret.
fn without_excerpt(error: &str) -> String {
    let is_excerpt = |line: &&str| {
        let gutter = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        gutter.trim_start().starts_with('|')
    };
    error.lines().filter(|line| !is_excerpt(line)).collect::<Vec<_>>().join(": ")
}

/// `NERVE_WORKER_ACK_WAIT` is `worker.ack_wait`: a section is one word, a key may be several.
fn setting(variable: &str) -> Option<String> {
    if NOT_SETTINGS.contains(&variable) {
        return None;
    }
    let (section, key) = variable.strip_prefix(PREFIX)?.split_once('_')?;
    Some(format!("{}.{}", section.to_ascii_lowercase(), key.to_ascii_lowercase()))
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let value = Option::<String>::deserialize(deserializer)?;
    Ok(value.filter(|value| !value.is_empty()).map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn the_defaults_hold() {
        let config = load(&[]).unwrap();
        assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.worker.ack_wait, Duration::from_secs(10));
        assert!((1..=MOST_THREADS).contains(&config.gateway.threads()));
        assert!(config.secrets.key.is_none() && config.rag.postgres.is_none());
    }

    #[test]
    fn the_environment_wins() {
        let config = load(&[
            ("NERVE_WORKER_ACK_WAIT", "2s"),
            ("NERVE_GATEWAY_KEYS", "0123456789abcdef, fedcba9876543210"),
            ("NERVE_STREAMS_REPLICAS", "3"),
            ("NERVE_GATEWAY_THREADS", "7"),
            ("NERVE_GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8"),
            ("NERVE_RAG_POSTGRES", "postgres://nerve:hunter2@127.0.0.1/nerve"),
            ("NERVE_LOG", "debug"),
            ("HOME", "/"),
        ])
        .unwrap();
        assert_eq!(config.worker.ack_wait, Duration::from_secs(2));
        assert_eq!(config.gateway.keys[""].len(), 2);
        assert_eq!((config.streams.replicas, config.gateway.trusted_proxies.len()), (3, 2));
        assert_eq!(config.gateway.threads(), 7);
        assert!(config.rag.postgres.is_some());
        for secret in ["0123456789abcdef", "hunter2"] {
            assert!(!format!("{config:?}").contains(secret));
        }
    }

    #[test]
    fn a_file_overrides_and_its_unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        std::fs::write(&file, "[gateway]\nlisten = \"127.0.0.1:9\"\n").unwrap();
        assert_eq!(Config::load(Some(&file), []).unwrap().gateway.listen.port(), 9);
        std::fs::write(&file, "[gateway]\nlissten = \"127.0.0.1:9\"\n").unwrap();
        assert!(Config::load(Some(&file), []).unwrap_err().to_string().contains("lissten"));
        for path in ["/dev/zero", "/no/such.toml", "/etc"] {
            let error = Config::load(Some(Path::new(path)), []).unwrap_err();
            assert!(matches!(error, ConfigError::File { .. }) && error.to_string().contains(path), "{error}");
        }
        std::fs::write(&file, "[gateway]\nmax_requests = 99999999999999999999\n").unwrap();
        let error = Config::load(Some(&file), []).unwrap_err().to_string();
        assert!(error.contains("gateway.max_requests: the number is too large") && error.contains("s.toml"), "{error}");
        std::fs::write(&file, "[nats]\npassword = \"hunter2\nuser = \"ada\"\n").unwrap();
        let error = Config::load(Some(&file), []).unwrap_err();
        assert!(error.to_string().contains("line 2") && !error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        for (variable, value, said) in [
            ("NERVE_STREAMS_REPLICAS", "2", "streams.replicas"),
            ("NERVE_WORKER_ACK_WAIT", "1ms", "worker.ack_wait"),
            ("NERVE_WORKER_ACK_WAIT", "soon", "soon"),
            ("NERVE_GATEWAY_KEYS", "short", "gateway.keys"),
            ("NERVE_GATEWAY_IDEMPOTENCY_WINDOW", "1s", "gateway.idempotency_window"),
            ("NERVE_RAG_POSTGRES", "mysql://nerve:hunter2@127.0.0.1", "rag.postgres"),
            ("NERVE_STREAMS_EVENTS_MAX_BYTES", "0", "streams.events_max_bytes"),
            ("NERVE_STREAMS_EVENTS_FULL", "refuse", "streams.events_max_bytes"),
            ("NERVE_STREAMS_EVENTS_FULL", "drop", "streams.events_full"),
            ("NERVE_NATS_URL", "nats://ada:hunter2@127.0.0.1:port", "nats.url"),
            ("NERVE_NATS_USER", "ada", "nats.password"),
            ("NERVE_GATEWAY_COLOUR", "red", "colour"),
            ("NERVE_SANDBOX_MEMORY", "200000000", "sandbox.document_memory"),
            ("NERVE_SANDBOX_COMPILE_MEMORY", "1000", "sandbox.compile_memory"),
            ("NERVE_SANDBOX_MODEL_MEMORY", "1000", "sandbox.model_memory"),
            ("NERVE_SANDBOX_MODEL_TIMEOUT", "0s", "sandbox.model_timeout"),
            ("NERVE_SANDBOX_HELPERS", "0", "sandbox.helpers"),
            ("NERVE_GATEWAY_THREADS", "1000", "gateway.threads"),
            ("NERVE_GATEWAY_TLS_CERT", "/etc/nerve/cert.pem", "tls_cert and tls_key go together"),
            ("NERVE_GATEWAY_TRUSTED_PROXIES", "10.0.0.0/33", "`10.0.0.0/33` is not a network"),
        ] {
            let error = load(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        }
    }
}
