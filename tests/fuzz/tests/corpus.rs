//! Everything that fuzzing has found worth keeping, and what ships: given to every target.

use std::fs;
use std::path::{Path, PathBuf};

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn the_corpus_breaks_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped =
        ["config/servers", "config/environments", "deployments", "health-checks", "src/config/import/entries"];
    let shipped: Vec<PathBuf> =
        shipped.iter().flat_map(|folder| files(&root.join("../../deploy").join(folder))).collect();
    for (name, target) in fleetwright_fuzz::TARGETS {
        let corpus = files(&root.join("corpus").join(name));
        assert!(!corpus.is_empty(), "{name} has no corpus");
        for file in corpus.iter().chain(&shipped) {
            let data = fs::read(file).expect("a file");
            if let Err(panic) = std::panic::catch_unwind(|| target(&data)) {
                let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("{name} broke over {}: {why}", file.display());
            }
        }
    }
}
