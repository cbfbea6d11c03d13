//! System calls by which a program affects foreign processes or changes its mounts: they fail with EPERM.
//!
//! Landlock restricts signals, traces and mounts, but not limits, priorities and scheduling.

use nix::errno::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::{collections::BTreeMap, io};

/// Calls that affect other processes, or mounts.
const REFUSED: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Namespaces of other processes. New ones of its own, as browsers use, give access to nothing more.
    libc::SYS_setns,
    // Opening a file by handle bypasses covers of its path. Root may do it.
    libc::SYS_open_by_handle_at,
];

/// Calls whose first argument is a process, or 0 for the caller. Without `sched_setaffinity`: libraries call it with the ids
/// of their own threads, which a filter cannot distinguish from others.
const OF_A_PROCESS: &[i64] = &[
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
];

/// The kernel's `PRIO_USER` and `IOPRIO_WHO_USER`: all processes of a user.
const PRIORITY_OF_USER: u64 = 2;
const IO_PRIORITY_OF_USER: u64 = 3;

/// The bit that marks x32 calls, the other ABI of x86_64, which all filters would have to cover.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// A compiled filter of system calls.
#[derive(Debug)]
pub struct CallFilter(BpfProgram);

impl CallFilter {
    /// The filter for this processor; `None` if unsupported.
    ///
    /// # Errors
    /// If the filter cannot be compiled.
    pub fn new() -> io::Result<Option<Self>> {
        let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(None) };
        let filter = refused().and_then(|refused| {
            SeccompFilter::new(refused, SeccompAction::Allow, SeccompAction::Errno(Errno::EPERM as u32), arch)
        });
        let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
        Ok(Some(Self(without_x32(program))))
    }

    /// Filters the calls of this thread and its descendants. Returns whether the kernel supports that.
    ///
    /// # Errors
    /// If the kernel supports filters, but refuses this one.
    pub fn apply(&self) -> io::Result<bool> {
        apply(&self.0).map_err(io::Error::other)
    }
}

/// Applies the filter; returns whether the kernel supports filters and no container policy forbids them.
pub(crate) fn apply(program: &BpfProgram) -> Result<bool, seccompiler::Error> {
    match seccompiler::apply_filter(program) {
        Ok(()) => Ok(true),
        Err(seccompiler::Error::Seccomp(error)) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &io::Error) -> bool {
    let missing = [Errno::ENOSYS, Errno::EINVAL, Errno::EPERM];
    error.raw_os_error().is_some_and(|code| missing.contains(&Errno::from_raw(code)))
}

fn refused() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let is = |argument: u8, operator, value| {
        // The kernel reads 32 bits of a process and a user id, and ignores the rest.
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let another = |argument: u8| is(argument, SeccompCmpOp::Ne, 0);
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, vec![])).collect();
    for call in OF_A_PROCESS {
        calls.insert(*call, vec![SeccompRule::new(vec![another(0)?])?]);
    }
    let new_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    calls.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![another(0)?, new_limit])?]);
    let users = [(libc::SYS_setpriority, PRIORITY_OF_USER), (libc::SYS_ioprio_set, IO_PRIORITY_OF_USER)];
    for (call, user) in users {
        // User 0 means the current user.
        let rules = [another(1)?, is(0, SeccompCmpOp::Eq, user)?].map(|condition| SeccompRule::new(vec![condition]));
        calls.insert(call, rules.into_iter().collect::<Result<_, _>>()?);
    }
    Ok(calls)
}

/// Makes x32 calls fail with ENOSYS, as on the many kernels without them.
#[cfg(target_arch = "x86_64")]
fn without_x32(program: BpfProgram) -> BpfProgram {
    use seccompiler::sock_filter;
    let load_number = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let skip_one_if_less = sock_filter { code: 0x35, jt: 0, jf: 1, k: X32 };
    let fail = sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | Errno::ENOSYS as u32 };
    [load_number, skip_one_if_less, fail].into_iter().chain(program).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn without_x32(program: BpfProgram) -> BpfProgram {
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    #[test]
    fn filtered_thread_sets_its_own_limits_and_mounts_nothing() {
        let tried = std::thread::spawn(|| {
            assert!(CallFilter::new().unwrap().unwrap().apply().unwrap());
            let (soft, hard) = getrlimit(Resource::RLIMIT_CPU).unwrap();
            setrlimit(Resource::RLIMIT_CPU, soft, hard).unwrap();
            let none = None::<&str>;
            nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SLAVE, none)
        });
        assert_eq!(tried.join().unwrap(), Err(Errno::EPERM));
    }
}
