//! Locks: everything that comes with a package of a registry, each with its version and digests, as `fleetwright lock`
//! writes it beside the definition.

use std::collections::BTreeMap;

use crate::config::{PackageWritten, Problem, Server, Source};
use crate::release::index_name;

/// Largest lock, in bytes: it is part of every release.
pub const LOCK_BYTES_MAX: usize = 512 * 1024;
/// Most characters of a line that are shown.
const LINE_SHOWN_MAX: usize = 80;

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
            if let Some((number, line)) = lock.lines().enumerate().find(|(_, line)| !is_of_lock(line)) {
                let shown: String = line.trim().chars().take(LINE_SHOWN_MAX).collect();
                return wrong(format!("line {} of its lock names no version and no digest: `{shown}`", number + 1));
            }
            if let Some(bare) = locked.iter().find(|line| !has_hash(lock, line)) {
                return wrong(format!("its lock has no digest for {bare}"));
            }
            wanted.into_iter().find(|wanted| !is_locked(wanted))
        }
        (None, Some(name)) => {
            if let Some(path) = without_digest(lock) {
                return wrong(format!("its lock has no digest for {path}"));
            }
            (!is_npm_lock_of(lock, written, name)).then(|| format!("{name}@{version}"))
        }
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
    format!("{}=={version}", index_name(name))
}

/// Whether a line says what is installed, or nothing: an option would tell the client to go elsewhere.
fn is_of_lock(line: &str) -> bool {
    let line = line.trim().trim_end_matches('\\').trim_end();
    line.is_empty()
        || line.starts_with('#')
        || (line.starts_with("--hash=") && !line.contains(char::is_whitespace))
        || is_of_version(line)
}

/// Whether a line is one name of one version, with a marker and digests at most.
fn is_of_version(line: &str) -> bool {
    let Some((name, rest)) = line.split_once("==") else { return false };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.[], ".contains(c);
    let is_version = |c: char| c.is_ascii_alphanumeric() || "-_.+!*".contains(c);
    let rest = rest.trim_start_matches('=').trim_start();
    let (version, rest) = rest.split_at(rest.find(|c: char| !is_version(c)).unwrap_or(rest.len()));
    let mut options = rest.split_whitespace().filter(|word| word.starts_with('-'));
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_name)
        && !version.is_empty()
        && options.all(|word| word.starts_with("--hash="))
}

/// A package of a lock of npm's that nothing says the content of.
fn without_digest(lock: &str) -> Option<String> {
    let tree: serde_json::Value = serde_json::from_str(lock).ok()?;
    let packages = tree["packages"].as_object()?.iter().filter(|(path, _)| !path.is_empty());
    let is_bare = |of: &serde_json::Value| of["integrity"].as_str().is_none() && of["inBundle"] != true;
    packages.filter(|(_, of)| is_bare(of)).map(|(path, _)| path.clone()).next()
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
    fn what_leads_elsewhere_or_has_no_digest_is_no_line_of_a_lock() {
        for fits in [
            "",
            "# a comment",
            "a==1 \\",
            "a[x]==1 ; python_version > '3' \\",
            "  --hash=sha256:aa \\",
            "a==1 --hash=sha256:aa",
        ] {
            assert!(is_of_lock(fits), "{fits}");
        }
        for wrong in [
            "--index-url https://other/simple",
            "--hash=sha256:aa --index-url=x",
            "-i https://other",
            "--find-links x",
            "-r other.txt",
            "x @ https://elsewhere/x.whl",
            "https://elsewhere/x.whl#egg==1 --hash=sha256:aa",
            "x==1 --hash=sha256:aa --config-settings a=b",
            "x>=1",
        ] {
            assert!(!is_of_lock(wrong), "{wrong}");
        }
        let of = |package: &str| without_digest(&format!(r#"{{"packages":{{"":{{}},"node_modules/a":{package}}}}}"#));
        assert_eq!(of(r#"{"integrity":"sha512-x"}"#), None);
        assert_eq!(of(r#"{"inBundle":true}"#), None);
        for bare in [r#"{"resolved":"https://elsewhere/a.tgz"}"#, r#"{"link":true,"resolved":"../a"}"#] {
            assert_eq!(of(bare).as_deref(), Some("node_modules/a"), "{bare}");
        }
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
