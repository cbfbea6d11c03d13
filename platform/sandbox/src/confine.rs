//! Confines a helper process before it reads any input.

use crate::{access::Access, calls};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::{
    errno::Errno,
    sys::resource::{Resource, setrlimit},
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::{collections::BTreeMap, path::PathBuf};

/// Open files of a helper: its three pipes, and the copy for its answers.
const OPEN_FILES: u64 = 4;
/// Open files of a helper that may read files.
const OPEN_FILES_WITH_ACCESS: u64 = 64;
/// The newest supported Landlock ABI; an older kernel enforces what it supports.
const LANDLOCK: ABI = ABI::V6;

/// The confinement features that the kernel or a container policy lacks, by tests in threads; empty if none.
pub fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !works(|| has_landlock() && shut_off(&[]).is_ok()) {
        missing.push("Landlock (files and network)");
    }
    if !can_filter() {
        missing.push("seccomp filters (system calls)");
    }
    missing
}

/// Returns whether system calls of a program can be filtered.
pub fn can_filter() -> bool {
    // It allows a thread to end, unlike the filter of helpers.
    works(|| calls::CallFilter::new().ok().flatten().is_some_and(|filter| filter.apply().unwrap_or(false)))
}

/// Runs a test in a thread of its own, which confines only that thread.
pub(crate) fn works(act: impl FnOnce() -> bool + Send + 'static) -> bool {
    std::thread::spawn(act).join().unwrap_or(false)
}

fn has_landlock() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok()
}

/// Limits this process, and denies it files, network and other processes, as far as the kernel supports it.
///
/// Threads started afterwards are confined too.
pub(crate) fn confine(memory: u64, cpu: u64, access: &Access) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what} cannot be limited: {error}");
    let limits = [
        (Resource::RLIMIT_DATA, memory, memory, "memory"),
        // SIGXCPU at the soft limit gives the reason; SIGKILL at the hard limit ends processes that ignore it.
        (Resource::RLIMIT_CPU, cpu, cpu.saturating_add(1), "CPU time"),
        (Resource::RLIMIT_FSIZE, 0, 0, "the size of files"),
        (Resource::RLIMIT_CORE, 0, 0, "core dumps"),
    ];
    for (resource, soft, hard, what) in limits {
        setrlimit(resource, soft, hard).map_err(|error| failed(what, &error))?;
    }
    if has_landlock() {
        shut_off(&access.readable).map_err(|error| failed("access to files", &error))?;
    }
    let files = if access.is_none() { OPEN_FILES } else { OPEN_FILES_WITH_ACCESS };
    setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(|error| failed("open files", &error))?;
    filter_calls(access).map_err(|error| failed("system calls", &error))
}

/// Denies all files but the readable ones, TCP, abstract sockets and signals to other processes.
fn shut_off(readable: &[PathBuf]) -> Result<(), Box<dyn std::error::Error>> {
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(LANDLOCK))?;
    let ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?.scope(Scope::from_all(LANDLOCK))?;
    let mut ruleset = ruleset.create()?;
    for path in readable {
        let rights = match path.is_dir() {
            true => AccessFs::ReadFile | AccessFs::ReadDir,
            false => AccessFs::ReadFile.into(),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, rights))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}

/// Allows the calls required for computing: memory, threads, clocks, and the pipes. All others fail with EPERM, so that libraries
/// can continue without optional features. [`missing`] reports kernels without filters.
fn filter_calls(access: &Access) -> Result<(), seccompiler::Error> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(()) };
    // Filters cannot inspect the flags of clone3. If it fails with ENOSYS, libc uses clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let errno = |error: Errno| SeccompAction::Errno(error as u32);
    let first = SeccompFilter::new(clone3, SeccompAction::Allow, errno(Errno::ENOSYS), arch)?;
    let second = SeccompFilter::new(allowed(access)?, errno(Errno::EPERM), SeccompAction::Allow, arch)?;
    for filter in [first, second] {
        let program: BpfProgram = filter.try_into()?;
        if !calls::apply(&program)? {
            break;
        }
    }
    Ok(())
}

/// The calls required for reading files, which Landlock restricts by path.
const READING: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_fadvise64,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
];

fn allowed(access: &Access) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let plain = [
        // The open pipes.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_fstat,
        // Memory.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_sysinfo,
        // Threads.
        libc::SYS_clone3,
        libc::SYS_futex,
        libc::SYS_rseq,
        libc::SYS_set_robust_list,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // Signals to this process.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        // Time and randomness.
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
    ];
    let reading: &[i64] = if access.is_none() { &[] } else { READING };
    let plain = plain.iter().chain(reading).copied();
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = plain.map(|call| (call, vec![])).collect();
    let when = |argument: u8, operator: SeccompCmpOp, value: u64| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        Ok::<_, BackendError>(vec![SeccompRule::new(vec![condition])?])
    };
    // A thread, not a process.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    calls.insert(libc::SYS_clone, when(0, SeccompCmpOp::MaskedEq(thread), thread)?);
    // Only the code of this binary.
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        calls.insert(call, when(2, SeccompCmpOp::MaskedEq(executable), 0)?);
    }
    // abort() signals its own thread.
    calls.insert(libc::SYS_tgkill, when(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?);
    Ok(calls)
}
