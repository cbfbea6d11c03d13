//! The tables of the index, in the schema `nerve`.

use super::tsvector::ANALYZER_NAME;
use super::{WRITE_STATEMENT_TIMEOUT, error::failed};
use crate::error::IndexError;
use deadpool_postgres::{ClientWrapper, Transaction};

/// Advisory lock of migrations: `nerve` in ASCII.
const MIGRATION_LOCK: i64 = 0x6e_65_72_76_65;
/// Maximum dimensions of a vector in pgvector's HNSW index.
const MAX_DIMENSIONS: usize = 2000;
/// First pgvector version with iterative index scans.
const ITERATIVE_SCAN_VERSION: (u32, u32) = (0, 8);

/// Migrations of the tables, from each version to the next; `{dimensions}` is that of the vectors. Append only.
///
/// - Vectors have a table of their own, whose pages contain no text, and `plain` storage avoids a TOAST lookup per
///   distance.
/// - Lexemes are never updated in place, so GIN's pending list would only slow down searches.
const MIGRATIONS: [&str; 3] = [
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

/// Properties of the installed pgvector.
#[derive(Debug, Clone)]
pub(crate) struct Extension {
    /// Its schema, quoted.
    pub(crate) schema: String,
    /// Whether index scans are iterative, so that they continue until enough rows pass the filter.
    pub(crate) iterative_scans: bool,
}

/// Creates or migrates the tables, under a lock, and checks that they were built with this model.
pub(crate) async fn prepare(
    client: &mut ClientWrapper,
    model: &str,
    dimensions: usize,
) -> Result<Extension, IndexError> {
    let operation = "creating tables";
    if dimensions > MAX_DIMENSIONS {
        return Err(IndexError::Invalid(format!(
            "{model} has vectors with {dimensions} dimensions, but the index in PostgreSQL supports at most {MAX_DIMENSIONS}: \
             use another model, or the index in the data folder"
        )));
    }
    let transaction = client.transaction().await.map_err(failed(operation))?;
    let settings = format!("set local statement_timeout = {}", WRITE_STATEMENT_TIMEOUT.as_millis());
    transaction.batch_execute(&settings).await.map_err(failed(operation))?;
    transaction
        .execute("select pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK])
        .await
        .map_err(failed("waiting for another migration"))?;
    let extension = extension(&transaction).await?;
    let exists: bool = query_flag(&transaction, "select to_regnamespace('nerve') is not null", operation).await?;
    if !exists {
        transaction.batch_execute("create schema nerve").await.map_err(failed("creating the schema `nerve`"))?;
    }
    let path = format!("set local search_path = nerve, {}", extension.schema);
    transaction.batch_execute(&path).await.map_err(failed(operation))?;
    let settings = "create table if not exists settings (name text primary key, value text not null)";
    let exists: bool = query_flag(&transaction, "select to_regclass('nerve.settings') is not null", operation).await?;
    if !exists {
        transaction.batch_execute(settings).await.map_err(failed(operation))?;
    }
    upgrade(&transaction, dimensions).await?;
    let embedding = format!("{model}, {dimensions} dimensions");
    for (name, expected) in [("model", embedding.as_str()), ("words", ANALYZER_NAME)] {
        let built_with = setting(&transaction, name, expected).await?;
        if built_with != expected {
            return Err(IndexError::Invalid(format!(
                "the index in PostgreSQL was built with {built_with}, not with {expected}: use the original one, or `drop \
                 schema nerve cascade` and replay the documents"
            )));
        }
    }
    transaction.commit().await.map_err(failed(operation))?;
    Ok(extension)
}

/// Reads the installed pgvector; creates the extension if it is missing.
async fn extension(transaction: &Transaction<'_>) -> Result<Extension, IndexError> {
    let operation = "finding pgvector";
    let select = "select quote_ident(nspname), extversion from pg_extension
                  join pg_namespace on pg_namespace.oid = extnamespace where extname = 'vector'";
    let mut row = transaction.query_opt(select, &[]).await.map_err(failed(operation))?;
    if row.is_none() {
        let missing = "creating the extension `vector`, which requires pgvector 0.5 or newer on the server, and a user with the right \
                       to run `create extension vector` in this database once";
        transaction.batch_execute("create extension vector").await.map_err(failed(missing))?;
        row = transaction.query_opt(select, &[]).await.map_err(failed(operation))?;
    }
    let row = row.ok_or_else(|| IndexError::failed(operation)("the extension is missing"))?;
    let version: String = row.try_get(1).map_err(failed(operation))?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    Ok(Extension {
        schema: row.try_get(0).map_err(failed(operation))?,
        iterative_scans: version >= ITERATIVE_SCAN_VERSION,
    })
}

/// Applies the missing migrations.
async fn upgrade(transaction: &Transaction<'_>, dimensions: usize) -> Result<(), IndexError> {
    let operation = "migrating tables";
    let version = setting(transaction, "schema", "0").await?;
    let version: usize = version.parse().map_err(IndexError::failed(operation))?;
    let Some(missing) = MIGRATIONS.get(version..) else {
        return Err(IndexError::Invalid(format!(
            "the index in PostgreSQL was created by a newer nerve (table version {version}, this worker supports {}): update \
             this worker",
            MIGRATIONS.len()
        )));
    };
    if missing.is_empty() {
        return Ok(());
    }
    for step in missing {
        let step = step.replace("{dimensions}", &dimensions.to_string());
        transaction.batch_execute(&step).await.map_err(failed(operation))?;
    }
    let update = "update settings set value = $1 where name = 'schema'";
    transaction.execute(update, &[&MIGRATIONS.len().to_string()]).await.map_err(failed(operation))?;
    Ok(())
}

/// Reads a setting of the index; sets it to `default` if it is missing.
async fn setting(transaction: &Transaction<'_>, name: &str, first: &str) -> Result<String, IndexError> {
    let operation = "reading settings";
    let select = "select value from settings where name = $1";
    if let Some(row) = transaction.query_opt(select, &[&name]).await.map_err(failed(operation))? {
        return row.try_get(0).map_err(failed(operation));
    }
    let insert = "insert into settings (name, value) values ($1, $2)";
    transaction.execute(insert, &[&name, &first]).await.map_err(failed(operation))?;
    Ok(first.to_owned())
}

async fn query_flag(transaction: &Transaction<'_>, select: &str, operation: &'static str) -> Result<bool, IndexError> {
    let row = transaction.query_one(select, &[]).await.map_err(failed(operation))?;
    row.try_get(0).map_err(failed(operation))
}
