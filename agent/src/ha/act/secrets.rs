//! What both nodes must know and nobody else: the datastore's password and k3s' token.
//!
//! They stand in a table of the agent's own database, so they reach the other node, and new hardware, with the replication, through
//! the tunnel. Whoever can read that database can read the datastore itself.

use super::identity::Number;
use super::session::{connect, row};
use super::settings::CONTROL;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tokio_postgres::Client;

/// The secrets of a site.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Password of the datastore's owner.
    pub datastore_password: String,
    /// k3s' token: it encrypts its authorities' keys in the datastore.
    pub token: String,
}

impl Secrets {
    /// New ones.
    ///
    /// # Errors
    /// If the kernel has no random numbers.
    pub fn draw() -> Result<Self> {
        let word = || Ok::<_, anyhow::Error>(format!("{}{}", Number::draw()?, Number::draw()?));
        Ok(Self { datastore_password: word()?, token: word()? })
    }

    /// Keeps them in a new database.
    ///
    /// # Errors
    /// The server's.
    pub async fn store(&self, client: &Client) -> Result<()> {
        let (password, token) = (&self.datastore_password, &self.token);
        // Both are hexadecimal digits.
        let make = format!(
            "CREATE TABLE farhold_secrets (datastore_password text NOT NULL, token text NOT NULL); \
             INSERT INTO farhold_secrets VALUES ('{password}', '{token}')"
        );
        client.simple_query(&make).await.context("keep the secrets of the site").map(drop)
    }
}

/// Reads the secrets from this node's server, primary or standby; `run` is the folder of its sockets.
///
/// # Errors
/// If no server runs here, or it has none yet.
pub async fn secrets(run: &Path) -> Result<Secrets> {
    let client = connect(&run.join("db"), CONTROL).await?;
    let found = row(&client, "SELECT datastore_password, token FROM farhold_secrets").await?;
    let [Some(datastore_password), Some(token)] = found.as_slice() else {
        bail!("the secrets are incomplete")
    };
    Ok(Secrets { datastore_password: datastore_password.clone(), token: token.clone() })
}
