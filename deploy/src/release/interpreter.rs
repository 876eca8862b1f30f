//! Which interpreter of a host a package is installed for: the host's own `python3` where it fits, else the newest one that
//! does; and whether one fits what a package says of itself (`Requires-Python`, npm's `engines`).

use std::cmp::Ordering;
use std::fmt;

use crate::host::Version;

/// An interpreter of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Its version.
    pub version: Version,
    /// Whether it is what the host calls `python3`.
    pub is_usual: bool,
}

/// Why an interpreter is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The package's lock was resolved by one of its series.
    Locked,
    /// It is the host's own.
    Usual,
    /// It is the newest one that fits, and the host's own does not.
    Newest,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Locked => "of the series that the lock was made by",
            Self::Usual => "the host's python3",
            Self::Newest => "the newest that fits, since the host's python3 does not",
        })
    }
}

/// What an interpreter must be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// The least version, as `requires` says it.
    pub least: Option<&'a Version>,
    /// The version that a lock was resolved by.
    pub locked_for: Option<&'a Version>,
    /// What the package says of itself, as `Requires-Python`.
    pub of_package: Option<&'a str>,
}

/// The number of the one that is taken, and why; nothing where none fits.
pub fn choose(all: &[Interpreter], wanted: Wanted<'_>) -> Option<(usize, Chosen)> {
    let fits = |found: &Interpreter| {
        wanted.least.is_none_or(|least| found.version >= *least)
            && wanted.of_package.is_none_or(|spec| fits_python(&found.version, spec))
    };
    let newest = |of: &dyn Fn(&Interpreter) -> bool| {
        let fitting = all.iter().enumerate().filter(|(_, found)| fits(found) && of(found));
        fitting.max_by(|(_, one), (_, other)| one.version.cmp(&other.version)).map(|(number, _)| number)
    };
    let of_series = |found: &Interpreter| wanted.locked_for.is_some_and(|of| of.series() == found.version.series());
    None.or_else(|| Some((newest(&of_series)?, Chosen::Locked)))
        .or_else(|| Some((newest(&|found| found.is_usual)?, Chosen::Usual)))
        .or_else(|| Some((newest(&|_| true)?, Chosen::Newest)))
}

/// The interpreter that a lock was resolved by, as it says in its first line.
pub fn locked_for(lock: &str) -> Option<Version> {
    let first = lock.lines().next()?.strip_prefix('#')?;
    let version = first.rsplit_once("Python ")?.1.trim().trim_end_matches('.');
    Version::try_from(version.to_owned()).ok()
}

/// Whether an interpreter fits a `Requires-Python` (PEP 440, version specifiers). What cannot be understood is left to
/// the client.
pub fn fits_python(version: &Version, spec: &str) -> bool {
    spec.split(',').map(str::trim).filter(|clause| !clause.is_empty()).all(|clause| {
        let end = clause.find(|c: char| !"<>=!~".contains(c)).unwrap_or(clause.len());
        let (operator, wanted) = clause.split_at(end);
        let wanted = wanted.trim();
        let prefix = wanted.strip_suffix(".*");
        let Some(wanted) = numbers(prefix.unwrap_or(wanted)) else { return true };
        let of = numbers(&version.to_string()).unwrap_or_default();
        let is_below = |prefix: &[u32]| padded(&of, prefix.len())[..prefix.len()] == *prefix;
        let order = compare(&of, &wanted);
        match (operator, prefix.is_some()) {
            ("==" | "===", true) => is_below(&wanted),
            ("!=", true) => !is_below(&wanted),
            ("==" | "===", false) => order.is_eq(),
            ("!=", false) => order.is_ne(),
            (">=", _) => order.is_ge(),
            (">", _) => order.is_gt(),
            ("<=", _) => order.is_le(),
            ("<", _) => order.is_lt(),
            ("~=", _) => order.is_ge() && wanted.len() > 1 && is_below(&wanted[..wanted.len() - 1]),
            _ => true,
        }
    })
}

/// Whether a program of Node's fits a package's `engines` (node-semver ranges). What cannot be understood fits.
pub fn fits_node(version: &Version, range: &str) -> bool {
    let of = padded(&numbers(&version.to_string()).unwrap_or_default(), 3);
    range.split("||").any(|all| match hyphen(all) {
        Some((from, to)) => compare(&of, &from).is_ge() && (compare(&of, &to).is_le() || of.starts_with(&to)),
        None => comparators(all).iter().all(|(operator, wanted)| fits_comparator(&of, operator, wanted)),
    })
}

/// `FROM - TO`.
fn hyphen(range: &str) -> Option<(Vec<u32>, Vec<u32>)> {
    let (from, to) = range.split_once(" - ")?;
    Some((partial(from.trim())?, partial(to.trim())?))
}

/// The comparators of a range, which all must hold, each with its operator.
fn comparators(range: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for word in range.split_whitespace() {
        let end = word.find(|c: char| !"<>=~^".contains(c)).unwrap_or(word.len());
        let (operator, version) = word.split_at(end);
        match found.last_mut() {
            // `>= 18` is one comparator.
            Some((_, before)) if before.is_empty() && operator.is_empty() => version.clone_into(before),
            _ => found.push((operator.to_owned(), version.to_owned())),
        }
    }
    found
}

fn fits_comparator(of: &[u32], operator: &str, wanted: &str) -> bool {
    let Some(wanted) = partial(wanted) else { return true };
    let is_below = |length: usize| padded(of, length)[..length] == padded(&wanted, length)[..length];
    let order = compare(of, &wanted);
    match operator {
        ">=" => order.is_ge(),
        "<" => order.is_lt(),
        // A part that is left out stands for all of its values.
        ">" => order.is_gt() && !is_below(wanted.len()),
        "<=" => order.is_le() || is_below(wanted.len()),
        "~" => order.is_ge() && is_below(wanted.len().min(2)),
        "^" => {
            let fixed = wanted.iter().position(|number| *number > 0).map_or(wanted.len(), |at| at + 1);
            order.is_ge() && is_below(fixed.min(wanted.len()))
        }
        "" | "=" => is_below(wanted.len()),
        _ => true,
    }
}

/// The numbers of a version of npm's that may lack its last parts, `*` and `x` standing for those.
fn partial(text: &str) -> Option<Vec<u32>> {
    let text = text.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let parts = text.split('.').take_while(|part| !matches!(*part, "*" | "x" | "X" | ""));
    let found: Option<Vec<u32>> = parts.map(|part| part.parse().ok()).collect();
    found
}

fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

fn padded(numbers: &[u32], length: usize) -> Vec<u32> {
    let mut padded = numbers.to_vec();
    padded.resize(padded.len().max(length), 0);
    padded
}

/// `3.8` is `3.8.0`.
fn compare(one: &[u32], other: &[u32]) -> Ordering {
    padded(one, other.len()).cmp(&padded(other, one.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::try_from(text.to_owned()).expect("a version")
    }

    fn host(usual: &str, others: &[&str]) -> Vec<Interpreter> {
        let other = |text: &&str| Interpreter { version: version(text), is_usual: false };
        let usual = Interpreter { version: version(usual), is_usual: true };
        others.iter().map(other).chain([usual]).collect()
    }

    fn chosen(all: &[Interpreter], wanted: Wanted<'_>) -> Option<(String, Chosen)> {
        choose(all, wanted).map(|(number, why)| (all[number].version.to_string(), why))
    }

    #[test]
    fn the_hosts_own_is_taken_where_it_fits_and_else_the_newest_that_does() {
        let all = host("3.11.2", &["3.8.1", "3.13.0", "3.12.4", "3.10.9"]);
        let is = |text: &str, why: Chosen| Some((text.to_owned(), why));
        let wanted = Wanted::default();
        assert_eq!(chosen(&all, wanted), is("3.11.2", Chosen::Usual));
        let (least, lock, gone) = (version("3.12"), version("3.12.9"), version("3.9.1"));
        assert_eq!(chosen(&all, Wanted { least: Some(&least), ..wanted }), is("3.13.0", Chosen::Newest));
        assert_eq!(chosen(&all, Wanted { of_package: Some(">=3.12,<3.13"), ..wanted }), is("3.12.4", Chosen::Newest));
        assert_eq!(chosen(&all, Wanted { of_package: Some("<3.11"), ..wanted }), is("3.10.9", Chosen::Newest));
        assert_eq!(chosen(&all, Wanted { locked_for: Some(&lock), ..wanted }), is("3.12.4", Chosen::Locked));
        assert_eq!(chosen(&all, Wanted { locked_for: Some(&gone), ..wanted }), is("3.11.2", Chosen::Usual));
        assert_eq!(chosen(&all, Wanted { of_package: Some(">=3.14"), ..wanted }), None);
        // What a lock was made by is no reason to take what does not fit.
        let both = Wanted { locked_for: Some(&lock), of_package: Some(">=3.13"), ..wanted };
        assert_eq!(chosen(&all, both), is("3.13.0", Chosen::Newest));
    }

    #[test]
    fn a_lock_says_by_which_interpreter_it_was_resolved() {
        let lock = "# Written by `fleetwright lock`, resolved by Python 3.11.7.\nsix==1.16.0\n";
        assert_eq!(locked_for(lock), Some(Version::from([3, 11, 7])));
        assert_eq!(locked_for("six==1.16.0\n"), None);
    }

    #[test]
    fn version_specifiers_mean_what_pep_440_says() {
        let cases = [
            (">=3.8", "3.8.0", true),
            (">=3.8", "3.7.17", false),
            (">=3.10,<4.0", "3.13.1", true),
            (">3.8", "3.8", false),
            ("<3.13", "3.13.0", false),
            ("<=3.12", "3.12.1", false),
            ("==3.11.*", "3.11.4", true),
            ("!=3.0.*,>=2.7", "3.0.1", false),
            ("!=3.9.7", "3.9.7", false),
            ("~=3.10", "3.12.0", true),
            ("~=3.10", "4.0.0", false),
            ("~=3.10.2", "3.11.0", false),
            ("==3.8", "3.8.0", true),
            ("", "3.8.0", true),
            (">=3.8, <3.13", "3.12.9", true),
            ("what is this", "3.8.0", true),
        ];
        for (spec, of, fits) in cases {
            assert_eq!(fits_python(&version(of), spec), fits, "{of} {spec}");
        }
    }

    #[test]
    fn ranges_of_engines_mean_what_npm_says() {
        let cases = [
            (">=18", "20.19.2", true),
            (">=22.7.5", "20.19.2", false),
            (">= 18.0.0", "17.9.9", false),
            ("^18.0.0 || ^20.9.0 || >=21", "20.19.2", true),
            ("^18.0.0 || ^20.9.0 || >=21", "20.8.0", false),
            ("^18.0.0 || ^20.9.0 || >=21", "19.0.0", false),
            ("20 || >=22", "20.1.0", true),
            ("20 || >=22", "21.0.0", false),
            (">=18 <21", "21.0.0", false),
            ("18.x", "18.20.1", true),
            ("~20.1", "20.2.0", false),
            ("~20", "20.2.0", true),
            ("18 - 20", "20.19.0", true),
            ("18 - 20", "21.0.0", false),
            (">18", "18.5.0", false),
            ("<=20", "20.19.0", true),
            ("*", "20.0.0", true),
            ("", "20.0.0", true),
            ("^0.10.0", "20.0.0", false),
            ("lts/*", "20.0.0", true),
        ];
        for (range, of, fits) in cases {
            assert_eq!(fits_node(&version(of), range), fits, "{of} {range}");
        }
    }
}
