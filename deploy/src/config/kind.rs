//! Which kind of configuration a file is.

use super::problem::{Problem, Problems, Source, near_miss};

/// The kinds of configuration files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Which servers run where.
    Manifest,
    /// The definition of one server.
    Server,
    /// Settings, secrets and rules.
    Environment,
    /// Checks that definitions name.
    StandardChecks,
}

/// The folders that hold one kind each.
const FOLDERS: [(&str, FileKind); 4] = [
    ("deployments", FileKind::Manifest),
    ("servers", FileKind::Server),
    ("environments", FileKind::Environment),
    ("health-checks", FileKind::StandardChecks),
];

/// The fields that only one kind has.
const FIELDS: [(&str, FileKind); 6] = [
    ("checks", FileKind::StandardChecks),
    ("run", FileKind::Server),
    ("servers", FileKind::Manifest),
    ("variables", FileKind::Environment),
    ("secrets", FileKind::Environment),
    ("rules", FileKind::Environment),
];

impl FileKind {
    /// The kind of a file: by its folder, else by a field that only one kind has. When neither says it, the error is what
    /// the YAML reader finds wrong, else the field that has nearly such a name.
    pub fn of(source: &Source) -> Result<Self, Problems> {
        let fields: Vec<&str> = source.lines().filter_map(field).collect();
        let named = FIELDS.iter().find(|(name, _)| fields.contains(name));
        let folder = source.path.rsplit('/').nth(1).unwrap_or_default();
        let in_folder = FOLDERS.iter().find(|(name, _)| *name == folder);
        // A folder says more than a field that others may have, too.
        if let Some((_, kind)) = in_folder.or(named) {
            return Ok(*kind);
        }
        super::read::<serde_json::Value>(&source.text).map_err(|error| Problem::from_yaml(source, &error))?;
        let near = fields.iter().find_map(|written| {
            let meant = FIELDS.iter().find(|(name, _)| near_miss(written, [*name]).is_some())?;
            Some((*written, *meant))
        });
        Err(match near {
            Some((written, (name, _))) => {
                Problem::at_field(source, written, format!("no kind of file has a field `{written}`"))
                    .hint(format!("did you mean `{name}`?"))
            }
            None => Problem::at_line(
                source,
                1,
                1,
                "this is neither a manifest, nor a server definition, nor an environment, nor standard checks",
            )
            .hint("a manifest has `servers:`, a server definition `run:`, an environment `variables:`, standard checks `checks:`"),
        }
        .into())
    }
}

/// The field of the whole file that a line begins with.
fn field(line: &str) -> Option<&str> {
    let (name, _) = line.split_once(':')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (!name.is_empty() && name.bytes().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> Result<FileKind, String> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        FileKind::of(&source).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_folder_says_it_then_a_field() {
        assert_eq!(of("config/servers/a.yaml", "servers: []\n"), Ok(FileKind::Server));
        assert_eq!(of("deployments/a.yaml", "servrs: []\n"), Ok(FileKind::Manifest));
        assert_eq!(of("a.yaml", "name: a\nrun: { command: [x] }\n"), Ok(FileKind::Server));
        assert_eq!(of("a.yaml", "name: a\nrules: {}\n"), Ok(FileKind::Environment));
        assert_eq!(of("x/health-checks/a.yaml", ""), Ok(FileKind::StandardChecks));
    }

    #[test]
    fn a_file_of_no_kind_is_told_with_a_place_and_what_may_be_meant() {
        let told = of("a.yaml", "name: a\nservrs: []\n").expect_err("no kind");
        assert!(told.starts_with("a.yaml:2:1:") && told.contains("did you mean `servers`?"), "{told}");
        let told = of("a.yaml", "hello: world\n").expect_err("no kind");
        assert!(told.starts_with("a.yaml:1:1:"), "{told}");
        let deep = format!("a: {}\n", "[".repeat(40_000));
        let told = of("a.yaml", &deep).expect_err("no kind");
        assert!(told.starts_with("a.yaml:1:") && told.contains("nested too deeply"), "{}", &told[..200]);
        let told = of("a.yaml", "a: [1\n").expect_err("no YAML");
        assert!(told.starts_with("a.yaml:"), "{told}");
    }
}
