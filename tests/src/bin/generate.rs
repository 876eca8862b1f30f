//! Writes the files of the repository that are generated: `docs/cli.md` from the command itself, `docs/errors.md`
//! from the kinds of failure, `deploy/schemas` from the types of the configuration, the tables of `docs/mcp.md` from what
//! strangers' programs found.

fn main() -> std::io::Result<()> {
    let repository = fleetwright_tests::fleet::repository();
    let (docs, schemas) = (repository.join("docs"), repository.join("deploy/schemas"));
    std::fs::create_dir_all(&schemas)?;
    for (name, text) in fleetwright_deploy::planning::schema_files() {
        std::fs::write(schemas.join(name), text)?;
    }
    std::fs::create_dir_all(&docs)?;
    fleetwright_tests::conformance::report::write_into_guide(&fleetwright_tests::conformance::recorded())?;
    std::fs::write(docs.join("errors.md"), fleetwright_deploy::failure::reference())?;
    std::fs::write(docs.join("cli.md"), fleetwright::cli::reference())
}
