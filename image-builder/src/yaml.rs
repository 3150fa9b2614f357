//! Reads YAML files into types; errors name file, line and column and keep to one line.

use crate::finding::Finding;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

/// Largest file that is read; profiles and packs are a few kilobytes.
const LIMIT: u64 = 4 << 20;

/// Reads a text file of bounded length.
///
/// # Errors
/// A finding that names the file.
pub fn text(path: &Path) -> Result<String, Finding> {
    let place = path.display().to_string();
    let length = fs::metadata(path).map(|meta| meta.len());
    match length.and_then(|length| if length > LIMIT { Ok(None) } else { fs::read_to_string(path).map(Some) })
    {
        Ok(Some(text)) => Ok(text),
        Ok(None) => {
            let message = format!("larger than {} MiB", LIMIT >> 20);
            Err(Finding::error("", message, "is this the right file?").in_file(place))
        }
        Err(error) => {
            Err(Finding::error("", format!("cannot be read: {error}"), "check the path").in_file(place))
        }
    }
}

/// Reads a YAML file.
///
/// # Errors
/// A finding that names file, line and column.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Finding> {
    parse(&text(path)?, &path.display().to_string())
}

/// Reads YAML text; `name` stands for the file in errors.
///
/// # Errors
/// A finding that names line and column.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Finding> {
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map(|at| (at.line(), at.column()));
        let full = error.without_snippet().to_string();
        let message = full.lines().next().unwrap_or_default();
        // The location stands in the place already.
        let message = message.split_once(" at line ").map_or(message, |(head, _)| head);
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let next = "correct the file; editors show it with the published schema";
        Finding::error("", message.trim_end_matches([':', ' ']), next).in_file(name).at_line(place)
    })
}

/// Where the values of a file stand, as line and column by path as `layers[2].values.port`.
#[derive(Debug, Default)]
pub struct Places {
    by_path: BTreeMap<String, (u64, u64)>,
}

impl Places {
    /// Finds the places of a text; a text that is no YAML has none.
    pub fn of(text: &str) -> Self {
        let mut places = Self::default();
        if let Ok(root) = serde_saphyr::from_str::<Node>(text) {
            root.note("", &mut places.by_path);
        }
        places
    }

    /// Line and column of a path, or of the nearest value around it that stands in the file.
    pub fn find(&self, path: &str) -> Option<(u64, u64)> {
        let mut path = path;
        loop {
            if let Some(place) = self.by_path.get(path) {
                return Some(*place);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// A value with the place of everything in it; what scalars say does not matter here.
struct Node(Spanned<Content>);

enum Content {
    Scalar,
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn note(&self, path: &str, places: &mut BTreeMap<String, (u64, u64)>) {
        let at = self.0.referenced;
        if !path.is_empty() && at.line() > 0 {
            places.insert(path.to_owned(), (at.line(), at.column()));
        }
        match &self.0.value {
            Content::Scalar => {}
            Content::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    item.note(&format!("{path}[{n}]"), places);
                }
            }
            Content::Map(items) => {
                for (key, item) in items {
                    let dot = if path.is_empty() { "" } else { "." };
                    item.note(&format!("{path}{dot}{key}"), places);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_none<E: de::Error>(self) -> Result<Content, E> {
                Ok(Content::Scalar)
            }
            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Content, D::Error> {
                IgnoredAny::deserialize(inner).map(|_| Content::Scalar)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Content::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_entry()? {
                    items.push(item);
                }
                Ok(Content::Map(items))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_where_they_stand_and_missing_ones_around() {
        let places = Places::of("a: 1\nlist:\n  - {x: 1,\n     y: null}\n  - text\n");
        assert_eq!(places.find("a"), Some((1, 4)));
        assert_eq!(places.find("list[0].y"), Some((4, 9)));
        assert_eq!(places.find("list[1]"), Some((5, 5)));
        assert_eq!(places.find("list[0].z.deeper"), Some((3, 5)));
        assert_eq!(places.find("nothing"), None);
    }

    #[test]
    fn a_text_that_is_no_yaml_has_no_places() {
        assert_eq!(Places::of("a: [").find("a"), None);
    }
}
