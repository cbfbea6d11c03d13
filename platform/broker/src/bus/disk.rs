//! How much room the broker's disk has, where it is this machine's: intake ends before JetStream has none left.
//!
//! nats-server turns JetStream off when a write finds no room, and does not turn it on again by itself. So gateways take nothing in
//! while less than a reserve is free, and go on when there is more again. What functions return is stored all the same: it is
//! what finishes events.

use super::{
    Bus,
    full::{Full, FullReason},
};
use nix::sys::statvfs::statvfs;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often the disk is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a look at the disk finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// There is room.
    Enough,
    /// Less than twice the reserve is free.
    Low,
    /// Less than the reserve is free.
    Full,
}

impl Level {
    /// The level at so many free bytes after `self`. One that was left is reached again only a quarter further on.
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

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

/// Looks at the disk that `folder` is on until `end`, and has intake refused while less than `reserve` bytes are free.
pub async fn watch(bus: Bus, folder: PathBuf, reserve: u64, end: CancellationToken) {
    let mut level = Level::Enough;
    while !end.is_cancelled() {
        let looked = folder.clone();
        if let Ok(Ok(free)) = tokio::task::spawn_blocking(move || free(&looked)).await {
            let before = level;
            level = before.after(free, reserve);
            report(&bus, &folder, (before, level), (free, reserve));
        }
        end.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await;
    }
}

fn report(bus: &Bus, folder: &Path, (before, level): (Level, Level), (free, reserve): (u64, u64)) {
    let full = (level == Level::Full).then_some(Full { max_bytes: None, reason: FullReason::Disk { free, reserve } });
    match (before, level, &full) {
        (Level::Enough | Level::Low, Level::Full, Some(full)) => {
            tracing::error!(folder = %folder.display(), "events from outside are answered 503: {full}");
        }
        (Level::Enough, Level::Low, _) => {
            tracing::warn!(folder = %folder.display(), free, reserve, "the broker's disk is nearly full: below streams.disk_reserve free bytes events from outside are refused");
        }
        (Level::Full, Level::Low | Level::Enough, _) => {
            tracing::info!(folder = %folder.display(), free, "the broker's disk has room again: events are accepted");
        }
        _ => {}
    }
    bus.space().report_disk(full);
}

/// The bytes of the disk that `folder` is on, where they are known.
pub fn size(folder: &Path) -> Option<u64> {
    let disk = statvfs(folder).ok()?;
    Some(disk.blocks().saturating_mul(disk.fragment_size()))
}

/// Bytes that may be written by a process without privileges.
fn free(folder: &Path) -> nix::Result<u64> {
    let disk = statvfs(folder)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_falls_at_its_mark_and_rises_a_quarter_later() {
        let mut level = Level::Enough;
        let mut at = |free| {
            level = level.after(free, 100);
            level
        };
        assert_eq!([at(1000), at(200), at(199), at(100)], [Level::Enough, Level::Enough, Level::Low, Level::Low]);
        assert_eq!([at(99), at(110), at(124)], [Level::Full, Level::Full, Level::Full]);
        assert_eq!([at(125), at(210), at(225), at(210)], [Level::Low, Level::Low, Level::Enough, Level::Enough]);
    }
}
