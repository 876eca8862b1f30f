use super::*;

fn profile(release: &Release) -> Profile {
    Profile::server(&ServerLayout::at(Path::new("/state/servers/time")), release).expect("a profile")
}

fn release() -> Release {
    Release::plain("time".parse().expect("name"), vec!["serve".to_owned(), "--now".to_owned()])
}

#[test]
fn a_server_writes_to_its_data_and_to_what_its_definition_names() {
    let mut release = release();
    // A user that every host has, so that the test needs none of its own.
    release.run.user = Some("nobody".to_owned());
    release.run.writable = vec!["/srv/exports".to_owned()];
    if !rustix::process::geteuid().is_root() {
        return assert!(Profile::server(&ServerLayout::at(Path::new("/s/servers/time")), &release).is_err());
    }
    let profile = profile(&release);
    assert_eq!(profile.write, ["/state/servers/time/data", "/srv/exports"].map(PathBuf::from));
    assert_eq!(profile.read, [PathBuf::from("/state/servers/time")]);
    assert_eq!((profile.files, profile.umask, profile.may_stay), (Files::Host, 0o077, false));
    assert_eq!(
        (profile.user.map(|user| user.name), profile.programs),
        (Some("nobody".to_owned()), vec!["serve".to_owned()])
    );
}

#[test]
fn a_user_that_is_not_there_is_refused_and_never_replaced_by_the_agents() {
    let mut release = release();
    release.run.user = Some("fleetwright-nobody-at-all".to_owned());
    let refused = Profile::server(&ServerLayout::at(Path::new("/state/servers/time")), &release);
    assert_eq!(refused.expect_err("refused").kind, FailureKind::DependencyError);
}

#[test]
fn an_installer_reads_the_system_and_writes_what_it_installs() {
    let user = Identity { name: "fw-install-1".to_owned(), uid: 998, gid: 998, groups: Vec::new() };
    let (app, scratch) =
        (Path::new("/state/servers/time/releases/1/app"), Path::new("/state/servers/time/releases/1/tmp"));
    let profile = Profile::installer(Some(user), app, scratch);
    assert_eq!((profile.files, profile.read.len()), (Files::System, 0));
    assert_eq!(profile.write, [app, scratch].map(Path::to_owned));
    // Who cannot become somebody else installs as before, as far as files go.
    assert_eq!(Profile::installer(None, app, scratch).files, Files::All);
}

#[test]
fn what_steers_the_loader_of_programs_is_for_the_program_alone() {
    let given = [("LD_PRELOAD", "/x.so"), ("GLIBC_TUNABLES", "a=b"), ("ZONE", "a")];
    let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let names: Vec<String> = for_program(given.into()).map(|(name, _)| name).collect();
    assert_eq!(names, ["FLEETWRIGHT_LATER_GLIBC_TUNABLES", "FLEETWRIGHT_LATER_LD_PRELOAD", "ZONE"]);
}

#[test]
fn what_is_left_out_is_said_in_words() {
    let mut told = Confinement {
        user: "fw-time".to_owned(),
        no_new_privs: true,
        no_capabilities: true,
        landlock: Some(6),
        files: true,
        seccomp: true,
        ..Confinement::default()
    };
    assert_eq!(told.words(), "fw-time, no new privileges, no capabilities, Landlock 6 (files and processes), seccomp");
    told.left_out = vec!["this host's kernel has no Landlock".to_owned()];
    told.landlock = None;
    assert!(told.words().ends_with("seccomp, NOT CONFINED: this host's kernel has no Landlock"), "{}", told.words());
}
