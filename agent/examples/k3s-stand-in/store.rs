//! kine's table: a row a revision, the newest row of a name counts, and a unique index over name and previous revision
//! is the compare-and-swap.

use serde_json::Value;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS kine (id BIGSERIAL PRIMARY KEY, name TEXT COLLATE \"C\", created INTEGER, \
    deleted INTEGER, create_revision BIGINT, prev_revision BIGINT, lease INTEGER, value BYTEA, old_value BYTEA); \
    CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision_uindex ON kine (name, prev_revision)";
const INSERT: &str = "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) \
    VALUES ($1, $2, $3, 0, $4, 0, $5) RETURNING id";
const NEWEST: &str = "SELECT id, deleted, value FROM kine WHERE name = $1 ORDER BY id DESC LIMIT 1";
const ALL: &str =
    "SELECT DISTINCT ON (name) id, deleted, value, name FROM kine WHERE name LIKE $1 ORDER BY name, id DESC";
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Store {
    endpoint: String,
    client: Mutex<Option<Client>>,
}

/// An object and its revision.
pub type Found = (i64, Value);

#[derive(Debug)]
pub enum Failure {
    /// Somebody else was quicker, or it exists.
    Conflict,
    /// The datastore did not answer.
    Away(String),
}

impl Store {
    /// Waits until the datastore takes the table.
    pub async fn open(endpoint: &str) -> Self {
        let store = Self { endpoint: endpoint.to_owned(), client: Mutex::new(None) };
        while let Err(error) = store.batch(TABLE).await {
            eprintln!("k3s-stand-in: the datastore does not take the table: {error:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        store
    }

    async fn with<T>(
        &self,
        work: impl AsyncFn(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Failure> {
        let mut kept = self.client.lock().await;
        let away = |error: tokio_postgres::Error| match error.code() {
            Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => Failure::Conflict,
            Some(_) | None => Failure::Away(error.to_string()),
        };
        let late = |_| Failure::Away("no answer in time".to_owned());
        let client = match kept.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => {
                let connect = tokio_postgres::connect(&self.endpoint, NoTls);
                let (client, connection) = timeout(PATIENCE, connect).await.map_err(late)?.map_err(away)?;
                tokio::task::spawn_local(async move { drop(connection.await) });
                client
            }
        };
        let done = timeout(PATIENCE, work(&client)).await.map_err(late)?.map_err(away);
        // A session that failed otherwise than by its statement is not used again.
        if matches!(done, Ok(_) | Err(Failure::Conflict)) {
            *kept = Some(client);
        }
        done
    }

    async fn batch(&self, text: &str) -> Result<(), Failure> {
        self.with(async |client| client.batch_execute(text).await).await
    }

    pub async fn answers(&self) -> bool {
        self.batch("SELECT 1").await.is_ok()
    }

    pub async fn get(&self, name: &str) -> Result<Option<Found>, Failure> {
        let row = self.with(async |client| client.query_opt(NEWEST, &[&name]).await).await?;
        Ok(row
            .filter(|row| row.get::<_, i32>(1) == 0)
            .map(|row| (row.get(0), object(row.get(0), row.get(2)))))
    }

    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, Failure> {
        let like = format!("{prefix}%");
        let rows = self.with(async |client| client.query(ALL, &[&like]).await).await?;
        let there = rows.iter().filter(|row| row.get::<_, i32>(1) == 0);
        Ok(there.map(|row| (row.get(3), object(row.get(0), row.get(2)))).collect())
    }

    pub async fn create(&self, name: &str, value: &Value) -> Result<i64, Failure> {
        let last = self.with(async |client| client.query_opt(NEWEST, &[&name]).await).await?;
        let previous = match last.map(|row| (row.get::<_, i64>(0), row.get::<_, i32>(1))) {
            None => 0,
            Some((id, 1)) => id,
            Some(_) => return Err(Failure::Conflict),
        };
        self.insert(name, (1, 0), previous, value).await
    }

    pub async fn update(&self, name: &str, revision: i64, value: &Value) -> Result<i64, Failure> {
        self.insert(name, (0, 0), revision, value).await
    }

    pub async fn delete(&self, name: &str, revision: i64) -> Result<i64, Failure> {
        self.insert(name, (0, 1), revision, &Value::Null).await
    }

    async fn insert(
        &self,
        name: &str,
        kind: (i32, i32),
        previous: i64,
        value: &Value,
    ) -> Result<i64, Failure> {
        let bytes = value.to_string().into_bytes();
        let row = self
            .with(async |client| {
                client.query_one(INSERT, &[&name, &kind.0, &kind.1, &previous, &bytes]).await
            })
            .await?;
        Ok(row.get(0))
    }
}

fn object(revision: i64, bytes: Vec<u8>) -> Value {
    let mut value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if value.is_object() {
        value["metadata"]["resourceVersion"] = revision.to_string().into();
    }
    value
}
