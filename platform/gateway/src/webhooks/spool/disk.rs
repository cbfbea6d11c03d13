//! The spool's file, an SQLite database, and its only thread.
//!
//! Queued writes share a transaction: one sync for many requests.

use crate::webhooks::spool::{Claim, SpoolError};
use bytes::Bytes;
use nerve_core::{Event, Identity, Name, identity};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, params};
use std::{path::PathBuf, sync::Arc};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// Maximum number of queued writes.
const MAX_QUEUED_WRITES: usize = 4096;
/// Maximum number and size of the writes of a transaction.
const MAX_TRANSACTION_WRITES: usize = 1024;
const MAX_TRANSACTION_BYTES: u64 = 64 << 20;
/// Maximum number and size of the rows of a read.
const MAX_CHUNK_ROWS: usize = 256;
const MAX_CHUNK_BYTES: u64 = 32 << 20;
/// Approximate size of a row without its event, in bytes.
const ROW_OVERHEAD_BYTES: u64 = 512;

/// Exclusive access for this process; each commit is synced, also on macOS.
const SETTINGS: &str = "
    pragma locking_mode = exclusive;
    pragma auto_vacuum = full;
    pragma journal_mode = wal;
    pragma synchronous = full;
    pragma fullfsync = on;
    create table if not exists events (
        sequence integer primary key autoincrement,
        source text not null, headers text not null, data blob not null, marks blob not null,
        size integer not null, tried integer not null, at integer not null, refused text
    );
";

/// An event on disk without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) source: Name,
    /// The identity of the event, and of the signed bytes if the source deduplicates by them.
    pub(crate) keys: Vec<Identity>,
    /// Its size for the limit, in bytes.
    pub(crate) size: u64,
}

/// An event on disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) entry: Entry,
    pub(crate) event: Event,
    pub(crate) tried: bool,
}

/// The size of an event for the limit, in bytes.
pub(crate) fn size_of(event: &Event) -> u64 {
    let text = event.id.len() + event.source.len() + event.ty.as_str().len();
    u64::try_from(event.data.len() + text).unwrap_or(u64::MAX).saturating_add(ROW_OVERHEAD_BYTES)
}

/// A row with its sequence and time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredRow {
    pub(crate) sequence: i64,
    pub(crate) at: OffsetDateTime,
    pub(crate) row: Row,
}

/// A handle of the file's thread; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    commands: mpsc::Sender<Command>,
}

type ReplySender<T> = oneshot::Sender<Result<T, SpoolError>>;

#[derive(Debug)]
enum Command {
    Put(Vec<Row>, Claim, ReplySender<()>),
    Oldest(ReplySender<Vec<StoredRow>>),
    Remove(Vec<i64>, ReplySender<()>),
    Refuse(i64, String, ReplySender<()>),
}

impl Command {
    /// Reports a failure to the caller.
    fn fail(self, error: SpoolError) {
        match self {
            Self::Put(_, _, done) | Self::Remove(_, done) | Self::Refuse(_, _, done) => drop(done.send(Err(error))),
            Self::Oldest(done) => drop(done.send(Err(error))),
        }
    }
}

impl Disk {
    /// Opens the file, if it exists, and returns its unpublished events.
    pub(crate) async fn open(path: PathBuf, tasks: &TaskTracker) -> Result<(Self, Vec<Entry>), SpoolError> {
        let (commands, waiting) = mpsc::channel(MAX_QUEUED_WRITES);
        let (done, opened) = oneshot::channel();
        tasks.spawn_blocking(move || {
            let mut file = File { path, connection: None };
            let entries = match file.path.exists() {
                true => file.open().and_then(|()| file.entries()),
                false => Ok(Vec::new()),
            };
            let usable = entries.is_ok();
            if done.send(entries).is_ok() && usable {
                file.serve(waiting);
            }
        });
        let entries = opened.await.unwrap_or(Err(SpoolError::Closed))?;
        Ok((Self { commands }, entries))
    }

    /// Writes and syncs rows, all or none.
    pub(crate) async fn put(&self, rows: Vec<Row>, claim: Claim) -> Result<(), SpoolError> {
        self.ask(|done| Command::Put(rows, claim, done)).await
    }

    /// The oldest rows, in order.
    pub(crate) async fn oldest(&self) -> Result<Vec<StoredRow>, SpoolError> {
        self.ask(Command::Oldest).await
    }

    /// Removes rows.
    pub(crate) async fn remove(&self, sequences: Vec<i64>) -> Result<(), SpoolError> {
        self.ask(|done| Command::Remove(sequences, done)).await
    }

    /// Marks a row as refused, with the reason; it is not read again.
    pub(crate) async fn refuse(&self, sequence: i64, why: String) -> Result<(), SpoolError> {
        self.ask(|done| Command::Refuse(sequence, why, done)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(ReplySender<T>) -> Command) -> Result<T, SpoolError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| SpoolError::Closed)?;
        answer.await.unwrap_or(Err(SpoolError::Closed))
    }
}

/// The state of the thread.
struct File {
    path: PathBuf,
    connection: Option<Connection>,
}

/// A reply, sent after the transaction is synced.
type Reply = Box<dyn FnOnce(Result<(), SpoolError>)>;

impl File {
    /// Runs commands until all handles are dropped.
    fn serve(&mut self, mut waiting: mpsc::Receiver<Command>) {
        while let Some(command) = waiting.blocking_recv() {
            let mut bytes = size(&command);
            let mut commands = vec![command];
            while commands.len() < MAX_TRANSACTION_WRITES && bytes < MAX_TRANSACTION_BYTES {
                let Ok(command) = waiting.try_recv() else { break };
                bytes += size(&command);
                commands.push(command);
            }
            self.run_batch(commands);
        }
    }

    /// Runs commands in one transaction and replies after it is synced.
    fn run_batch(&mut self, commands: Vec<Command>) {
        let mut replies: Vec<Reply> = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        let done = self.open().and_then(|()| {
            let failed = || failed("writing", self.path.clone());
            let Some(connection) = &mut self.connection else { return Err(SpoolError::Closed) };
            let transaction = connection.transaction().map_err(failed())?;
            let written = commands.by_ref().try_for_each(|command| apply(&transaction, command, &mut replies));
            written.and_then(|()| transaction.commit()).map_err(failed())
        });
        replies.into_iter().for_each(|answer| answer(done.clone()));
        if let Err(error) = done {
            commands.for_each(|command| command.fail(error.clone()));
        }
    }

    /// Opens or creates the file if it is not open.
    fn open(&mut self) -> Result<(), SpoolError> {
        if self.connection.is_some() {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            // Opening reports the error.
            let _ = std::fs::create_dir_all(folder);
        }
        let opened = Connection::open_with_flags(&self.path, OpenFlags::default()).and_then(|connection| {
            connection.execute_batch(SETTINGS)?;
            connection.set_prepared_statement_cache_capacity(8);
            // The first read takes the lock.
            connection.query_row("select count(*) from events", [], |_| Ok(()))?;
            Ok(connection)
        });
        self.connection = Some(opened.map_err(failed("opening", self.path.clone()))?);
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>, SpoolError> {
        let Some(connection) = &self.connection else { return Ok(Vec::new()) };
        let read = || -> rusqlite::Result<Vec<Entry>> {
            let mut select = connection.prepare("select source, marks, size from events where refused is null")?;
            select.query_map([], |row| entry(row, 0, 1, 2))?.collect()
        };
        read().map_err(failed("reading", self.path.clone()))
    }
}

fn failed(what: &'static str, path: PathBuf) -> impl FnOnce(rusqlite::Error) -> SpoolError {
    move |error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => SpoolError::Taken(path),
        _ => SpoolError::Disk { what, path, source: Arc::new(error) },
    }
}

fn size(command: &Command) -> u64 {
    match command {
        Command::Put(rows, ..) => rows.iter().map(|row| row.entry.size).sum(),
        _ => 0,
    }
}

fn apply(transaction: &Transaction<'_>, command: Command, replies: &mut Vec<Reply>) -> rusqlite::Result<()> {
    match command {
        Command::Put(rows, claim, done) => {
            replies.push(Box::new(move |written| {
                if written.is_ok() {
                    claim.keep();
                }
                drop(done.send(written));
            }));
            rows.iter().try_for_each(|row| insert(transaction, row))
        }
        Command::Oldest(done) => {
            let read = read_oldest(transaction);
            let (rows, read) = read.map_or_else(|error| (Vec::new(), Err(error)), |rows| (rows, Ok(())));
            replies.push(Box::new(move |written| drop(done.send(written.map(|()| rows)))));
            read
        }
        Command::Remove(sequences, done) => {
            replies.push(replying(done));
            let mut delete = transaction.prepare_cached("delete from events where sequence = ?1")?;
            sequences.iter().try_for_each(|sequence| delete.execute([sequence]).map(drop))
        }
        Command::Refuse(sequence, why, done) => {
            replies.push(replying(done));
            let mut update = transaction.prepare_cached("update events set refused = ?2 where sequence = ?1")?;
            update.execute(params![sequence, why]).map(drop)
        }
    }
}

fn replying(done: ReplySender<()>) -> Reply {
    Box::new(move |written| drop(done.send(written)))
}

fn insert(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "insert into events (source, headers, data, marks, size, tried, at) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let headers: Vec<_> = row.event.to_headers().collect();
    let headers = serde_json::to_string(&headers).unwrap_or_default();
    let keys: Vec<u8> = row.entry.keys.iter().flat_map(|key| key.to_bytes()).collect();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let (source, data) = (row.entry.source.as_str(), &row.event.data[..]);
    insert.execute(params![source, headers, data, keys, row.entry.size, row.tried, now]).map(drop)
}

/// The oldest events that are not refused, at least one if there is any.
fn read_oldest(connection: &Connection) -> rusqlite::Result<Vec<StoredRow>> {
    let mut select = connection.prepare_cached(
        "select source, marks, size, sequence, headers, data, tried, at from events where refused is null \
         order by sequence",
    )?;
    let mut rows = select.query([])?;
    let (mut found, mut bytes) = (Vec::new(), 0_u64);
    while found.len() < MAX_CHUNK_ROWS && bytes < MAX_CHUNK_BYTES {
        let Some(row) = rows.next()? else { break };
        let stored_row = stored_row(row)?;
        bytes = bytes.saturating_add(stored_row.row.entry.size);
        found.push(stored_row);
    }
    Ok(found)
}

fn entry(row: &rusqlite::Row<'_>, source: usize, keys: usize, size: usize) -> rusqlite::Result<Entry> {
    let name = Name::parse(row.get::<_, String>(source)?).map_err(|error| wrong(source, error))?;
    let keys: Vec<u8> = row.get(keys)?;
    let keys = keys.chunks_exact(identity::BYTES).map(Identity::from_bytes).collect();
    Ok(Entry { source: name, keys, size: row.get(size)? })
}

fn stored_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredRow> {
    let headers: Vec<(String, String)> =
        serde_json::from_str(&row.get::<_, String>(4)?).map_err(|error| wrong(4, error))?;
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let event =
        Event::from_headers(headers, Bytes::from(row.get::<_, Vec<u8>>(5)?)).map_err(|error| wrong(4, error))?;
    Ok(StoredRow {
        sequence: row.get(3)?,
        at: OffsetDateTime::from_unix_timestamp(row.get(7)?).map_err(|error| wrong(7, error))?,
        row: Row { entry: entry(row, 0, 1, 2)?, event, tried: row.get(6)? },
    })
}

/// A value that no version of Nerve wrote.
fn wrong(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
}
