//! The spool's file, an SQLite database, and the one thread that has it open.
//!
//! What waits to be written is written together: one sync for many requests.

use super::{Claim, SpoolError};
use bytes::Bytes;
use nerve_core::{Event, Identity, Name, identity};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, params};
use std::{path::PathBuf, sync::Arc};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// Writes that wait for the disk at most; whoever comes later waits for a place.
const WAITING: usize = 4096;
/// Writes that are synced together at most, in number and in bytes.
const TOGETHER: usize = 1024;
const TOGETHER_BYTES: u64 = 64 << 20;
/// What is read at once, in number and in bytes.
const CHUNK: usize = 256;
const CHUNK_BYTES: u64 = 32 << 20;
/// What a row takes beside its event, in bytes, or so.
const OVERHEAD: u64 = 512;

/// Opened for one process alone; each commit is on disk when it returns, also on macOS.
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

/// What is known of an event on disk without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) source: Name,
    /// The identity of the event, and that of the signed bytes where they count.
    pub(super) keys: Vec<Identity>,
    /// What it takes of the bound, in bytes.
    pub(super) size: u64,
}

/// One event, as it is on disk.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) entry: Entry,
    pub(super) event: Event,
    pub(super) tried: bool,
}

/// What an event takes of the bound, in bytes.
pub(super) fn size_of(event: &Event) -> u64 {
    let text = event.id.len() + event.source.len() + event.ty.as_str().len();
    u64::try_from(event.data.len() + text).unwrap_or(u64::MAX).saturating_add(OVERHEAD)
}

/// A row with its place in the file, and when it was put there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    pub(super) sequence: i64,
    pub(super) at: OffsetDateTime,
    pub(super) row: Row,
}

/// The file, from outside its thread; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    commands: mpsc::Sender<Command>,
}

type Done<T> = oneshot::Sender<Result<T, SpoolError>>;

#[derive(Debug)]
enum Command {
    Put(Vec<Row>, Claim, Done<()>),
    Oldest(Done<Vec<Placed>>),
    Remove(Vec<i64>, Done<()>),
    Refuse(i64, String, Done<()>),
}

impl Command {
    /// Tells whoever asked that nothing came of it.
    fn fail(self, error: SpoolError) {
        match self {
            Self::Put(_, _, done) | Self::Remove(_, done) | Self::Refuse(_, _, done) => drop(done.send(Err(error))),
            Self::Oldest(done) => drop(done.send(Err(error))),
        }
    }
}

impl Disk {
    /// Opens the file, if there is one, and tells which events in it are still to go into the log.
    pub(super) async fn open(path: PathBuf, tasks: &TaskTracker) -> Result<(Self, Vec<Entry>), SpoolError> {
        let (commands, waiting) = mpsc::channel(WAITING);
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

    /// Writes rows, all or none; they are synced when this returns.
    pub(super) async fn put(&self, rows: Vec<Row>, claim: Claim) -> Result<(), SpoolError> {
        self.ask(|done| Command::Put(rows, claim, done)).await
    }

    /// The oldest rows, in their order.
    pub(super) async fn oldest(&self) -> Result<Vec<Placed>, SpoolError> {
        self.ask(Command::Oldest).await
    }

    /// Removes rows.
    pub(super) async fn remove(&self, sequences: Vec<i64>) -> Result<(), SpoolError> {
        self.ask(|done| Command::Remove(sequences, done)).await
    }

    /// Puts a row aside, with the reason; it is not read again.
    pub(super) async fn refuse(&self, sequence: i64, why: String) -> Result<(), SpoolError> {
        self.ask(|done| Command::Refuse(sequence, why, done)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Done<T>) -> Command) -> Result<T, SpoolError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| SpoolError::Closed)?;
        answer.await.unwrap_or(Err(SpoolError::Closed))
    }
}

/// What the thread has.
struct File {
    path: PathBuf,
    connection: Option<Connection>,
}

/// An answer that is given once what it promises is synced.
type Answer = Box<dyn FnOnce(Result<(), SpoolError>)>;

impl File {
    /// Does what it is asked until nobody can ask any more.
    fn serve(&mut self, mut waiting: mpsc::Receiver<Command>) {
        while let Some(command) = waiting.blocking_recv() {
            let mut bytes = size(&command);
            let mut commands = vec![command];
            while commands.len() < TOGETHER && bytes < TOGETHER_BYTES {
                let Ok(command) = waiting.try_recv() else { break };
                bytes += size(&command);
                commands.push(command);
            }
            self.together(commands);
        }
    }

    /// Does all of it in one transaction, and answers once it is synced.
    fn together(&mut self, commands: Vec<Command>) {
        let mut answers: Vec<Answer> = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        let done = self.open().and_then(|()| {
            let failed = || failed("writing", self.path.clone());
            let Some(connection) = &mut self.connection else { return Err(SpoolError::Closed) };
            let transaction = connection.transaction().map_err(failed())?;
            let written = commands.by_ref().try_for_each(|command| apply(&transaction, command, &mut answers));
            written.and_then(|()| transaction.commit()).map_err(failed())
        });
        answers.into_iter().for_each(|answer| answer(done.clone()));
        if let Err(error) = done {
            commands.for_each(|command| command.fail(error.clone()));
        }
    }

    /// Opens the file if it is not open, and makes it if it is not there.
    fn open(&mut self) -> Result<(), SpoolError> {
        if self.connection.is_some() {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            // Opening says what is wrong with it.
            let _ = std::fs::create_dir_all(folder);
        }
        let opened = Connection::open_with_flags(&self.path, OpenFlags::default()).and_then(|connection| {
            connection.execute_batch(SETTINGS)?;
            connection.set_prepared_statement_cache_capacity(8);
            // Reading is what takes the lock.
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

fn apply(transaction: &Transaction<'_>, command: Command, answers: &mut Vec<Answer>) -> rusqlite::Result<()> {
    match command {
        Command::Put(rows, claim, done) => {
            answers.push(Box::new(move |written| {
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
            answers.push(Box::new(move |written| drop(done.send(written.map(|()| rows)))));
            read
        }
        Command::Remove(sequences, done) => {
            answers.push(telling(done));
            let mut delete = transaction.prepare_cached("delete from events where sequence = ?1")?;
            sequences.iter().try_for_each(|sequence| delete.execute([sequence]).map(drop))
        }
        Command::Refuse(sequence, why, done) => {
            answers.push(telling(done));
            let mut update = transaction.prepare_cached("update events set refused = ?2 where sequence = ?1")?;
            update.execute(params![sequence, why]).map(drop)
        }
    }
}

fn telling(done: Done<()>) -> Answer {
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

/// The oldest events that are not put aside, at least one if there is any.
fn read_oldest(connection: &Connection) -> rusqlite::Result<Vec<Placed>> {
    let mut select = connection.prepare_cached(
        "select source, marks, size, sequence, headers, data, tried, at from events where refused is null \
         order by sequence",
    )?;
    let mut rows = select.query([])?;
    let (mut found, mut bytes) = (Vec::new(), 0_u64);
    while found.len() < CHUNK && bytes < CHUNK_BYTES {
        let Some(row) = rows.next()? else { break };
        let placed = placed(row)?;
        bytes = bytes.saturating_add(placed.row.entry.size);
        found.push(placed);
    }
    Ok(found)
}

fn entry(row: &rusqlite::Row<'_>, source: usize, keys: usize, size: usize) -> rusqlite::Result<Entry> {
    let name = Name::parse(row.get::<_, String>(source)?).map_err(|error| wrong(source, error))?;
    let keys: Vec<u8> = row.get(keys)?;
    let keys = keys.chunks_exact(identity::BYTES).map(Identity::from_bytes).collect();
    Ok(Entry { source: name, keys, size: row.get(size)? })
}

fn placed(row: &rusqlite::Row<'_>) -> rusqlite::Result<Placed> {
    let headers: Vec<(String, String)> =
        serde_json::from_str(&row.get::<_, String>(4)?).map_err(|error| wrong(4, error))?;
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let event =
        Event::from_headers(headers, Bytes::from(row.get::<_, Vec<u8>>(5)?)).map_err(|error| wrong(4, error))?;
    Ok(Placed {
        sequence: row.get(3)?,
        at: OffsetDateTime::from_unix_timestamp(row.get(7)?).map_err(|error| wrong(7, error))?,
        row: Row { entry: entry(row, 0, 1, 2)?, event, tried: row.get(6)? },
    })
}

/// A value that no version of this program wrote.
fn wrong(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
}
