//! Writes the files of the repository that are generated: `docs/cli.md` from the command itself.

fn main() -> std::io::Result<()> {
    let docs = fleetwright_tests::fleet::repository().join("docs");
    std::fs::create_dir_all(&docs)?;
    std::fs::write(docs.join("cli.md"), fleetwright::cli::reference())
}
