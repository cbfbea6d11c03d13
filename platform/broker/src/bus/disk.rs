//! Free space on the broker's disk, if it is local: intake stops before JetStream runs out of space.
//!
//! nats-server disables JetStream when a write finds no space, and does not enable it again. Gateways therefore reject events
//! while less than a reserve is free. Results of functions are stored nevertheless, because they let
//! events finish.

use super::{
    Bus,
    stream_full::{StreamFull, StreamFullReason},
};
use nix::sys::statvfs::statvfs;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Interval of the check.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The fill level of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskLevel {
    /// Enough space is free.
    Enough,
    /// Less than twice the reserve is free.
    Low,
    /// Less than the reserve is free.
    Full,
}

impl DiskLevel {
    /// The next level for `free` bytes. Leaving a level requires a quarter of the reserve more than entering it.
    fn after(self, free: u64, reserve: u64) -> Self {
        let least = |mark: u64, level: Self| if self >= level { mark.saturating_add(reserve / 4) } else { mark };
        if free < least(reserve, Self::Full) {
            Self::Full
        } else if free < least(reserve.saturating_mul(2), Self::Low) {
            Self::Low
        } else {
            Self::Enough
        }
    }
}

impl PartialOrd for DiskLevel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

/// Monitors the disk of `folder` until `end`, and stops intake while less than `reserve` bytes are free.
pub async fn watch(bus: Bus, folder: PathBuf, reserve: u64, end: CancellationToken) {
    let mut level = DiskLevel::Enough;
    while !end.is_cancelled() {
        let looked = folder.clone();
        if let Ok(Ok(free)) = tokio::task::spawn_blocking(move || free(&looked)).await {
            let before = level;
            level = before.after(free, reserve);
            report(&bus, &folder, (before, level), (free, reserve));
        }
        end.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await;
    }
}

fn report(bus: &Bus, folder: &Path, (before, level): (DiskLevel, DiskLevel), (free, reserve): (u64, u64)) {
    let full = (level == DiskLevel::Full)
        .then_some(StreamFull { max_bytes: None, reason: StreamFullReason::Disk { free, reserve } });
    match (before, level, &full) {
        (DiskLevel::Enough | DiskLevel::Low, DiskLevel::Full, Some(full)) => {
            tracing::error!(folder = %folder.display(), "rejecting external events with 503: {full}");
        }
        (DiskLevel::Enough, DiskLevel::Low, _) => {
            tracing::warn!(folder = %folder.display(), free, reserve, "the broker's disk is nearly full: below streams.disk_reserve free bytes external events are rejected");
        }
        (DiskLevel::Full, DiskLevel::Low | DiskLevel::Enough, _) => {
            tracing::info!(folder = %folder.display(), free, "the broker's disk has space again; accepting events");
        }
        _ => {}
    }
    bus.space().report_disk(full);
}

/// The size of the disk of `folder`, if known.
pub fn size(folder: &Path) -> Option<u64> {
    let disk = statvfs(folder).ok()?;
    Some(disk.blocks().saturating_mul(disk.fragment_size()))
}

/// Free bytes for a process without privileges.
fn free(folder: &Path) -> nix::Result<u64> {
    let disk = statvfs(folder)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_has_hysteresis() {
        let mut level = DiskLevel::Enough;
        let mut at = |free| {
            level = level.after(free, 100);
            level
        };
        assert_eq!(
            [at(1000), at(200), at(199), at(100)],
            [DiskLevel::Enough, DiskLevel::Enough, DiskLevel::Low, DiskLevel::Low]
        );
        assert_eq!([at(99), at(110), at(124)], [DiskLevel::Full, DiskLevel::Full, DiskLevel::Full]);
        assert_eq!(
            [at(125), at(210), at(225), at(210)],
            [DiskLevel::Low, DiskLevel::Low, DiskLevel::Enough, DiskLevel::Enough]
        );
    }
}
