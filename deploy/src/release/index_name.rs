//! Names of packages of Python.

/// A name as indexes compare it (PEP 503), without extras: `Acme__Tools[cli]` is `acme-tools`.
pub fn index_name(name: &str) -> String {
    let name = name.split('[').next().unwrap_or_default().trim().to_ascii_lowercase();
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-")
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
}
