//! Settings: the embedded defaults < `nerve-server.toml` < `NERVE_*`, with one section per crate.
//!
//! All settings are read and checked before the server listens or connects.

mod data_folder;
mod error;
mod file;
mod gateway;
mod keys;
mod onnx;
mod renamed;
mod sandbox;
mod trust;

pub use data_folder::{DataFolderError, make_private};
pub use error::ConfigError;
pub use gateway::{GatewayConfig, LocalUsers};
pub use keys::Keys;
pub use nerve_broker::{EventsFull, StreamsConfig};
pub use onnx::{OnnxConfig, Optimization, Provider};
pub use sandbox::SandboxConfig;
pub use trust::{TrustViolation, UntrustedPath, check_trusted};

use file::SettingsFile;
use gateway::MAX_THREADS;
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
/// The settings file in the current folder.
const SETTINGS_FILE: &str = "nerve-server.toml";
/// Variables with the prefix that are no settings.
const NOT_SETTINGS: &[&str] = &["NERVE_LOG"];
/// Settings whose variable is a comma-separated list.
const LIST_SETTINGS: &[&str] = &["gateway.keys", "gateway.trusted_proxies", "onnx.providers", "sinks.allow"];

/// The range of `gateway.idempotency_window`.
const IDEMPOTENCY_WINDOW_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(30 * 24 * 3600);

/// Minimum of `worker.log_bytes`.
const MIN_LOG_BYTES: usize = 64 << 10;

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[nats]`
    pub nats: NatsSettings,
    /// NATS settings of the gateway in this process, if they differ from those of its worker.
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
    /// `[collections]`: the default quota of a collection.
    pub collections: Quota,
    /// `[sinks]`
    pub sinks: SinksConfig,
    /// `[secrets]`
    pub secrets: SecretsConfig,
}

/// The data folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Its path.
    pub dir: PathBuf,
}

/// Worker settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// The wait for an ack or its extension before a delivery is redelivered.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub ack_wait: Duration,
    /// Grace period of running events at shutdown.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub grace: Duration,
    /// Maximum length of a chain of function results.
    pub max_hops: u32,
    /// Maximum log lines of a function per second.
    pub log_lines: u32,
    /// Maximum log bytes of a function per second.
    pub log_bytes: usize,
}

/// The document index.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RagConfig {
    /// The URL of a PostgreSQL database, with its password. The data folder if `None`.
    #[serde(deserialize_with = "secret")]
    pub postgres: Option<Secret>,
}

/// Settings of all sinks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinksConfig {
    /// Non-public networks that every sink may reach.
    pub allow: Vec<Network>,
}

/// The secrets key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsConfig {
    /// The private key as 64 hexadecimal digits. `<data.dir>/secrets.key` if `None`.
    #[serde(default, deserialize_with = "secret")]
    pub key: Option<Secret>,
}

impl Config {
    /// Reads the defaults, then `file` (or `./nerve-server.toml` if it exists), then `NERVE_*` of `environment`, and checks the
    /// result.
    ///
    /// # Errors
    /// A file or variable is unreadable or invalid, or another user can change `./nerve-server.toml`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let here = Path::new(SETTINGS_FILE);
        let path = match file {
            Some(named) => Some(named),
            // Only a missing file is skipped; an unreadable one is an error.
            None if here.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => None,
            // A file in the current folder may belong to another user, unlike one that is named explicitly.
            None => {
                check_trusted(here)?;
                Some(here)
            }
        };
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = path {
            let file = SettingsFile::read(path)?;
            file.check_renamed()?;
            builder = builder.add_source(file);
        }
        for (name, value) in environment {
            let Some(key) = setting(&name) else { continue };
            renamed::check(&key, &name)?;
            builder = if LIST_SETTINGS.contains(&key.as_str()) {
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

    /// Returns the data folder and all files with keys or passwords of this server, as absolute paths.
    ///
    /// # Errors
    /// The current folder does not exist.
    pub fn private_paths(&self) -> io::Result<Vec<PathBuf>> {
        let nats = [Some(&self.nats), self.gateway_nats.as_ref()].into_iter().flatten().flat_map(|nats| {
            [&nats.password_file, &nats.token_file, &nats.nkey_file, &nats.creds, &nats.tls_client_key]
        });
        let files = nats.chain([&self.gateway.tls_key, &self.file]).flatten();
        files.chain([&self.data.dir]).map(std::path::absolute).collect()
    }

    /// Returns the folder of downloaded files.
    pub fn artifacts(&self) -> PathBuf {
        self.data.dir.join("artifacts")
    }

    /// Returns the path of the spool.
    pub fn spool(&self) -> PathBuf {
        self.data.dir.join("spool.sqlite")
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.nats.check()?;
        let invalid = |key, why: &str| Err(ConfigError::Invalid { key, why: why.to_owned() });
        self.streams.check()?;
        if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&self.worker.ack_wait) {
            return invalid("worker.ack_wait", "must be from 1s to 5m");
        }
        if self.worker.log_lines == 0 || self.worker.log_bytes < MIN_LOG_BYTES {
            return invalid(
                "worker",
                "log_lines must be at least 1, and log_bytes at least 65536: a line may have 16 KiB",
            );
        }
        if self.worker.max_hops == 0 {
            return invalid("worker.max_hops", "must be at least 1: otherwise no function could publish a result");
        }
        if self.gateway.max_requests == 0 || self.gateway.max_streams == 0 {
            return invalid("gateway", "max_requests and max_streams must be at least 1");
        }
        if self.gateway.threads > MAX_THREADS {
            return invalid("gateway.threads", "must be at most 256; 0 uses half of the cores");
        }
        if self.gateway.tls_cert.is_some() != self.gateway.tls_key.is_some() {
            return invalid("gateway", "tls_cert and tls_key go together: set both or neither");
        }
        self.gateway.check_keys()?;
        if !IDEMPOTENCY_WINDOW_RANGE.contains(&self.gateway.idempotency_window) {
            return invalid("gateway.idempotency_window", "must be from 10s to 30d");
        }
        if self.gateway.answer_timeout.is_zero() || self.gateway.answer_timeout > self.streams.answers_max_age {
            return invalid("gateway.answer_timeout", "must be more than 0s and at most streams.answers_max_age");
        }
        let schemes = ["postgres://", "postgresql://"];
        if self.rag.postgres.as_ref().is_some_and(|url| !schemes.iter().any(|it| url.expose().starts_with(it))) {
            return invalid("rag.postgres", "must be postgres://user:password@host:5432/database, or empty");
        }
        self.sandbox.check()?;
        self.onnx.check()
    }
}

/// Removes the quoted line of the file from an error, as it may contain a secret.
fn without_excerpt(error: &str) -> String {
    let is_excerpt = |line: &&str| {
        let gutter = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        gutter.trim_start().starts_with('|')
    };
    error.lines().filter(|line| !is_excerpt(line)).collect::<Vec<_>>().join(": ")
}

/// Returns the setting of a variable: `NERVE_WORKER_ACK_WAIT` is `worker.ack_wait`. A section has one word, a key may have several.
fn setting(variable: &str) -> Option<String> {
    if NOT_SETTINGS.contains(&variable) {
        return None;
    }
    let (section, key) = variable.strip_prefix(PREFIX)?.split_once('_')?;
    Some(format!("{}.{}", section.to_ascii_lowercase(), key.to_ascii_lowercase()))
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
    fn defaults_are_valid() {
        let config = load(&[]).unwrap();
        assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.worker.ack_wait, Duration::from_secs(10));
        assert!((1..=MAX_THREADS).contains(&config.gateway.threads()));
        assert!(config.secrets.key.is_none() && config.rag.postgres.is_none());
    }

    #[test]
    fn environment_overrides_the_defaults() {
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
    fn file_overrides_the_defaults_and_unknown_keys_are_refused() {
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
    fn old_key_of_a_renamed_setting_is_refused_with_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        for (old, new) in renamed::RENAMED_SETTINGS {
            let (section, key) = old.split_once('.').unwrap();
            for settings in [format!("[{section}]\n{key} = \"all\"\n"), format!("{old} = \"all\"\n")] {
                std::fs::write(&file, settings).unwrap();
                let error = Config::load(Some(&file), []).unwrap_err().to_string();
                assert!(error.contains(new) && error.contains("s.toml"), "{error}");
            }
            let variable = format!("{PREFIX}{}", old.replace('.', "_").to_ascii_uppercase());
            let error = load(&[(variable.as_str(), "all")]).unwrap_err().to_string();
            assert!(error.contains(new) && error.contains(&variable), "{error}");
        }
    }

    #[test]
    fn value_out_of_range_is_refused_with_its_key() {
        for (variable, value, expected) in [
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
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
    }
}
