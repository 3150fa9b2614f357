//! Templates of packs and settings: minijinja, undefined names are errors, nothing is escaped.

use crate::finding::suggest;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// Names that templates can use.
#[derive(Clone, Debug, Serialize)]
pub struct Scope {
    /// Variables of the profile that have a value.
    pub vars: serde_json::Map<String, Value>,
    /// Names of all variables; what is wrong with one without a value is known already.
    #[serde(skip)]
    pub declared: BTreeSet<String>,
    /// Values of the layer's pack; null outside packs.
    pub values: Value,
    /// Settings of the profile.
    pub settings: Value,
    /// Profile name, version, product, arch, board, and seconds of its watchdog.
    pub profile: Value,
    /// Two-node settings, or null.
    pub ha: Value,
}

/// Why a text could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderError {
    /// Line of the text, from 1.
    pub line: Option<u64>,
    /// What is wrong, one line.
    pub message: String,
}

/// Renders `text`.
///
/// # Errors
/// If the template is malformed or names something that is not there.
pub fn render(text: &str, scope: &Scope) -> Result<String, RenderError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // Only with it do errors know the expression that they are about.
    environment.set_debug(true);
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(|error| explain(&error, text))?);
    environment.render_str(text, Serde(scope)).map_err(|error| explain(&error, text))
}

fn explain(error: &minijinja::Error, text: &str) -> RenderError {
    let expression = error.range().and_then(|range| text.get(range)).map(str::trim);
    let message = match (error.kind() == ErrorKind::UndefinedError, expression) {
        (true, Some(expression)) => format!("`{expression}` is not defined"),
        (true, None) | (false, _) => {
            let detail = error.detail().map(|detail| format!(": {detail}"));
            format!("{}{}", error.kind(), detail.unwrap_or_default())
        }
    };
    RenderError { line: error.line().map(|line| line as u64), message }
}

/// A text that could not be filled in; null stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfilled {
    /// Path of the value.
    pub path: String,
    /// What is wrong and what to do; absent if that is known from the variable.
    pub why: Option<(String, String)>,
}

/// Fills in a value: strings are rendered; a string that is one variable and nothing else takes the variable's type.
/// What cannot be rendered is added to `unfilled`.
pub fn fill(value: &Value, path: &str, scope: &Scope, unfilled: &mut Vec<Unfilled>) -> Value {
    match value {
        Value::String(text) => match fill_string(text, scope) {
            Ok(value) => value,
            Err(why) => {
                unfilled.push(Unfilled { path: path.to_owned(), why });
                Value::Null
            }
        },
        Value::Array(items) => {
            let each = items.iter().enumerate();
            Value::Array(each.map(|(n, item)| fill(item, &format!("{path}[{n}]"), scope, unfilled)).collect())
        }
        Value::Object(map) => {
            let each = map.iter();
            Value::Object(
                each.map(|(key, item)| (key.clone(), fill(item, &format!("{path}.{key}"), scope, unfilled)))
                    .collect(),
            )
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn fill_string(text: &str, scope: &Scope) -> Result<Value, Option<(String, String)>> {
    if let Some(name) = only_variable(text)
        && let Some(value) = scope.vars.get(name)
    {
        return Ok(value.clone());
    }
    if !text.contains("{{") && !text.contains("{%") {
        return Ok(Value::String(text.to_owned()));
    }
    render(text, scope).map(Value::String).map_err(|error| {
        let Some(name) = variables(text).find(|name| !scope.vars.contains_key(*name)) else {
            return Some((error.message, "correct the template".into()));
        };
        let known = scope.declared.iter().map(String::as_str);
        let undeclared = !scope.declared.contains(name);
        undeclared
            .then(|| (format!("variable `{name}` is not declared under `variables`"), suggest(name, known)))
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scope() -> Scope {
        Scope {
            vars: json!({ "port": 80, "name": "north" }).as_object().cloned().unwrap_or_default(),
            declared: ["port", "name", "wrong"].map(str::to_owned).into(),
            values: json!({ "list": ["a", "b"] }),
            settings: Value::Null,
            profile: Value::Null,
            ha: Value::Null,
        }
    }

    #[test]
    fn one_variable_alone_keeps_its_type() {
        let mut unfilled = Vec::new();
        let value = json!({ "a": "{{ vars.port }}", "b": ["{{ vars.name }}-{{ vars.port }}"], "c": 1 });
        let filled = fill(&value, "values", &scope(), &mut unfilled);
        assert_eq!(filled, json!({ "a": 80, "b": ["north-80"], "c": 1 }));
        assert_eq!(unfilled, []);
    }

    #[test]
    fn each_text_that_cannot_be_filled_is_told_once() {
        let mut unfilled = Vec::new();
        let value = json!({ "a": "{{ vars.prot }}", "b": "{{ vars.wrong }}", "c": "{{ values.none }}" });
        fill(&value, "values", &scope(), &mut unfilled);
        let why = |n: usize| unfilled[n].why.as_ref().map(|(message, next)| format!("{message}; {next}"));
        assert_eq!(
            why(0).as_deref(),
            Some("variable `prot` is not declared under `variables`; did you mean `port`?")
        );
        assert_eq!(why(1), None, "the variable's own finding is enough");
        assert_eq!(why(2).as_deref(), Some("`values.none` is not defined; correct the template"));
    }

    #[test]
    fn errors_of_templates_name_line_and_expression() {
        let error = render("one\n{{ values.none }}\n", &scope()).unwrap_err();
        assert_eq!(error, RenderError { line: Some(2), message: "`values.none` is not defined".into() });
        let error = render("{% for x in values.list %}", &scope()).unwrap_err();
        assert!(error.message.starts_with("syntax error: "), "{error:?}");
    }

    #[test]
    fn lines_of_blocks_leave_nothing_behind() {
        let text = "{% for x in values.list %}\n- {{ x }}\n{% endfor %}\nend\n";
        assert_eq!(render(text, &scope()).as_deref(), Ok("- a\n- b\nend\n"));
    }
}
