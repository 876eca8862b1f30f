//! Writes the files of the repository that are generated: `docs/cli.md` from the command itself, `docs/errors.md`
//! from the kinds of failure.

fn main() -> std::io::Result<()> {
    let docs = fleetwright_tests::fleet::repository().join("docs");
    std::fs::create_dir_all(&docs)?;
    std::fs::write(docs.join("errors.md"), fleetwright_deploy::failure::reference())?;
    std::fs::write(docs.join("cli.md"), fleetwright::cli::reference())
}
