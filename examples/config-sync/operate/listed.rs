//! Changes as a program writes them: `{"put": {KEY: VALUE}, "delete": [KEY]}`.
//!
//! Owns: the form, and that each key is named once. Never: which of two wishes counts.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use spanwire_config::{ChangeSet, Key};

/// The text as it is: names may come twice.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(default)]
    put: Pairs,
    #[serde(default)]
    delete: Vec<String>,
}

#[derive(Default)]
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Pairs, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Pairs::default();
                let mut seen = BTreeSet::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("{key} is put twice")));
                    }
                    pairs.0.push((key, value));
                }
                Ok(pairs)
            }
        }
        from.deserialize_map(Object)
    }
}

/// The changes that this text lists.
pub(super) fn listed(text: &[u8]) -> Result<ChangeSet, String> {
    let form = "it is to be {\"put\": {KEY: VALUE}, \"delete\": [KEY]} with texts";
    if !text.trim_ascii_start().starts_with(b"{") {
        // A list of both, which has no names, would be taken.
        return Err(form.to_owned());
    }
    let Listed { put, delete } = serde_json::from_slice(text).map_err(|error| format!("{error}; {form}"))?;
    let key = |name: &str| Key::new(name).map_err(|error| error.to_string());
    let (mut changes, mut deleted) = (ChangeSet::new(), BTreeSet::new());
    let named: BTreeSet<&str> = put.0.iter().map(|(name, _)| &name[..]).collect();
    for name in &delete {
        if named.contains(&name[..]) {
            return Err(format!("{name} is both put and deleted"));
        }
        if !deleted.insert(name) {
            return Err(format!("{name} is deleted twice"));
        }
        changes.delete(key(name)?);
    }
    for (name, value) in put.0 {
        changes.put(key(&name)?, 0, value);
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_each_key_once() {
        let keys = |text: &str| {
            listed(text.as_bytes()).map(|changes| changes.keys().map(Key::to_string).collect::<Vec<_>>())
        };
        assert_eq!(keys(r#"{"put": {"b": "1"}, "delete": ["a", "c"]}"#).expect("right"), ["a", "b", "c"]);
        assert_eq!(keys("{}").expect("nothing"), Vec::<String>::new());
        for (text, why) in [
            (r#"{"put": {"x": "1", "x": "2"}}"#, "x is put twice"),
            (r#"{"delete": ["x", "x"]}"#, "x is deleted twice"),
            (r#"{"put": {"x": "1"}, "delete": ["x"]}"#, "x is both put and deleted"),
            (r#"{"put": {"x": 1}}"#, "with texts"),
            (r#"{"puts": {}}"#, "with texts"),
            (r#"{"put": {}, "put": {}}"#, "duplicate field"),
            (r#"{"delete": [""]}"#, "1 to 1024 bytes"),
            ("[]", "with texts"),
        ] {
            let error = keys(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
