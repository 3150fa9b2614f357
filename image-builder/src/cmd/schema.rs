//! `farhold schema`: JSON Schemas of profiles and packs, for editors.

use crate::pack::model::PackFile;
use crate::profile::model::Profile;
use anyhow::Result;
use serde_json::{Map, Value, json};
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
        SchemaOf::Profile => {
            let mut schema = serde_json::to_value(schemars::schema_for!(Profile))?;
            allow_templates(&mut schema);
            schema
        }
        SchemaOf::Pack => serde_json::to_value(schemars::schema_for!(PackFile))?,
    };
    Ok(format!("{schema:#}"))
}

/// Where a profile wants a number or a switch, a text such as `{{ vars.port }}` may stand for it.
fn allow_templates(schema: &mut Value) {
    if is_scalar(schema) {
        let mut plain = schema.take();
        let mut around = Map::new();
        for key in ["description", "default"] {
            if let Some(value) = plain.as_object_mut().and_then(|plain| plain.remove(key)) {
                around.insert(key.into(), value);
            }
        }
        let template = json!({ "type": "string", "pattern": "\\{\\{.*\\}\\}" });
        around.insert("anyOf".into(), json!([plain, template]));
        *schema = Value::Object(around);
    } else if let Some(map) = schema.as_object_mut() {
        map.values_mut().for_each(allow_templates);
    } else if let Some(items) = schema.as_array_mut() {
        items.iter_mut().for_each(allow_templates);
    }
}

fn is_scalar(schema: &Value) -> bool {
    let kinds = schema.get("type").map(|kind| kind.as_array().cloned().unwrap_or_else(|| vec![kind.clone()]));
    kinds.is_some_and(|kinds| {
        kinds.iter().any(|kind| ["integer", "number", "boolean"].iter().any(|scalar| kind == scalar))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_template_may_stand_for_a_number_and_nothing_else_may() {
        let mut schema =
            json!({ "type": "object", "properties": { "port": { "type": "integer", "description": "d" } } });
        allow_templates(&mut schema);
        let fits = |port: Value| jsonschema::is_valid(&schema, &json!({ "port": port }));
        assert!(fits(json!(80)) && fits(json!("{{ vars.port }}")));
        assert!(!fits(json!("eighty")) && !fits(json!(true)));
        assert_eq!(schema["properties"]["port"]["description"], "d");
    }

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
