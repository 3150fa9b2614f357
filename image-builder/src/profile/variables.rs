//! Typed variables: values from `--set` and defaults, checked against their type.

use super::model::{Variable, VariableKind};
use crate::finding::{Finding, join, suggest};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Gives every variable its value; with one finding for each that is unknown, missing or of the wrong type.
pub fn evaluate(
    declared: &BTreeMap<String, Variable>,
    set: &BTreeMap<String, String>,
) -> (Map<String, Value>, Vec<Finding>) {
    let mut values = Map::new();
    let mut findings = Vec::new();
    for name in set.keys().filter(|name| !declared.contains_key(*name)) {
        let next = suggest(name, declared.keys().map(String::as_str));
        findings.push(Finding::error(format!("--set {name}"), "the profile declares no such variable", next));
    }
    for (name, variable) in declared {
        let place = format!("variables.{name}");
        let value = match (set.get(name), &variable.default) {
            (Some(text), _) => read(variable.kind, text),
            (None, Some(default)) => Some(default.clone()),
            (None, None) => {
                let next = format!("give it with --set {name}=VALUE, or a default");
                findings.push(Finding::error(place, "has no value", next));
                continue;
            }
        };
        match value.filter(|value| fits(variable.kind, value)) {
            None => {
                let message = format!("{} is not {}", shown(set.get(name), variable), wanted(variable.kind));
                findings.push(Finding::error(place, message, "correct the value"));
            }
            Some(value) if !variable.one_of.is_empty() && !variable.one_of.contains(&value) => {
                let allowed: Vec<String> = variable.one_of.iter().map(Value::to_string).collect();
                let next = format!("it must be one of {}", join(allowed.iter().map(String::as_str)));
                findings.push(Finding::error(place, format!("{value} is not allowed"), next));
            }
            Some(value) if !matches(&value, variable.pattern.as_deref()) => {
                let pattern = variable.pattern.as_deref().unwrap_or_default();
                let message = format!("{value} does not have the form {pattern}");
                findings.push(Finding::error(place, message, "correct the value or the pattern"));
            }
            Some(value) => {
                values.insert(name.clone(), value);
            }
        }
    }
    (values, findings)
}

/// Whether a text has the form of a regular expression; one that is none matches nothing.
fn matches(value: &Value, pattern: Option<&str>) -> bool {
    let Some(pattern) = pattern else { return true };
    let schema = serde_json::json!({ "type": "string", "pattern": pattern });
    jsonschema::validator_for(&schema).is_ok_and(|validator| validator.is_valid(value))
}

fn shown(set: Option<&String>, variable: &Variable) -> String {
    match (set, &variable.default) {
        (Some(text), _) => format!("`{text}`"),
        (None, default) => format!("the default {}", default.clone().unwrap_or_default()),
    }
}

fn read(kind: VariableKind, text: &str) -> Option<Value> {
    match kind {
        VariableKind::Number => text.parse::<i64>().ok().map(Value::from),
        VariableKind::Boolean => text.parse::<bool>().ok().map(Value::from),
        VariableKind::List => Some(Value::from(text.split(',').map(str::trim).collect::<Vec<_>>())),
        VariableKind::String
        | VariableKind::Version
        | VariableKind::Ipv4
        | VariableKind::Ipv4cidr
        | VariableKind::Ipv6
        | VariableKind::SshKey
        | VariableKind::PasswordHash => Some(Value::from(text)),
    }
}

fn fits(kind: VariableKind, value: &Value) -> bool {
    let text = value.as_str();
    match kind {
        VariableKind::String => text.is_some(),
        VariableKind::Number => value.is_i64() || value.is_u64(),
        VariableKind::Boolean => value.is_boolean(),
        VariableKind::Version => text.is_some_and(is_version),
        VariableKind::Ipv4 => text.is_some_and(|t| t.parse::<Ipv4Addr>().is_ok()),
        VariableKind::Ipv4cidr => text.is_some_and(is_cidr),
        VariableKind::Ipv6 => text.is_some_and(|t| t.parse::<Ipv6Addr>().is_ok()),
        VariableKind::SshKey => text.is_some_and(is_ssh_key),
        VariableKind::PasswordHash => text.is_some_and(|t| t.starts_with('$') && !t.contains([':', '\n'])),
        VariableKind::List => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
    }
}

fn wanted(kind: VariableKind) -> &'static str {
    match kind {
        VariableKind::String => "a text",
        VariableKind::Number => "a whole number",
        VariableKind::Boolean => "true or false",
        VariableKind::Version => "a version such as 1.2.3",
        VariableKind::Ipv4 => "an IPv4 address",
        VariableKind::Ipv4cidr => "an IPv4 network such as 10.0.0.0/16",
        VariableKind::Ipv6 => "an IPv6 address",
        VariableKind::SshKey => "a line of authorized_keys such as `ssh-ed25519 AAAA… name`",
        VariableKind::PasswordHash => "a crypt(3) hash such as `$y$…`",
        VariableKind::List => "a list of texts",
    }
}

/// A version that can stand in boot entry names: at most 32 of letters, digits, `.` and `-`, first a digit.
pub fn is_version(text: &str) -> bool {
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
}

/// An IPv4 address with prefix length.
pub fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= 32)
    })
}

fn is_ssh_key(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    let kind = words.next();
    text.is_empty()
        || (!text.contains('\n')
            && kind.is_some_and(|kind| ["ssh-", "ecdsa-", "sk-"].iter().any(|p| kind.starts_with(p)))
            && words.next().is_some_and(|key| key.starts_with("AAAA")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(kind: VariableKind, set: &str) -> Result<Value, String> {
        let variable =
            Variable { kind, default: None, one_of: vec![], pattern: None, description: String::new() };
        let (mut values, findings) =
            evaluate(&[("v".into(), variable)].into(), &[("v".into(), set.into())].into());
        values.remove("v").ok_or_else(|| findings[0].to_string())
    }

    #[test]
    fn values_have_the_declared_type() {
        assert_eq!(one(VariableKind::Number, "42"), Ok(42.into()));
        assert_eq!(one(VariableKind::Boolean, "true"), Ok(true.into()));
        assert_eq!(one(VariableKind::List, "a, b"), Ok(vec!["a", "b"].into()));
        assert_eq!(one(VariableKind::SshKey, ""), Ok("".into()));
        for (kind, bad) in [
            (VariableKind::Number, "4x"),
            (VariableKind::Boolean, "yes"),
            (VariableKind::Ipv4, "10.0.0.256"),
            (VariableKind::Ipv4cidr, "10.0.0.0/33"),
            (VariableKind::SshKey, "hello"),
            (VariableKind::PasswordHash, "secret"),
            (VariableKind::Version, "v1"),
        ] {
            let error = one(kind, bad).unwrap_err();
            assert!(error.starts_with(&format!("error: variables.v: `{bad}` is not ")), "{error}");
        }
    }

    #[test]
    fn texts_have_the_form_of_the_pattern() {
        let variable = |pattern: &str| Variable {
            kind: VariableKind::String,
            default: None,
            one_of: vec![],
            pattern: Some(pattern.into()),
            description: String::new(),
        };
        let evaluate = |pattern| {
            evaluate(&[("v".into(), variable(pattern))].into(), &[("v".into(), "site-7".into())].into())
        };
        assert_eq!(evaluate("^site-[0-9]+$").1, []);
        assert_eq!(evaluate("^[0-9]+$").1.len(), 1);
        assert_eq!(evaluate("(").1.len(), 1);
    }

    #[test]
    fn unknown_and_missing_are_found_together() {
        let variable = Variable {
            kind: VariableKind::String,
            default: None,
            one_of: vec![],
            pattern: None,
            description: String::new(),
        };
        let (_, findings) =
            evaluate(&[("site".into(), variable)].into(), &[("sites".into(), "x".into())].into());
        assert_eq!(findings.len(), 2);
        assert!(findings[0].to_string().contains("did you mean `site`?"));
        assert!(findings[1].to_string().contains("--set site=VALUE"));
    }
}
