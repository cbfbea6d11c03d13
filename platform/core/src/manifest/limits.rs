//! Limits and defaults of the values in a manifest.

use std::time::Duration;

/// Default `concurrency` of functions and sinks.
pub const DEFAULT_CONCURRENCY: usize = 16;
/// Maximum `concurrency` of functions and sinks.
pub const MAX_CONCURRENCY: usize = 1024;
/// Maximum `concurrency` of a source.
pub const MAX_SOURCE_CONCURRENCY: u64 = 65_536;
/// Maximum `batch.size`.
pub const MAX_BATCH_SIZE: usize = 1024;
/// Maximum `batch.wait`.
pub const MAX_BATCH_WAIT: Duration = Duration::from_secs(10);
/// Default `timeout` of a function.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum `timeout` of a function.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// Default `memory` of a component, in bytes. Sufficient for JavaScript and Python components.
pub const DEFAULT_WASM_MEMORY_BYTES: u64 = 256 << 20;
/// Maximum `memory` of a component, in bytes: the 32-bit address space.
pub const MAX_WASM_MEMORY_BYTES: u64 = 4 << 30;
/// Default `memory` of a process, in bytes.
pub const DEFAULT_PROCESS_MEMORY_BYTES: u64 = 1 << 30;
/// Minimum `memory`, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 64 << 10;
/// Maximum `retry.attempts`.
pub const MAX_ATTEMPTS: u32 = 100;
/// Maximum wait in `retry.backoff`.
pub const MAX_BACKOFF: Duration = Duration::from_secs(24 * 3600);
