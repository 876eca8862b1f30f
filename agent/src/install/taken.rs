//! Taking over what an install has left: from then on it is root's, and read without following where it points.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::Path;

use fleetwright_deploy::failure::Failure;
use rustix::fs::OFlags;

use super::file_failure;

/// Largest file of an installed package that the agent itself reads, in bytes.
const READ_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Makes everything below a folder root's, from the top: what is root's cannot be exchanged for something else while
/// the rest is walked. Nothing keeps a right that only its maker could give, and no other name anywhere.
pub(super) fn take_over(path: &Path, maker: u32) -> std::io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() && !found.is_file() && !found.is_symlink() {
        return fs::remove_file(path);
    }
    if found.is_file() && found.nlink() > 1 {
        if found.uid() != maker {
            return Err(std::io::Error::other(format!("{} is a file of somebody else", path.display())));
        }
        // The folder is root's by now; what was put into it before that must not lead anywhere.
        let folder = path.parent().ok_or_else(|| std::io::Error::other("it is in no folder"))?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| std::io::Error::other(error.to_string()))?;
        let own = folder.join(format!(".own-{}", hex::encode(random)));
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut kept = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        std::io::copy(&mut kept, &mut File::create_new(&own)?)?;
        fs::rename(&own, path)?;
    }
    lchown(path, Some(0), Some(0))?;
    if found.is_symlink() {
        return Ok(());
    }
    let least = if found.is_dir() { 0o700 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(found.mode() & 0o755 | least))?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            take_over(&entry?.path(), maker)?;
        }
    }
    Ok(())
}

/// Reads a file that an install has left, and nothing that it points to instead.
pub(super) fn read_kept(path: &Path) -> Result<Vec<u8>, Failure> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let read = opened.and_then(|file| {
        let found = file.metadata()?;
        if !found.is_file() || found.len() > READ_BYTES_MAX {
            return Err(std::io::Error::other("it is no file of a usual size"));
        }
        let mut content = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut content)?;
        Ok(content)
    });
    read.map_err(|error| file_failure(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_install_points_to_is_not_read() {
        let folder = tempfile::tempdir().expect("folder");
        let (secret, link) = (folder.path().join("secret"), folder.path().join("link"));
        fs::write(&secret, b"no").expect("write");
        std::os::unix::fs::symlink(&secret, &link).expect("link");
        assert!(read_kept(&link).is_err());
        assert_eq!(read_kept(&secret).expect("a file"), b"no");
    }

    #[test]
    fn what_is_taken_over_has_no_other_name_and_no_special_right() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let (app, other) = (folder.path().join("app"), folder.path().join("other"));
        fs::create_dir_all(app.join("bin")).expect("folder");
        fs::write(&other, b"theirs").expect("write");
        lchown(&other, Some(4_000_000), Some(4_000_000)).expect("owner");
        fs::set_permissions(&other, fs::Permissions::from_mode(0o4777)).expect("mode");
        fs::hard_link(&other, app.join("bin/linked")).expect("link");
        assert!(take_over(&app, 4_000_001).is_err(), "it is not of the one who has linked it");
        take_over(&app, 4_000_000).expect("take over");
        let found = fs::metadata(app.join("bin/linked")).expect("file");
        assert_eq!((found.uid(), found.nlink(), found.mode() & 0o7777), (0, 1, 0o755));
        assert_eq!(fs::metadata(&other).expect("file").uid(), 4_000_000, "the other name is left alone");
    }

    #[test]
    fn what_is_taken_over_is_written_through_no_link_that_was_put_there() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let (app, host) = (folder.path().join("app"), folder.path().join("host"));
        fs::create_dir_all(&app).expect("folder");
        fs::write(&host, "the host's").expect("write");
        fs::set_permissions(&host, fs::Permissions::from_mode(0o600)).expect("mode");
        fs::write(app.join("x"), "evil").expect("write");
        fs::set_permissions(app.join("x"), fs::Permissions::from_mode(0o755)).expect("mode");
        fs::hard_link(app.join("x"), app.join("y")).expect("link");
        for name in ["x", "y"] {
            // The names that a copy has had, and what a copy could be mistaken for.
            for planted in [format!("{name}.fleetwright-own"), format!(".own-{name}")] {
                std::os::unix::fs::symlink(&host, app.join(planted)).expect("link");
            }
        }
        lchown(app.join("x"), Some(4_000_000), Some(4_000_000)).expect("owner");
        take_over(&app, 4_000_000).expect("take over");
        assert_eq!(fs::read_to_string(&host).expect("read"), "the host's");
        assert_eq!(fs::metadata(&host).expect("file").mode() & 0o7777, 0o600);
        for name in ["x", "y"] {
            let found = fs::symlink_metadata(app.join(name)).expect("file");
            assert!(found.is_file() && found.uid() == 0, "{name}");
            assert_eq!(fs::read_to_string(app.join(name)).expect("read"), "evil");
        }
    }
}
