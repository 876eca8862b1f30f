//! The programs of a package: which one is started where the definition leaves that to the package, and whether the one that
//! it names is there at all.

use std::fs;
use std::path::{Path, PathBuf};

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::{Package, Release, RuntimeChoice, index_name};

use super::taken::read_kept;
use super::{STEP, write};
use crate::confine;
use crate::layout::{ReleaseLayout, ServerLayout};
use crate::supervise::{inherited_path, search_path};

/// Most programs that are named to a person.
const SHOWN_MAX: usize = 20;
/// Longest name of a program, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// The command of a release in this folder, with the program of its package where the definition names none.
pub(crate) fn command(release: &Release, folder: &Path) -> Vec<String> {
    if !leaves_open(release) {
        return release.run.command.clone();
    }
    let program = fs::read_to_string(ReleaseLayout::at(folder).program());
    program.map(|program| vec![program]).unwrap_or_default()
}

/// Whether the definition leaves it to the package which program is started.
fn leaves_open(release: &Release) -> bool {
    release.run.command.is_empty() && release.package.image().is_none() && release.run.runtime != RuntimeChoice::Agent
}

/// Finds the program of a package that was installed, where the definition names none, and keeps its name.
pub(crate) fn settle(release: &Release, layout: &ReleaseLayout) -> Result<(), Failure> {
    if !leaves_open(release) {
        return Ok(());
    }
    let names = of_package(&release.package, layout);
    let program = chosen(&release.package, &names)?;
    tracing::info!(server = %release.server, program, "the package's own program is started");
    write(&layout.program(), program.as_bytes())
}

/// Whether what is to be started is there: in the package, among the rendered files, or on the host.
pub(crate) fn check(release: &Release, server: &ServerLayout, layout: &ReleaseLayout) -> Result<(), Failure> {
    if release.package.image().is_some() || release.run.runtime == RuntimeChoice::Agent {
        return Ok(());
    }
    let command = command(release, layout.folder());
    let Some(program) = command.first() else { return Ok(()) };
    let found = match (program.starts_with('/'), program.contains('/')) {
        // What is below `current` will be this release's own.
        (true, _) => match Path::new(program).strip_prefix(server.current()) {
            Ok(below) => layout.folder().join(below).exists(),
            Err(_) => Path::new(program).exists(),
        },
        // Beside its data: what a server writes itself is nobody else's to find.
        (false, true) => true,
        (false, false) => confine::find(program, &search_path(layout.folder(), &inherited_path())).is_ok(),
    };
    if found {
        return Ok(());
    }
    let message = format!("there is no program `{program}`, neither in the package nor on this host");
    let names = of_package(&release.package, layout);
    let hint = match names.as_slice() {
        [] => "install it on the host, or name another one in `run.command`".to_owned(),
        names => format!("the package has {}: name one of them in `run.command`", shown(names)),
    };
    Err(Failure::new(FailureKind::DependencyError, STEP, message).hint(hint))
}

/// The one program of a package, or the one of its own name.
fn chosen<'a>(package: &Package, names: &'a [String]) -> Result<&'a str, Failure> {
    let package = package.itself();
    let own = match package {
        Package::Pypi { name, .. } => index_name(name),
        Package::Npm { name, .. } => name.rsplit('/').next().unwrap_or(name).to_owned(),
        Package::None
        | Package::Archive { .. }
        | Package::File { .. }
        | Package::Oci { .. }
        | Package::Private { .. } => String::new(),
    };
    let is_own =
        |name: &&String| if matches!(package, Package::Pypi { .. }) { index_name(name) == own } else { **name == own };
    let one = match names {
        [one] => Some(one),
        several => several.iter().find(is_own),
    };
    one.map(String::as_str).ok_or_else(|| {
        let message = match names {
            [] => "the package has no program that could be started: it is a library".to_owned(),
            several => format!("the package has several programs, and none of its own name: {}", shown(several)),
        };
        Failure::new(FailureKind::DependencyError, STEP, message).hint("say in `run.command` what is started")
    })
}

fn shown(names: &[String]) -> String {
    let more = if names.len() > SHOWN_MAX { format!(" and {} more", names.len() - SHOWN_MAX) } else { String::new() };
    format!("{}{more}", names.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", "))
}

/// The names of the programs that a package says it has, in their order.
fn of_package(package: &Package, layout: &ReleaseLayout) -> Vec<String> {
    let mut names = match package.itself() {
        Package::Pypi { name, .. } => of_distribution(&layout.app(), name),
        Package::Npm { name, .. } => of_npm(&layout.app(), name),
        Package::File { name, .. } => vec![name.clone()],
        Package::None | Package::Archive { .. } | Package::Oci { .. } | Package::Private { .. } => Vec::new(),
    };
    let odd = |c: char| c == '/' || c == '\\' || c.is_control();
    names.retain(|name| {
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with(['-', '.']) && !name.contains(odd)
    });
    names.sort();
    names.dedup();
    names
}

/// What pip has noted of a distribution: its files, with the programs among them.
fn of_distribution(app: &Path, name: &str) -> Vec<String> {
    let folders = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let sites = folders(app.join("lib")).map(|python| python.join("site-packages"));
    let is_own = |path: &PathBuf| {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stem = file.strip_suffix(".dist-info").and_then(|stem| stem.split('-').next());
        stem.is_some_and(|stem| index_name(stem) == index_name(name))
    };
    let records = sites.flat_map(folders).filter(is_own).filter_map(|info| read_kept(&info.join("RECORD")).ok());
    let programs = records.flat_map(|record| {
        let text = String::from_utf8_lossy(&record).into_owned();
        let of_line = |line: &str| Some(line.strip_prefix("../../../bin/")?.split(',').next()?.to_owned());
        text.lines().filter_map(of_line).collect::<Vec<_>>()
    });
    programs.collect()
}

/// The names in a package's `bin`.
fn of_npm(app: &Path, name: &str) -> Vec<String> {
    match &package_json(app, name)["bin"] {
        serde_json::Value::Object(bin) => bin.keys().cloned().collect(),
        serde_json::Value::String(_) => vec![name.rsplit('/').next().unwrap_or(name).to_owned()],
        _ => Vec::new(),
    }
}

/// What a package of npm's says of itself.
pub(super) fn package_json(app: &Path, name: &str) -> serde_json::Value {
    let read = read_kept(&app.join("node_modules").join(name).join("package.json"));
    read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npm(name: &str) -> Package {
        Package::Npm { name: name.to_owned(), version: "1.0.0".to_owned(), lock: None }
    }

    fn pypi(name: &str) -> Package {
        Package::Pypi { name: name.to_owned(), version: "1".to_owned(), with: Vec::new(), lock: None, build: false }
    }

    #[test]
    fn the_one_program_is_taken_or_the_one_of_the_packages_own_name() {
        let of = |package: &Package, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            chosen(package, &names).map(str::to_owned).map_err(|failure| failure.message)
        };
        assert_eq!(of(&npm("@a/server-b"), &["mcp-b"]), Ok("mcp-b".to_owned()));
        assert_eq!(of(&npm("@a/server-b"), &["cli", "server-b"]), Ok("server-b".to_owned()));
        assert_eq!(of(&pypi("Mcp.Server_time"), &["x", "mcp-server-time"]), Ok("mcp-server-time".to_owned()));
        let told = of(&npm("@a/b"), &["one", "two"]).expect_err("several");
        assert!(told.contains("none of its own name: one, two"), "{told}");
        assert!(of(&pypi("six"), &[]).expect_err("none").contains("it is a library"));
    }

    #[test]
    fn the_programs_of_packages_are_what_they_note_of_themselves_and_nothing_of_what_comes_with_them() {
        let folder = tempfile::tempdir().expect("folder");
        let layout = ReleaseLayout::at(folder.path());
        let site = layout.app().join("lib/python3.11/site-packages");
        for (info, record) in [
            (
                "mcp_server_time-1.dist-info",
                "../../../bin/mcp-server-time,sha256=x,1\nmcp_server_time/bin/no.py,,\n../../../bin/deep/no,,\n",
            ),
            ("uvicorn-0.1.dist-info", "../../../bin/uvicorn,sha256=x,1\n"),
        ] {
            fs::create_dir_all(site.join(info)).expect("folder");
            fs::write(site.join(info).join("RECORD"), record).expect("write");
        }
        assert_eq!(of_package(&pypi("mcp-server-time"), &layout), ["mcp-server-time"]);
        let module = layout.app().join("node_modules/@a/b");
        fs::create_dir_all(&module).expect("folder");
        fs::write(module.join("package.json"), r#"{"bin":{"two":"2.js","one":"1.js","../no":"x"}}"#).expect("write");
        assert_eq!(of_package(&npm("@a/b"), &layout), ["one", "two"]);
        fs::write(module.join("package.json"), r#"{"bin":"1.js"}"#).expect("write");
        assert_eq!(of_package(&npm("@a/b"), &layout), ["b"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_with_those_that_are() {
        let folder = tempfile::tempdir().expect("folder");
        let server = ServerLayout::at(folder.path());
        let layout = ReleaseLayout::at(&folder.path().join("releases/one"));
        let module = layout.app().join("node_modules/b");
        fs::create_dir_all(&module).expect("folder");
        fs::create_dir_all(layout.app().join("node_modules/.bin")).expect("folder");
        fs::write(layout.app().join("node_modules/.bin/right"), "").expect("write");
        fs::write(module.join("package.json"), r#"{"bin":{"right":"1.js"}}"#).expect("write");
        let of = |program: &str| {
            let mut release = Release::plain("a".parse().expect("name"), vec![program.to_owned()]);
            release.package = npm("b");
            check(&release, &server, &layout)
        };
        for there in ["right", "sh", "/bin/sh", "./made-later"] {
            of(there).expect(there);
        }
        of(&format!("{}/app/node_modules/b/package.json", server.current().display())).expect("of the coming release");
        for gone in ["wrong", "/bin/fleetwright-is-not-here"] {
            let failure = of(gone).expect_err(gone);
            assert!(failure.message.contains(gone), "{failure}");
            assert!(failure.hint.is_some_and(|hint| hint.contains("the package has right")));
        }
    }
}
