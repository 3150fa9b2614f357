//! `farhold schema`: JSON Schemas of profiles and packs, for editors.

use crate::pack::model::PackFile;
use crate::profile::model::Profile;
use anyhow::Result;
use std::process::ExitCode;

/// Prints the JSON Schema of profiles or packs.
#[derive(clap::Args)]
pub struct SchemaCmd {
    /// Which.
    of: SchemaOf,
}

/// What has a published schema.
#[derive(Clone, Copy, clap::ValueEnum)]
enum SchemaOf {
    /// Profile files.
    Profile,
    /// `pack.yaml` files.
    Pack,
}

impl SchemaCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn run(&self) -> Result<ExitCode> {
        println!("{}", text(self.of)?);
        Ok(ExitCode::SUCCESS)
    }
}

fn text(of: SchemaOf) -> Result<String> {
    let schema = match of {
        SchemaOf::Profile => schemars::schema_for!(Profile),
        SchemaOf::Pack => schemars::schema_for!(PackFile),
    };
    Ok(serde_json::to_string_pretty(&schema)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn published_schemas_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/schema");
        for (of, name) in [(SchemaOf::Profile, "profile.schema.json"), (SchemaOf::Pack, "pack.schema.json")] {
            let (path, wanted) = (folder.join(name), format!("{}\n", text(of).unwrap()));
            if std::env::var_os("UPDATE").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &wanted).unwrap();
            }
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(there == wanted, "{} is stale: run the test with UPDATE=1", path.display());
        }
    }
}
