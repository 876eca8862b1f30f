//! What programs need of places that are closed to their user: themselves, with what they were installed with, their
//! interpreters, and files that they are told of by name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::passage::{closed_above, temporary_above};
use super::route;
use super::rules::is_of_system;
use crate::runtime::users::Identity;

/// How many interpreters may stand before one another.
const INTERPRETERS_MAX: u32 = 4;
/// Most of a first line that names an interpreter, in bytes.
const FIRST_LINE_BYTES_MAX: u64 = 512;
/// Variables that name no files for the program.
const NO_FILES: [&str; 3] = ["PATH", "PWD", "OLDPWD"];

/// Looks for what is needed.
pub(super) struct Needs<'a> {
    user: &'a Identity,
    path: &'a str,
    /// Whether only the host's programs and their settings are at hand.
    system_only: bool,
    found: BTreeSet<PathBuf>,
}

impl<'a> Needs<'a> {
    pub(super) fn of(user: &'a Identity, path: &'a str, system_only: bool) -> Self {
        Self { user, path, system_only, found: BTreeSet::new() }
    }

    pub(super) fn found(self) -> BTreeSet<PathBuf> {
        self.found
    }

    /// A program that is started by this name.
    pub(super) fn program(&mut self, name: &str) {
        self.started(name, INTERPRETERS_MAX);
    }

    fn started(&mut self, name: &str, depth: u32) {
        let Ok(path) = super::find(name, self.path) else { return };
        // A program that its user could exchange is reached by that user's own rights, or not at all.
        let Some(real) = self.resolve(&path) else { return };
        self.installed(&path);
        self.installed(&real);
        if depth > 0
            && let Some(interpreter) = interpreter(&real)
        {
            self.started(&interpreter, depth - 1);
        }
    }

    /// A program with what came with it: what is beside its `bin` folder, unless that would be all of a closed folder.
    fn installed(&mut self, program: &Path) {
        let Some(limit) = self.limit(program) else { return };
        let folder = program.parent().unwrap_or(program);
        let is_programs = folder.file_name().is_some_and(|name| name == "bin" || name == "sbin" || name == "shims");
        let candidates = [folder.parent().filter(|_| is_programs), Some(folder)];
        let widest = candidates.into_iter().flatten().find(|path| path.starts_with(&limit) && *path != limit);
        self.found.insert(widest.unwrap_or(program).to_owned());
    }

    /// A word or the value of a variable that names something by its whole path, alone or behind `=`.
    pub(super) fn named(&mut self, word: &OsString) {
        let bytes = word.as_bytes();
        let text = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) if bytes.first() == Some(&b'-') => &bytes[at + 1..],
            _ => bytes,
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(text));
        if !path.is_absolute() {
            return;
        }
        let real = match self.resolve(path) {
            Some(real) => real,
            None if path.symlink_metadata().is_ok() => return,
            // What somebody is still to make among temporary files comes into a folder that is there.
            None => match path.parent().and_then(|folder| self.resolve(folder)) {
                Some(folder) if temporary_above(&folder, self.user).is_some() => folder,
                Some(_) | None => return,
            },
        };
        if self.limit(&real).is_some() {
            self.found.insert(real);
        }
    }

    /// Where a path leads, unless its user could have led it there past a folder that is closed to that user.
    fn resolve(&self, path: &Path) -> Option<PathBuf> {
        let route = route::resolve(path, self.user)?;
        (!route.is_users || closed_above(&route.end, self.user).is_none()).then_some(route.end)
    }

    /// The values of this process's variables.
    pub(super) fn environment(&mut self) {
        for (name, value) in std::env::vars_os() {
            if !NO_FILES.iter().any(|none| name == *none) {
                self.named(&value);
            }
        }
    }

    /// The folder that is closed above something, or the home that it is in; nothing where the program gets to it anyway.
    fn limit(&self, path: &Path) -> Option<PathBuf> {
        let top = || {
            let top: PathBuf = path.components().take(2).collect();
            (self.system_only && !is_of_system(path) && top != path).then_some(top)
        };
        closed_above(path, self.user)
            .or_else(|| home_of(path))
            .or_else(|| temporary_above(path, self.user))
            .or_else(top)
    }
}

/// The home folder that something is in.
fn home_of(path: &Path) -> Option<PathBuf> {
    let depth = match path.components().nth(1)?.as_os_str().to_str()? {
        "root" => 2,
        "home" => 3,
        _ => return None,
    };
    let home: PathBuf = path.components().take(depth).collect();
    (home != path).then_some(home)
}

/// What the first line of a script names (execve(2)); through `env`, the program that it looks for.
fn interpreter(script: &Path) -> Option<String> {
    let mut line = String::new();
    let mut start = [0; 2];
    let mut file = File::open(script).ok()?;
    file.read_exact(&mut start).ok()?;
    if start != *b"#!" {
        return None;
    }
    BufReader::new(file.take(FIRST_LINE_BYTES_MAX)).read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let program = words.next()?;
    if program.ends_with("/env") {
        return words.find(|word| !word.starts_with('-')).map(str::to_owned);
    }
    Some(program.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_script_is_needed_with_its_interpreter_and_all_that_came_with_it_and_nothing_beside() {
        let folder = tempfile::tempdir().expect("folder");
        let closed = folder.path().canonicalize().expect("path");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("mode");
        for (path, text) in [
            ("python/bin/python3", "\x7fELF".to_owned()),
            ("project/bin/serve", format!("#!{}/python/bin/python3 -I\n", closed.display())),
            ("bin/alone", "#!/usr/bin/env -S nothing-like-this\n".to_owned()),
            ("data.json", "{}".to_owned()),
            ("secret", "no".to_owned()),
        ] {
            let path = closed.join(path);
            fs::create_dir_all(path.parent().expect("folder")).expect("folder");
            fs::write(path, text).expect("write");
        }
        let user = Identity { name: "u".to_owned(), uid: 4_000_000, gid: 4_000_000, groups: Vec::new() };
        let path = closed.join("project/bin").display().to_string();
        let mut needs = Needs::of(&user, &path, false);
        needs.program("serve");
        needs.program(&closed.join("bin/alone").display().to_string());
        needs.named(&OsString::from(format!("--file={}/data.json", closed.display())));
        needs.named(&OsString::from(closed.as_os_str()));
        needs.named(&OsString::from("/etc/passwd"));
        let found: Vec<PathBuf> = needs.found().into_iter().collect();
        let expected = ["bin", "data.json", "project", "python"].map(|name| closed.join(name));
        // Where the machine's folder for temporary files is closed itself, that is the limit; nothing else changes.
        assert_eq!(found, expected);
    }

    #[test]
    fn a_home_is_never_needed_as_a_whole() {
        assert_eq!(home_of(Path::new("/home/a/bin/x")), Some(PathBuf::from("/home/a")));
        assert_eq!(home_of(Path::new("/root/x")), Some(PathBuf::from("/root")));
        assert_eq!(home_of(Path::new("/root")), None);
        assert_eq!(home_of(Path::new("/srv/x")), None);
    }
}
