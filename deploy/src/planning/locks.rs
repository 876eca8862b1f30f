//! Locks: everything that comes with a package of a registry, each with its version and digests, as `fleetwright lock`
//! writes it beside the definition.

use std::collections::BTreeMap;

use crate::config::{PackageWritten, Problem, Server, Source};

/// Largest lock, in bytes: it is part of every release.
pub const LOCK_BYTES_MAX: usize = 512 * 1024;

/// What is wrong with a definition's lock, if anything is.
pub(super) fn check(source: &Source, server: &Server) -> Option<Problem> {
    let (lock, package) = (server.lock.as_ref()?, server.package.as_ref()?);
    let (written, hint) = (&package.value, format!("`fleetwright lock {}` writes it anew", source.path));
    let wrong = |message: String| Some(Problem::at(source, package, message).hint(hint.clone()));
    if lock.len() > LOCK_BYTES_MAX {
        return wrong(format!("its lock has more than {} KiB", LOCK_BYTES_MAX >> 10));
    }
    let version = &written.version.value;
    let unlocked = match (&written.pypi, &written.npm) {
        (Some(name), _) => {
            let with = written.with.iter().map(|extra| extra.value.clone());
            let wanted = std::iter::once(format!("{name}=={version}")).chain(with);
            let locked = requirements(lock);
            let is_locked = |wanted: &String| locked.iter().any(|line| *line == requirement(wanted));
            if let Some(bare) = locked.iter().find(|line| !has_hash(lock, line)) {
                return wrong(format!("its lock has no digest for {bare}"));
            }
            wanted.into_iter().find(|wanted| !is_locked(wanted))
        }
        (None, Some(name)) => (!is_npm_lock_of(lock, written, name)).then(|| format!("{name}@{version}")),
        (None, None) => None,
    };
    unlocked.and_then(|wanted| wrong(format!("its lock is not of {wanted}")))
}

/// The requirements of a lock, `name==version`, as a requirements file writes them.
fn requirements(lock: &str) -> Vec<String> {
    let lines = lock.lines().map(str::trim_start);
    let lines = lines.filter(|line| !line.starts_with(['#', '-']) && line.contains("=="));
    lines.map(requirement).collect()
}

/// A requirement with its name as indexes compare it (PEP 503), without extras, markers and digests.
fn requirement(text: &str) -> String {
    let end = text.find([' ', ';', '\\']).unwrap_or(text.len());
    let (name, version) = text[..end].split_once("==").unwrap_or((&text[..end], ""));
    let name = name.split('[').next().unwrap_or_default().to_ascii_lowercase().replace(['_', '.'], "-");
    format!("{name}=={version}")
}

fn has_hash(lock: &str, wanted: &str) -> bool {
    let mut inside = false;
    for line in lock.lines() {
        let line = line.trim_start();
        if line.contains("==") && !line.starts_with(['#', '-']) {
            inside = requirement(line) == wanted;
        }
        if inside && line.contains("--hash=sha256:") {
            return true;
        }
    }
    false
}

/// What a lock names, each with its version and something that changes with its digests.
pub(super) fn summary(lock: &str) -> BTreeMap<String, String> {
    let short = |text: &str| blake3::hash(text.as_bytes()).to_hex()[..8].to_owned();
    if let Ok(tree) = serde_json::from_str::<serde_json::Value>(lock) {
        let packages = tree["packages"].as_object().into_iter().flatten().filter(|(path, _)| !path.is_empty());
        let named = packages.map(|(path, of)| {
            let name = path.strip_prefix("node_modules/").unwrap_or(path).to_owned();
            let version = of["version"].as_str().unwrap_or_default();
            (name, format!("{version} (digest {})", short(of["integrity"].as_str().unwrap_or_default())))
        });
        return named.collect();
    }
    let mut digests: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in lock.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
        if line.contains("==") && !line.starts_with('-') {
            last = requirement(line);
        }
        digests.entry(last.clone()).or_default().push_str(line.split_once("--hash=").map_or("", |(_, hash)| hash));
    }
    let named = digests.into_iter().filter_map(|(wanted, digests)| {
        let (name, version) = wanted.split_once("==")?;
        Some((name.to_owned(), format!("{version} (digests {})", short(&digests))))
    });
    named.collect()
}

fn is_npm_lock_of(lock: &str, written: &PackageWritten, name: &str) -> bool {
    let Ok(tree) = serde_json::from_str::<serde_json::Value>(lock) else { return false };
    tree["packages"][""]["dependencies"][name] == written.version.value.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_indexes_compare_them() {
        assert_eq!(requirement("MCP_Server.Time[cli]==1.0 ; python_version > '3'"), "mcp-server-time==1.0");
        let lock = "# made\nMcp-server.time==1.0 \\\n    --hash=sha256:aa\nother==2\n";
        assert_eq!(requirements(lock), ["mcp-server-time==1.0", "other==2"]);
        assert!(has_hash(lock, "mcp-server-time==1.0") && !has_hash(lock, "other==2"));
    }

    #[test]
    fn a_summary_changes_with_versions_and_with_digests() {
        let lock = "# made\na==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nb==2 --hash=sha256:cc\n";
        let before = summary(lock);
        assert_eq!(before.keys().collect::<Vec<_>>(), ["a", "b"]);
        let after = summary(&lock.replace("sha256:bb", "sha256:bc"));
        assert!(before["a"] != after["a"] && before["b"] == after["b"] && after["a"].starts_with("1 ("));
        let npm = r#"{"packages":{"":{"dependencies":{"a":"1"}},"node_modules/a":{"version":"1","integrity":"x"}}}"#;
        assert_eq!(summary(npm).keys().collect::<Vec<_>>(), ["a"]);
    }
}
