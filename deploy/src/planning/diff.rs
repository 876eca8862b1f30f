//! What changes between two releases, for people. Secrets are masked.

use serde::Serialize;
use serde_json::Value;

use super::locks;
use crate::release::{Release, masked};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What differs, such as `package.pypi.version` or `files.config.toml`.
    pub field: String,
    /// What it was, when it was there.
    pub before: Option<String>,
    /// What it becomes, when it stays.
    pub after: Option<String>,
}

/// The differences from `before` to `after`, in the order of their fields.
pub fn changes(before: &Release, after: &Release) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", &readable(before), &readable(after), &mut found);
    found
}

/// The release as a tree in which lists of named things are maps, and secrets are only named.
fn readable(release: &Release) -> Value {
    let mut tree = serde_json::to_value(release).unwrap_or_default();
    for (list, key) in [("files", "path"), ("health_checks", "name")] {
        if let Some(Value::Array(items)) = tree.get_mut(list).map(Value::take) {
            let named = items.into_iter().map(|item| {
                let name = item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                (name, item)
            });
            tree[list] = Value::Object(named.collect());
        }
    }
    for kind in ["pypi", "npm"] {
        if let Some(lock) = tree.pointer_mut(&format!("/package/{kind}/lock"))
            && let Some(text) = lock.as_str()
        {
            *lock = Value::Object(locks::summary(text).into_iter().map(|(name, of)| (name, of.into())).collect());
        }
    }
    tree
}

fn compare(field: &str, before: &Value, after: &Value, found: &mut Vec<Change>) {
    if before == after {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (before, after) {
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let name = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
            compare(&name, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), found);
        }
        return;
    }
    let is_secret = field.starts_with("secrets.");
    let text = |value: &Value| match value {
        Value::Null => None,
        // A lock that comes or goes whole: what is in it is in its file.
        Value::Object(packages) if field.ends_with(".lock") => Some(format!("{} packages", packages.len())),
        _ if is_secret => Some("(secret)".to_owned()),
        Value::String(text) => Some(masked(text)),
        other => Some(masked(&other.to_string())),
    };
    let field = field.strip_suffix(".digest").unwrap_or(field).to_owned();
    found.push(Change { field, before: text(before), after: text(after) });
}
