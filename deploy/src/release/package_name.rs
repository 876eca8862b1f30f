//! Names of packages, as their registries have them.

/// A name as indexes compare it (PEP 503), without extras: `Acme__Tools[cli]` is `acme-tools`.
pub fn index_name(name: &str) -> String {
    let name = name.split('[').next().unwrap_or_default().trim().to_ascii_lowercase();
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-")
}

/// Whether this is the name of a distribution of Python (packaging.python.org, “Names and normalization”), without extras.
pub fn is_pypi_name(name: &str) -> bool {
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    end(name.bytes().next())
        && end(name.bytes().last())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether this is the name of a package of npm, with its scope or without (docs.npmjs.com, “package.json”): nothing that npm
/// would take for a folder, a URL or an option.
pub fn is_npm_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
    };
    match name.strip_prefix('@') {
        Some(scoped) => scoped.split_once('/').is_some_and(|(scope, name)| is_part(scope) && is_part(name)),
        None => is_part(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_are_one() {
        for name in ["acme-tools", "Acme__Tools", "acme.-tools", "acme_tools[cli,x]", "acme-tools [cli]"] {
            assert_eq!(index_name(name), "acme-tools", "{name}");
        }
        assert_ne!(index_name("acmetools"), "acme-tools");
    }

    #[test]
    fn what_a_client_of_a_registry_would_take_for_something_else_is_no_name_of_a_package() {
        for name in ["@a/b", "a.b-c_d", "A"] {
            assert!(is_npm_name(name), "{name}");
        }
        for name in
            ["", "../x", "git+ssh://h/x", "https://h/x.tgz", "a/b", "@a", "@a/../b", "-g", "a b", "file:x", "a@1"]
        {
            assert!(!is_npm_name(name), "{name}");
        }
        assert!(
            is_pypi_name("mcp-server-time")
                && is_pypi_name("a")
                && !is_pypi_name("-r")
                && !is_pypi_name("a @ https://h")
                && !is_pypi_name("a[b]")
        );
    }
}
