//! What package clients say, in words for whoever deploys.

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::index_name;

use super::STEP;

/// How many items of a list in a client's output are kept: the newest, which come last.
const LISTED_MAX: usize = 5;
/// What is told where a package comes without a lock.
const FIXES: [&str; 2] = [
    "`with: [NAME==VERSION]` in the package fixes one of the things that come with it, and `fleetwright lock DEFINITION` all",
    "`fleetwright lock DEFINITION` fixes all that comes with it",
];

/// The lines of a client's output, with its long lists cut.
pub(super) fn lines(output: &str) -> Vec<String> {
    output
        .lines()
        .map(|line| shortened(line, "(from versions: ", ", ", ")"))
        .map(|line| without_ignored(&line))
        .collect()
}

/// A line whose list between `start` and `end` has its last items only.
fn shortened(line: &str, start: &str, separator: &str, end: &str) -> String {
    let cut = || {
        let (before, rest) = line.split_once(start)?;
        let (list, after) = rest.split_once(end)?;
        let items: Vec<&str> = list.split(separator).collect();
        let surplus = items.len().checked_sub(LISTED_MAX).filter(|surplus| *surplus > 0)?;
        let last = items[surplus..].join(separator);
        Some(format!("{before}{start}{surplus} older ones{separator}{last}{end}{after}"))
    };
    cut().unwrap_or_else(|| line.to_owned())
}

/// pip's list of what other interpreters could have, which ends with its line, cut in the same way.
fn without_ignored(line: &str) -> String {
    let marker = "different python version: ";
    match line.split_once(marker) {
        Some((before, list)) => {
            let cut = shortened(&format!("{marker}{list}\n"), marker, "; ", "\n");
            format!("{before}{}", cut.trim_end_matches('\n'))
        }
        None => line.to_owned(),
    }
}

/// The interpreter that a package asks for (`Requires-Python`), where pip says that it is not for the one it has.
pub(super) fn requires_python(output: &str) -> Option<String> {
    let of_wheel = output.lines().rev().filter(|line| line.contains("requires a different Python"));
    let mut specs = of_wheel.filter_map(|line| Some(line.split_once("not in '")?.1.split_once('\'')?.0.to_owned()));
    let spec = specs.next();
    if spec.is_some() {
        return spec;
    }
    let ignored = output.lines().find_map(|line| line.split_once("require a different python version: ")?.1.into())?;
    let versions: Vec<(&str, &str)> =
        ignored.split("; ").filter_map(|one| one.split_once(" Requires-Python ")).collect();
    let exact = output
        .lines()
        .find_map(|line| line.split_once("No matching distribution found for ")?.1.split_once("=="))
        .map(|(_, version)| version);
    let exact = exact.map(|version| version.split([' ', ';', ',']).next().unwrap_or_default());
    let of_wanted = exact.and_then(|exact| versions.iter().find(|(version, _)| *version == exact));
    // Of something that need not be of one version, the newest counts.
    of_wanted.or_else(|| versions.last().filter(|_| exact.is_none())).map(|(_, spec)| (*spec).to_owned())
}

/// Whether a client or what it ran had too little memory.
pub(super) fn is_want_of_memory(lines: &[String]) -> bool {
    let words = [
        "JavaScript heap out of memory",
        "Cannot allocate memory",
        "FATAL ERROR: NewSpace",
        "Fatal process out of memory",
    ];
    lines.iter().any(|line| line.trim() == "MemoryError" || words.iter().any(|word| line.contains(word)))
}

/// Says what it means when what is locked cannot be installed.
pub(super) fn explain_lock(failure: Failure, wanted: &str, registry: &str) -> Failure {
    let output = failure.output.join("\n");
    let has = |words: &[&str]| words.iter().any(|word| output.contains(word));
    let again = "lock it anew with the interpreter that the hosts have: `fleetwright lock DEFINITION --python PROGRAM`";
    let (kind, message, hint) = if has(&["DO NOT MATCH THE HASHES", "EINTEGRITY"]) {
        let message = format!("{registry} gives something else for {wanted} than its lock names");
        (
            FailureKind::PermissionError,
            message,
            "somebody may have changed a package: see what came before you lock it anew",
        )
    } else if has(&["which is not installed", "has requirement", "No matching distribution", "Requires-Python"]) {
        (FailureKind::DependencyError, format!("the lock of {wanted} does not fit this host's interpreter"), again)
    } else {
        return explain(failure, wanted, registry);
    };
    let lines = failure.output.clone();
    Failure::new(kind, STEP, message).hint(hint).output(lines.iter().map(String::as_str))
}

/// Says what the client's output means for the operator.
pub(super) fn explain(failure: Failure, wanted: &str, registry: &str) -> Failure {
    let output = failure.output.join("\n");
    let has = |words: &[&str]| words.iter().any(|word| output.contains(word));
    let output_lines = failure.output.clone();
    let fixes = FIXES[usize::from(!wanted.contains("=="))];
    let told = if let Some(dependency) = dependency(&failure.output, wanted) {
        let message = format!("{dependency}, which comes with {wanted}, cannot be installed on this host");
        Failure::new(FailureKind::DependencyError, STEP, message)
            .hint(format!("it may have been released after {wanted} was, and no longer fit it: {fixes}"))
    } else if has(&["ResolutionImpossible", "ERESOLVE", "conflicting dependencies"]) {
        Failure::new(FailureKind::DependencyError, STEP, format!("what comes with {wanted} does not fit together"))
            .hint(format!("something may have been released after {wanted} was: {fixes}"))
    } else if has(&[
        "No matching distribution found",
        "E404",
        "ETARGET",
        "No matching version",
        "Could not find a version",
    ]) {
        Failure::new(FailureKind::DependencyError, STEP, format!("{registry} has no {wanted} for this host")).hint(
            "check the package's name and version in the server's definition, and the runtime's version on the host",
        )
    } else if has(&[
        "Connection",
        "ENOTFOUND",
        "ECONNREFUSED",
        "ETIMEDOUT",
        "EAI_AGAIN",
        "Temporary failure",
        "Read timed out",
    ]) {
        Failure::new(FailureKind::NetworkError, STEP, format!("{registry} cannot be reached from this host"))
            .hint("check the host's connection and proxy settings; then deploy again")
    } else if has(&["No space left", "ENOSPC"]) {
        Failure::new(FailureKind::ResourceError, STEP, "the disk is full").hint("free some space on the host")
    } else {
        return failure;
    };
    told.output(output_lines.iter().map(String::as_str))
}

/// What a person can do about a server that ended since something that came with its package is not as it expects: a name
/// that it lacks, a module that is gone. Its output says so.
pub(crate) fn hint_of_what_came_with(output: &[String]) -> Option<String> {
    let python =
        ["ImportError: cannot import name", "ModuleNotFoundError: No module named", "AttributeError: module '"];
    let node = ["ERR_MODULE_NOT_FOUND", "ERR_PACKAGE_PATH_NOT_EXPORTED", "does not provide an export named"];
    let has = |words: &[&str]| output.iter().any(|line| words.iter().any(|word| line.contains(word)));
    let fix = if has(&python) && has(&["site-packages"]) {
        FIXES[0]
    } else if has(&node) && has(&["node_modules"]) {
        FIXES[1]
    } else {
        return None;
    };
    Some(format!(
        "see its output; where its package has no lock, something that came with it may have been released after it and no longer fit it: {fix}"
    ))
}

/// Whether a client says why it has failed in a way that no registry could be the reason of.
pub(super) fn is_reason_of_its_own(output: &[String]) -> bool {
    let words = [
        "DO NOT MATCH THE HASHES",
        "EINTEGRITY",
        "ResolutionImpossible",
        "ERESOLVE",
        "conflicting dependencies",
        "Failed building wheel",
        "Failed to build",
        "No space left",
        "ENOSPC",
    ];
    output.iter().any(|line| words.iter().any(|word| line.contains(word)))
}

/// The name that a client has sought in vain, and whether it is the package itself.
pub(super) fn sought(output: &[String], wanted: &str) -> (String, bool) {
    match dependency(output, wanted) {
        Some(name) => (name, false),
        None => (name_of(wanted).to_owned(), true),
    }
}

/// The name in a requirement, or in a package with its version.
fn name_of(wanted: &str) -> &str {
    let end = wanted.find("==").or_else(|| wanted.rfind('@').filter(|at| *at > 0)).unwrap_or(wanted.len());
    &wanted[..end]
}

/// What failed of the things that come with a package, where it was one of them and not the package itself.
fn dependency(output: &[String], wanted: &str) -> Option<String> {
    let (name, _) = not_found(output).or_else(|| not_built(output)).or_else(|| not_in_npm(output))?;
    (!is_of(name, wanted)).then(|| name.to_owned())
}

/// Whether a requirement or a package with its version is of this name.
fn is_of(name: &str, wanted: &str) -> bool {
    index_name(name) == index_name(name_of(wanted))
}

/// The distribution that pip did not find, and the version where it was one alone.
pub(super) fn not_found(output: &[String]) -> Option<(&str, Option<&str>)> {
    let line = output.iter().find_map(|line| line.split_once("No matching distribution found for "))?.1;
    let wanted = line.split([' ', ';']).next().unwrap_or_default();
    let end =
        wanted.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')).unwrap_or(wanted.len());
    let version = wanted[end..].split_once("==").map(|(_, version)| version).filter(|version| !version.contains(','));
    Some((&wanted[..end], version)).filter(|(name, _)| !name.is_empty())
}

/// The distribution that could not be built.
fn not_built(output: &[String]) -> Option<(&str, Option<&str>)> {
    let said = [
        "Failed building wheel for ",
        "ERROR: Failed to build installable wheels for some pyproject.toml based projects (",
    ];
    let after = output.iter().find_map(|line| said.iter().find_map(|words| Some(line.split_once(words)?.1)))?;
    let name = after.trim_end_matches(')').split([' ', ',']).next().unwrap_or_default();
    (!name.is_empty()).then_some((name, None))
}

/// The package that npm's registry does not have.
fn not_in_npm(output: &[String]) -> Option<(&str, Option<&str>)> {
    let after = output.iter().find_map(|line| {
        line.split_once("No matching version found for ")
            .map(|(_, after)| after)
            .or_else(|| Some(line.split_once("404  '")?.1))
    })?;
    let spec = after.split(['\'', ' ']).next().unwrap_or_default().trim_end_matches('.');
    let end = spec.rfind('@').filter(|at| *at > 0).unwrap_or(spec.len());
    (end > 0).then_some((&spec[..end], None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(lines: &[&str]) -> Failure {
        Failure::new(FailureKind::DeploymentError, STEP, "`pip install` failed").output(lines.iter().copied())
    }

    #[test]
    fn a_client_that_fails_is_told_with_its_output() {
        let line = "ERROR: No matching distribution found for nothing==1";
        let told = explain(failed(&[line]), "nothing==1", "PyPI");
        assert_eq!(told.kind, FailureKind::DependencyError);
        assert_eq!(told.output, [line]);
        assert!(told.message.starts_with("PyPI has no nothing==1"), "{told}");
    }

    #[test]
    fn what_was_sought_is_the_package_or_what_comes_with_it() {
        let sought_in = |line: &str, wanted| sought(&[line.to_owned()], wanted);
        let line = "ERROR: No matching distribution found for known-lib (from acme)";
        assert_eq!(sought_in(line, "acme==1"), ("known-lib".to_owned(), false));
        let line = "ERROR: No matching distribution found for Acme_Tools==1";
        assert_eq!(sought_in(line, "acme-tools[cli]==1"), ("acme-tools[cli]".to_owned(), true));
        let line = "npm error 404  '@a/gone@^1.0.0' is not in this registry.";
        assert_eq!(sought_in(line, "@a/server@1.0.0"), ("@a/gone".to_owned(), false));
        for (line, own) in [
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", true),
            ("npm error code EINTEGRITY", true),
            ("WARNING: Retrying after connection broken by ConnectTimeoutError", false),
        ] {
            assert_eq!(is_reason_of_its_own(&[line.to_owned()]), own, "{line}");
        }
    }

    #[test]
    fn pips_lists_of_versions_are_cut_to_the_newest() {
        let versions: Vec<String> = (0..150).map(|n| format!("1.{n}")).collect();
        let line =
            format!("ERROR: Could not find a version that satisfies x==9 (from versions: {})", versions.join(", "));
        assert_eq!(
            lines(&line),
            [
                "ERROR: Could not find a version that satisfies x==9 (from versions: 145 older ones, 1.145, 1.146, 1.147, 1.148, 1.149)"
            ]
        );
        let ignored: Vec<String> = (0..150).map(|n| format!("1.{n} Requires-Python >=3.{n},<4")).collect();
        let line = format!(
            "ERROR: Ignored the following versions that require a different python version: {}",
            ignored.join("; ")
        );
        let cut = lines(&line).concat();
        assert!(
            cut.len() < 300
                && cut.contains("version: 145 older ones; 1.145 Requires")
                && cut.ends_with("1.149 Requires-Python >=3.149,<4"),
            "{cut}"
        );
        for short in [
            "(from versions: 1, 2)",
            "(from versions: none)",
            "different python version: 1 Requires-Python >=3 (x)",
            "other (a, b)",
        ] {
            assert_eq!(lines(short), [short]);
        }
    }

    #[test]
    fn what_comes_with_a_package_and_does_not_fit_it_hints_at_pinning() {
        let cases: [(&str, &str, &str); 6] = [
            ("ERROR: No matching distribution found for mcp>=3 (from server)", "server==1.0", "mcp"),
            ("ERROR: Failed building wheel for cryptography", "server==1.0", "cryptography"),
            ("npm error notarget No matching version found for zod@^9.", "@a/server@1.0.0", "zod"),
            ("npm error notarget No matching version found for @a/core@^9.", "@a/server@1.0.0", "@a/core"),
            ("npm error 404  '@a/gone@^1.0.0' is not in this registry.", "@a/server@1.0.0", "@a/gone"),
            ("ERROR: ResolutionImpossible: for help visit https://pip.pypa.io", "server==1.0", "does not fit together"),
        ];
        for (line, wanted, named) in cases {
            let told = explain(failed(&[line]), wanted, "PyPI");
            let hint = told.hint.clone().unwrap_or_default();
            assert!(told.message.contains(named), "{told}");
            assert!(
                hint.contains("released after")
                    && hint.contains("with: [NAME==VERSION]") == wanted.contains("==")
                    && hint.contains("fleetwright lock"),
                "{hint}"
            );
        }
        // The package itself is no dependency of its own, however its name is written.
        for (line, wanted) in [
            ("ERROR: No matching distribution found for mcp_server.time==1", "mcp-server-time==1"),
            ("ERROR: No matching distribution found for a[x]==1.0", "a[x]==1.0"),
            ("npm error notarget No matching version found for @a/server@1.0.0.", "@a/server@1.0.0"),
        ] {
            let told = explain(failed(&[line]), wanted, "R");
            assert!(told.message.starts_with(&format!("R has no {wanted}")), "{told}");
        }
    }

    #[test]
    fn a_server_that_ends_for_what_came_with_it_hints_at_pinning() {
        let hint =
            |lines: &[&str]| hint_of_what_came_with(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
        let file = "  File \"/s/app/lib/python3.11/site-packages/server/main.py\", line 3, in <module>";
        let told = hint(&[
            "Traceback (most recent call last):",
            file,
            "ImportError: cannot import name 'FastMCP' from 'mcp.server'",
        ]);
        assert!(told.is_some_and(|told| told.contains("released after") && told.contains("with: [NAME==VERSION]")));
        let node = [
            "import { a } from 'zod'",
            "SyntaxError: The requested module 'zod' does not provide an export named 'a'",
            "at file:///s/app/node_modules/x/y.js",
        ];
        assert!(hint(&node).is_some_and(|told| told.contains("fleetwright lock") && !told.contains("with:")));
        assert_eq!(hint(&["ImportError: cannot import name 'x'", "  File \"/opt/own.py\""]), None);
        assert_eq!(hint(&[file, "ValueError: no"]), None);
    }

    #[test]
    fn the_interpreter_that_a_package_asks_for_is_found_in_what_pip_says() {
        let ignored = "ERROR: Ignored the following versions that require a different python version: 1.0 Requires-Python >=3.9; 2.0 Requires-Python >=3.12,<4";
        let of =
            |wanted: &str| requires_python(&format!("{ignored}\nERROR: No matching distribution found for {wanted}"));
        assert_eq!(of("server==1.0").as_deref(), Some(">=3.9"));
        assert_eq!(of("server==2.0").as_deref(), Some(">=3.12,<4"));
        assert_eq!(of("dependency>=1 (from server)").as_deref(), Some(">=3.12,<4"));
        assert_eq!(of("server==3.0"), None, "that version is not there for any");
        let wheel = "ERROR: Package 'server' requires a different Python: 3.8.10 not in '>=3.10'";
        assert_eq!(requires_python(wheel).as_deref(), Some(">=3.10"));
        assert_eq!(requires_python("ERROR: No matching distribution found for a==1"), None);
    }

    #[test]
    fn what_pip_did_not_find_is_found_in_its_output() {
        let output = |line: &str| vec!["ERROR: Could not find a version".to_owned(), line.to_owned()];
        let found = |line| {
            let output = output(line);
            not_found(&output).map(|(name, version)| (name.to_owned(), version.map(str::to_owned)))
        };
        let of = |name: &str, version: Option<&str>| Some((name.to_owned(), version.map(str::to_owned)));
        assert_eq!(found("ERROR: No matching distribution found for a-b.c_d==1.0"), of("a-b.c_d", Some("1.0")));
        assert_eq!(found("ERROR: No matching distribution found for a[x]==1.0"), of("a", Some("1.0")));
        assert_eq!(found("ERROR: No matching distribution found for dep>=2 (from a)"), of("dep", None));
        assert_eq!(found("ERROR: something else"), None);
    }
}
