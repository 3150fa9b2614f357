//! Checks values against a JSON Schema and says what is wrong in words that people use: one finding per value.
//!
//! Knows nothing of files; follows JSON Schema 2020-12 as the crate `jsonschema` implements it.

use crate::finding::{Finding, join, nearest, suggest};
use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use jsonschema::{JsonType, ValidationError};
use serde_json::Value;

/// All that is wrong with `value`, which stands at `root`, as `layers[2].values`.
///
/// # Errors
/// If the schema itself is none.
pub fn violations(schema: &Value, value: &Value, root: &str) -> Result<Vec<Finding>, String> {
    let validator = jsonschema::validator_for(schema).map_err(|error| error.to_string())?;
    let mut findings = Vec::new();
    for error in validator.iter_errors(value) {
        explain(&error, schema, root, &mut findings);
    }
    Ok(findings)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "kinds of another crate; its own words serve for the rest"
)]
fn explain(error: &ValidationError<'_>, schema: &Value, root: &str, findings: &mut Vec<Finding>) {
    let path = dotted(root, error.instance_path().as_str());
    let shown = short(error.instance());
    let mut find =
        |path: String, message: String, next: String| findings.push(Finding::error(path, message, next));
    match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let known = properties(schema, error.schema_path().as_str());
            for key in unexpected {
                let next = suggest(key, known.iter().map(String::as_str));
                find(format!("{path}.{key}"), "is not known here".into(), next);
            }
        }
        Kind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            find(path, format!("lacks `{key}`"), format!("add `{key}`"));
        }
        Kind::Type { kind } => {
            let scalar = error.instance().is_number() || error.instance().is_boolean();
            let text = matches!(kind, TypeKind::Single(JsonType::String));
            let hint = if scalar && text { "put it into quotes" } else { "correct the value" };
            find(path, format!("{shown} must be {}", wanted(kind)), hint.into());
        }
        Kind::Enum { options } => {
            let options: Vec<String> = options.as_array().into_iter().flatten().map(plain).collect();
            let text = error.instance().as_str().unwrap_or_default();
            let next = match nearest(text, options.iter().map(String::as_str)) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "correct the value".into(),
            };
            find(path, format!("{shown} is not one of {}", join(options.iter().map(String::as_str))), next);
        }
        Kind::OneOfNotValid { context } | Kind::AnyOf { context } => {
            // The branch that was meant is the one that fits best.
            let branch = context.iter().min_by_key(|errors| weight(errors));
            for inner in branch.into_iter().flatten() {
                explain(inner, schema, root, findings);
            }
        }
        Kind::Pattern { pattern } => {
            find(path, format!("{shown} does not have the form {pattern}"), "correct the value".into());
        }
        _ => find(path, error.to_string(), "correct the value".into()),
    }
}

/// How far a branch is from fitting: a wrong tag weighs more than anything that is wrong beside it.
#[expect(clippy::wildcard_enum_match_arm, reason = "kinds of another crate, all alike but these")]
fn weight(errors: &[ValidationError<'_>]) -> usize {
    errors
        .iter()
        .map(|error| match error.kind() {
            Kind::Constant { .. } | Kind::Enum { .. } => 100,
            Kind::Type { .. } => 10,
            _ => 1,
        })
        .sum()
}

fn wanted(kind: &TypeKind) -> String {
    let name = |kind: JsonType| match kind {
        JsonType::String => "a text",
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::Boolean => "true or false",
        JsonType::Array => "a list",
        JsonType::Object => "a map of keys and values",
        JsonType::Null => "empty",
    };
    match kind {
        TypeKind::Single(kind) => name(*kind).to_owned(),
        TypeKind::Multiple(kinds) => {
            let kinds = kinds.iter().filter(|kind| *kind != JsonType::Null);
            kinds.map(name).collect::<Vec<_>>().join(" or ")
        }
    }
}

/// Keys that the schema object around `pointer` declares.
fn properties(schema: &Value, pointer: &str) -> Vec<String> {
    let around = pointer.rsplit_once('/').map_or("", |(around, _)| around);
    let declared = schema.pointer(around).and_then(|object| object.get("properties"));
    declared.and_then(Value::as_object).map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

/// `settings` and `/networks/0/mtu` give `settings.networks[0].mtu`.
fn dotted(root: &str, pointer: &str) -> String {
    let mut path = root.to_owned();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        match part.parse::<usize>() {
            Ok(index) => path.push_str(&format!("[{index}]")),
            Err(_) => path.push_str(&format!(".{part}")),
        }
    }
    path
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as a message shows it.
fn short(value: &Value) -> String {
    let text = plain(value);
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(value: &Value) -> Vec<String> {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["name"],
            "properties": {
                "name": { "type": "string" },
                "port": { "type": "integer", "maximum": 9 },
                "mode": { "enum": ["fast", "slow"] },
                "probe": { "oneOf": [
                    { "type": "object", "required": ["kind", "unit"], "additionalProperties": false,
                      "properties": { "kind": { "const": "unit" }, "unit": { "type": "string" } } },
                    { "type": "object", "required": ["kind", "port"], "additionalProperties": false,
                      "properties": { "kind": { "const": "port" }, "port": { "type": "integer" } } },
                ] },
            },
        });
        let findings = violations(&schema, value, "values").unwrap();
        findings.into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn every_violation_is_named_in_words() {
        let found = messages(&json!({ "name": 13, "prot": 1, "mode": "fats", "port": "x" }));
        let expected = [
            "error: values.mode: `fats` is not one of fast, slow; did you mean `fast`?",
            "error: values.name: `13` must be a text; put it into quotes",
            "error: values.port: `x` must be a whole number; correct the value",
            "error: values.prot: is not known here; did you mean `port`?",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for line in expected {
            assert!(found.iter().any(|there| there == line), "{line} in {found:#?}");
        }
    }

    #[test]
    fn of_several_shapes_the_meant_one_is_explained() {
        let found = messages(&json!({ "name": "x", "probe": { "kind": "port", "prot": 1 } }));
        assert!(found.iter().any(|line| line.contains("lacks `port`")), "{found:#?}");
        assert!(found.iter().all(|line| !line.contains("unit")), "{found:#?}");
    }

    #[test]
    fn a_schema_that_is_none_is_an_error() {
        assert!(violations(&json!({ "type": 5 }), &json!({}), "values").is_err());
    }
}
