//! The tables of the index, in the schema `nerve`.

use super::words::ANALYSER;
use super::{STATEMENT, fault::failed};
use crate::error::IndexError;
use deadpool_postgres::{ClientWrapper, Transaction};

/// The advisory lock that those who make the tables take turns by: `nerve` in ASCII.
const LOCK: i64 = 0x6e_65_72_76_65;
/// The most numbers of a vector that pgvector's HNSW takes.
const WIDEST: usize = 2000;
/// The first pgvector that goes on with a scan when a filter left too few.
const SCANS_ON: (u32, u32) = (0, 8);

/// What brings the tables from each version to the next; `{dimensions}` is the vectors'. Only ever appended to.
///
/// - A vector has a table of its own, which is read fast because no text lies between its rows; kept in the row
///   (`plain`), it is not fetched from elsewhere for each distance.
/// - Words are never updated in place, so GIN's list of pending ones would only slow searches down.
const STEPS: [&str; 3] = [
    "
    create table documents (
        id bigint generated always as identity primary key,
        collection text not null, document text not null, name text not null, version text not null,
        uploaded_at bigint not null, metadata jsonb not null, removed boolean not null,
        unique (collection, document)
    );
    create index documents_by_metadata on documents using gin (metadata);
    create sequence chunk_ids;
    create table chunks (
        id bigint primary key,
        owner bigint not null references documents (id),
        place bigint not null, text text not null, heading text not null,
        first bigint not null, past bigint not null, words tsvector not null
    );
    create index chunks_of on chunks (owner);
    create index chunks_by_words on chunks using gin (words) with (fastupdate = off);
    create table vectors (
        chunk bigint primary key references chunks (id) on delete cascade,
        owner bigint not null,
        vector vector({dimensions}) not null
    );
    alter table vectors alter column vector set storage plain;
    create index vectors_of on vectors (owner);
    create index vectors_by_nearness on vectors using hnsw (vector vector_cosine_ops) with (m = 16, ef_construction = 128);
",
    "alter table documents add column digest text not null default ''",
    "
    alter table documents add column bytes bigint not null default 0;
    update documents set bytes = coalesce((select sum(octet_length(text)) from chunks where owner = documents.id), 0);
    create index documents_by_size on documents (collection, removed) include (bytes);
",
];

/// What is known of the server's pgvector.
#[derive(Debug, Clone)]
pub(crate) struct Extension {
    /// The schema that it is in, quoted.
    pub(crate) schema: String,
    /// Whether a scan of its index goes on until a filter has let enough through.
    pub(crate) scans_on: bool,
}

/// Makes the tables or brings them up to date, one worker at a time, and checks that they are for this model.
pub(crate) async fn prepare(
    client: &mut ClientWrapper,
    model: &str,
    dimensions: usize,
) -> Result<Extension, IndexError> {
    let what = "making its tables";
    if dimensions > WIDEST {
        return Err(IndexError::Invalid(format!(
            "{model} gives vectors of {dimensions} dimensions, and the index in PostgreSQL takes {WIDEST} at most: use \
             another model, or the index in the data folder"
        )));
    }
    let transaction = client.transaction().await.map_err(failed(what))?;
    let settings = format!("set local statement_timeout = {}", STATEMENT.1.as_millis());
    transaction.batch_execute(&settings).await.map_err(failed(what))?;
    transaction.execute("select pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(failed("waiting for its turn"))?;
    let extension = extension(&transaction).await?;
    let there: bool = one(&transaction, "select to_regnamespace('nerve') is not null", what).await?;
    if !there {
        transaction.batch_execute("create schema nerve").await.map_err(failed("making the schema `nerve`"))?;
    }
    let path = format!("set local search_path = nerve, {}", extension.schema);
    transaction.batch_execute(&path).await.map_err(failed(what))?;
    let settings = "create table if not exists settings (name text primary key, value text not null)";
    let there: bool = one(&transaction, "select to_regclass('nerve.settings') is not null", what).await?;
    if !there {
        transaction.batch_execute(settings).await.map_err(failed(what))?;
    }
    upgrade(&transaction, dimensions).await?;
    let made_with = format!("{model}, {dimensions} dimensions");
    for (name, wanted) in [("model", made_with.as_str()), ("words", ANALYSER)] {
        let made = setting(&transaction, name, wanted).await?;
        if made != wanted {
            return Err(IndexError::Invalid(format!(
                "the index in PostgreSQL was made with {made}, not with {wanted}: use what it was made with, or `drop \
                 schema nerve cascade` and replay the documents"
            )));
        }
    }
    transaction.commit().await.map_err(failed(what))?;
    Ok(extension)
}

/// pgvector, created where it is not and this user may.
async fn extension(transaction: &Transaction<'_>) -> Result<Extension, IndexError> {
    let what = "looking for pgvector";
    let select = "select quote_ident(nspname), extversion from pg_extension
                  join pg_namespace on pg_namespace.oid = extnamespace where extname = 'vector'";
    let mut row = transaction.query_opt(select, &[]).await.map_err(failed(what))?;
    if row.is_none() {
        let missing = "creating the extension `vector`: it wants pgvector 0.5 or newer on the server, and a user who may \
                       `create extension vector` in this database, once";
        transaction.batch_execute("create extension vector").await.map_err(failed(missing))?;
        row = transaction.query_opt(select, &[]).await.map_err(failed(what))?;
    }
    let row = row.ok_or_else(|| IndexError::failed(what)("it is not there"))?;
    let version: String = row.try_get(1).map_err(failed(what))?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    Ok(Extension { schema: row.try_get(0).map_err(failed(what))?, scans_on: version >= SCANS_ON })
}

/// Takes the steps that are missing.
async fn upgrade(transaction: &Transaction<'_>, dimensions: usize) -> Result<(), IndexError> {
    let what = "bringing its tables up to date";
    let done = setting(transaction, "schema", "0").await?;
    let done: usize = done.parse().map_err(IndexError::failed(what))?;
    let Some(missing) = STEPS.get(done..) else {
        return Err(IndexError::Invalid(format!(
            "the index in PostgreSQL was made by a newer nerve (its tables are of version {done}, and this one knows {}): \
             update this worker",
            STEPS.len()
        )));
    };
    if missing.is_empty() {
        return Ok(());
    }
    for step in missing {
        let step = step.replace("{dimensions}", &dimensions.to_string());
        transaction.batch_execute(&step).await.map_err(failed(what))?;
    }
    let update = "update settings set value = $1 where name = 'schema'";
    transaction.execute(update, &[&STEPS.len().to_string()]).await.map_err(failed(what))?;
    Ok(())
}

/// A setting of the index, which becomes `first` where it has none.
async fn setting(transaction: &Transaction<'_>, name: &str, first: &str) -> Result<String, IndexError> {
    let what = "reading its settings";
    let select = "select value from settings where name = $1";
    if let Some(row) = transaction.query_opt(select, &[&name]).await.map_err(failed(what))? {
        return row.try_get(0).map_err(failed(what));
    }
    let insert = "insert into settings (name, value) values ($1, $2)";
    transaction.execute(insert, &[&name, &first]).await.map_err(failed(what))?;
    Ok(first.to_owned())
}

async fn one(transaction: &Transaction<'_>, select: &str, what: &'static str) -> Result<bool, IndexError> {
    let row = transaction.query_one(select, &[]).await.map_err(failed(what))?;
    row.try_get(0).map_err(failed(what))
}
