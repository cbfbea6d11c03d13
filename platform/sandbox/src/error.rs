//! Errors of requests to helpers.

use nix::sys::signal::Signal;
use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

/// Rust's message about a stack overflow.
const STACK_FULL: &str = "has overflowed its stack";
/// Messages of allocators without memory: Rust's, and those of C and C++ libraries.
const OUT_OF_MEMORY: [&str; 3] = ["memory allocation of", "failed to allocate", "bad_alloc"];
/// Maximum length of stderr quoted in an error.
const QUOTED_BYTES: usize = 300;

/// The reason why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// The work rejects its input.
    #[error("{0}")]
    Refused(String),
    /// The helper process died while it handled the request.
    #[error("{0}")]
    Died(Death),
    /// The helper process was killed at the deadline.
    #[error("it took longer than {0:?}")]
    Timeout(Duration),
    /// The request or its result exceeds the frame limit.
    #[error("{what} is larger than {} MiB", .limit >> 20)]
    TooLarge {
        /// The request, or the result.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// No helper process can be started. Retrying can help.
    #[error("no helper process can be started: {0}")]
    Unavailable(String),
}

impl SandboxError {
    /// Returns whether the same request would fail again.
    pub fn is_permanent(&self) -> bool {
        match self {
            // The time starts when a helper is assigned: the same request would take as long again.
            Self::Refused(_) | Self::TooLarge { .. } | Self::Timeout(_) => true,
            Self::Died(death) => !matches!(death, Death::Killed(_) | Death::Exited(_)),
            Self::Unavailable(_) => false,
        }
    }
}

/// The cause of a helper's death.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// It reached its memory limit, in bytes.
    #[error("it needed more than {} MiB of memory", .0 >> 20)]
    Memory(u64),
    /// It overflowed its stack of this size, in bytes.
    #[error("it is nested too deeply: a stack of {} MiB was full", .0 >> 20)]
    Stack(u64),
    /// It reached its limit of CPU time, in seconds.
    #[error("it needed more than {0} s of CPU time")]
    Cpu(u64),
    /// It crashed: the signal, and the end of its stderr.
    #[error("its helper process was ended by {0}")]
    Crashed(String),
    /// An external signal killed it: the signal, and the end of its stderr.
    #[error("its helper process was ended by {0}")]
    Killed(String),
    /// It exited: the exit status, and the end of its stderr.
    #[error("its helper process exited with {0}")]
    Exited(String),
}

impl Death {
    /// Determines the cause from the exit status, the end of stderr and the limits.
    pub(crate) fn of(status: ExitStatus, stderr: &str, limits: DeathLimits) -> Self {
        let words: String = stderr.trim().chars().take(QUOTED_BYTES).collect();
        let told = |what: String| if words.is_empty() { what } else { format!("{what}: {words}") };
        let signal = status.signal();
        let named = signal.and_then(|signal| Signal::try_from(signal).ok());
        if stderr.contains(STACK_FULL) {
            return Self::Stack(limits.stack);
        }
        if OUT_OF_MEMORY.iter().any(|text| stderr.contains(text)) {
            return Self::Memory(limits.memory);
        }
        match (signal, named) {
            (_, Some(Signal::SIGXCPU)) => Self::Cpu(limits.cpu),
            (Some(_), Some(signal @ (Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP))) => {
                Self::Killed(told(signal.as_str().to_owned()))
            }
            (Some(_), Some(signal)) => Self::Crashed(told(signal.as_str().to_owned())),
            (Some(signal), None) => Self::Crashed(told(format!("signal {signal}"))),
            (None, _) => Self::Exited(told(format!("status {}", status.code().unwrap_or_default()))),
        }
    }
}

/// The limits of a dead process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeathLimits {
    pub(crate) memory: u64,
    pub(crate) stack: u64,
    pub(crate) cpu: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_of_death_is_described() {
        let limits = DeathLimits { memory: 256 << 20, stack: 64 << 20, cpu: 30 };
        let told = |raw: i32, stderr: &str| Death::of(ExitStatus::from_raw(raw), stderr, limits).to_string();
        let overflow = "thread 'work' (7) has overflowed its stack\nfatal runtime error: stack overflow, aborting";
        assert!(told(6, overflow).contains("a stack of 64 MiB"));
        assert!(told(6, "memory allocation of 999 bytes failed").contains("more than 256 MiB"));
        assert!(told(24, "").contains("30 s of CPU"));
        assert_eq!(told(11, ""), "its helper process was ended by SIGSEGV");
        assert_eq!(told(9, ""), "its helper process was ended by SIGKILL");
        assert_eq!(told(3 << 8, "no"), "its helper process exited with status 3: no");
    }

    #[test]
    fn killed_helper_does_not_make_its_request_permanent_failure() {
        let limits = DeathLimits { memory: 1, stack: 1, cpu: 1 };
        let died = |raw: i32| SandboxError::Died(Death::of(ExitStatus::from_raw(raw), "", limits));
        assert!(!died(9).is_permanent() && died(11).is_permanent());
        assert!(SandboxError::Timeout(Duration::from_secs(1)).is_permanent());
    }
}
