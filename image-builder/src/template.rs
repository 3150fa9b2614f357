//! Templates of packs and settings: minijinja, undefined names are errors, nothing is escaped.

use anyhow::{Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;
use serde_json::Value;

/// Names that templates can use.
#[derive(Clone, Debug, Serialize)]
pub struct Scope {
    /// Variables of the profile.
    pub vars: serde_json::Map<String, Value>,
    /// Values of the layer's pack; null outside packs.
    pub values: Value,
    /// Settings of the profile.
    pub settings: Value,
    /// Profile name, version, product, arch and board.
    pub profile: Value,
    /// Two-node settings, or null.
    pub ha: Value,
}

/// Renders `text`.
///
/// # Errors
/// If the template is malformed or names something that is not there; one line with the template's line.
pub fn render(text: &str, name: &str, scope: &Scope) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    let scope = Serde(scope);
    environment.render_named_str(name, text, scope).with_context(|| format!("render {name}"))
}

/// Fills in a value: strings are rendered; a string that is one variable and nothing else takes the variable's type.
///
/// # Errors
/// The path of the value and why, for each string that cannot be rendered.
pub fn fill(value: &Value, path: &str, scope: &Scope, errors: &mut Vec<(String, String)>) -> Value {
    match value {
        Value::String(text) => fill_string(text, path, scope, errors),
        Value::Array(items) => {
            let each = items.iter().enumerate();
            Value::Array(each.map(|(n, item)| fill(item, &format!("{path}[{n}]"), scope, errors)).collect())
        }
        Value::Object(map) => {
            let each = map.iter();
            Value::Object(
                each.map(|(key, item)| (key.clone(), fill(item, &format!("{path}.{key}"), scope, errors)))
                    .collect(),
            )
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn fill_string(text: &str, path: &str, scope: &Scope, errors: &mut Vec<(String, String)>) -> Value {
    if let Some(name) = only_variable(text)
        && let Some(value) = scope.vars.get(name)
    {
        return value.clone();
    }
    if !text.contains("{{") && !text.contains("{%") {
        return Value::String(text.to_owned());
    }
    match render(text, path, scope) {
        Ok(text) => Value::String(text),
        Err(error) => {
            errors.push((
                path.to_owned(),
                missing(text, scope).unwrap_or_else(|| error.root_cause().to_string()),
            ));
            Value::Null
        }
    }
}

/// `NAME` of `{{ vars.NAME }}`.
fn only_variable(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?.trim().strip_prefix("vars.")?;
    inner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(inner)
}

/// Names of variables that a text uses.
pub fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.split("vars.").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

fn missing(text: &str, scope: &Scope) -> Option<String> {
    let name = variables(text).find(|name| !scope.vars.contains_key(*name))?;
    let known = scope.vars.keys().map(String::as_str);
    Some(format!(
        "variable `{name}` is not declared under `variables`; {}",
        crate::finding::suggest(name, known)
    ))
}
