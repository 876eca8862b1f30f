//! The systemd unit of a release: what is started, as whom, and what it may do. Made from the release and the name of its
//! host alone, so the same release has the same unit.

use std::path::Path;

use fleetwright_deploy::release::{Release, RestartPolicy};

use crate::layout::{ReleaseLayout, ServerLayout};
use crate::runtime::users;
use crate::supervise::{command_of, search_path};

/// The name of a server's unit.
pub(crate) fn name(server: &ServerLayout) -> String {
    format!("fleetwright-{}.service", server.name())
}

/// The user that a release runs as under systemd.
pub(crate) fn user(release: &Release) -> String {
    release.run.user.clone().unwrap_or_else(|| users::own_name(release.server.as_str()))
}

/// The text of the unit. `bridge` is the program that speaks HTTP for stdio servers.
pub(super) fn text(server: &ServerLayout, layout: &ReleaseLayout, release: &Release, bridge: &Path) -> String {
    let run = &release.run;
    // In a command, and only there, a dollar sign begins a variable.
    let word = |word: &String| quoted(word).replace('$', "$$");
    let command: Vec<String> = command_of(server, release, layout.folder(), bridge).iter().map(word).collect();
    let (seconds, data) = (run.stop_timeout.ms().div_ceil(1_000), server.data());
    let restart = match run.restart {
        RestartPolicy::Always => "always",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Never => "no",
    };
    let mut unit = Unit::default();
    unit.line("# Written by fleetwright-agent: a deployment writes it anew.");
    unit.section("Unit");
    unit.set("Description", &format!("{} by Fleetwright", release.server));
    unit.line("After=network-online.target\nWants=network-online.target\nStartLimitIntervalSec=0");
    unit.section("Service");
    unit.line("Type=exec");
    unit.set("ExecStart", &command.join(" "));
    let image = release.package.image().is_some();
    if !image {
        unit.set("User", &user(release));
    }
    unit.set("WorkingDirectory", &path(&data));
    unit.set("Environment", &quoted(&format!("PATH={}", search_path(layout.folder(), PATH))));
    unit.set("Environment", &quoted(&format!("HOME={}", data.display())));
    if !image || release.has_bridge_token() {
        unit.set("EnvironmentFile", &path(&layout.systemd_environment()));
    }
    if !image {
        // A colon would end the name of the credential.
        for secret in release.secrets_of_server().iter().filter(|secret| !secret.contains(':')) {
            let file = layout.secrets().join(secret);
            unit.set("LoadCredential", &format!("{secret}:{}", path(&file)));
        }
    }
    unit.set("Restart", restart);
    if run.completes {
        // How it ended is asked for once it has.
        unit.line("RemainAfterExit=yes");
    }
    unit.line("RestartSec=1\nKillMode=control-group\nSuccessExitStatus=143");
    unit.set("TimeoutStopSec", &seconds.to_string());
    // What an image takes is taken by its container, which is not of this unit.
    if !image {
        unit.limits(release);
    }
    unit.line(SANDBOX.trim());
    unit.set("ReadWritePaths", &path(if image { server.folder() } else { &data }));
    for writable in &run.writable {
        unit.set("ReadWritePaths", &format!("-{}", path(Path::new(writable))));
    }
    if !run.completes {
        unit.section("Install");
        unit.line("WantedBy=multi-user.target");
    }
    unit.0
}

/// Where programs of the host are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a server may not do, whatever it is.
const SANDBOX: &str = "
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @keyring @module @mount @obsolete @raw-io @reboot @swap bpf io_uring_setup open_by_handle_at userfaultfd
SystemCallErrorNumber=EPERM
RestrictNamespaces=yes
ProtectProc=invisible
LimitCORE=0
LimitNOFILE=65536
RemoveIPC=yes
UMask=0077
";

#[derive(Default)]
struct Unit(String);

impl Unit {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn section(&mut self, name: &str) {
        self.line(&format!("\n[{name}]"));
    }

    fn set(&mut self, name: &str, value: &str) {
        self.line(&format!("{name}={value}"));
    }

    fn limits(&mut self, release: &Release) {
        let limits = &release.run.resources;
        if let Some(bytes) = limits.memory_bytes {
            self.set("MemoryMax", &bytes.to_string());
            // Swap would only put off the end.
            self.set("MemorySwapMax", "0");
        }
        if let Some(percent) = limits.cpu_percent {
            self.set("CPUQuota", &format!("{percent}%"));
        }
        if let Some(tasks) = limits.tasks {
            self.set("TasksMax", &tasks.to_string());
        }
    }
}

/// A word of a command or an assignment (systemd.syntax(7)): quotes, backslashes and specifiers mean themselves.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '%' => text.push_str("%%"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A path where systemd takes no quotes.
fn path(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace('%', "%%").replace(' ', "\\x20")
}

/// A line of an environment file (systemd.exec(5)).
pub(crate) fn environment_line(name: &str, value: &str) -> String {
    let mut text = format!("{name}=\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push_str("\"\n");
    text
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::release::{Endpoint, Package, Resources, Transport};
    use fleetwright_deploy::time::Length;

    use super::*;

    #[test]
    fn a_release_with_everything_has_this_unit() {
        let server = ServerLayout::at(Path::new("/var/lib/fleetwright-agent/servers/time"));
        let mut release = Release::plain(
            "time".parse().expect("name"),
            ["serve", "--zone", "a \"b\" $c 5%"].map(str::to_owned).to_vec(),
        );
        release.run.transport = Transport::Stdio;
        release.run.endpoint = Some(Endpoint { address: "127.0.0.1".to_owned(), port: 8801, path: "/mcp".to_owned() });
        release.run.stop_timeout = Length::from_ms(2_500);
        release.run.writable = vec!["/srv/some files".to_owned()];
        release.run.resources =
            Resources { memory_bytes: Some(256 << 20), cpu_percent: Some(50), tasks: Some(64), disk_bytes: None };
        let layout = server.release(&release.id());
        insta::assert_snapshot!(text(&server, &layout, &release, Path::new("/usr/bin/fleetwright-agent")));
    }

    #[test]
    fn the_unit_of_an_image_keeps_its_container_and_has_nothing_that_is_for_it() {
        let server = ServerLayout::at(Path::new("/var/lib/fleetwright-agent/servers/time"));
        let mut release = Release::plain("time".parse().expect("name"), Vec::new());
        release.package = Package::Oci {
            image: "ghcr.io/example/time".to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            version: "1".to_owned(),
        };
        release.run.user = Some("1000:1000".to_owned());
        release.run.resources =
            Resources { memory_bytes: Some(256 << 20), cpu_percent: Some(50), tasks: Some(64), disk_bytes: None };
        let unit = text(&server, &server.release(&release.id()), &release, Path::new("/usr/bin/fleetwright-agent"));
        assert!(unit.contains("\"contain\" \"--server-dir\" \"/var/lib/fleetwright-agent/servers/time\""), "{unit}");
        for absent in ["User=", "MemoryMax=", "CPUQuota=", "TasksMax=", "EnvironmentFile="] {
            assert!(!unit.contains(absent), "{absent} in {unit}");
        }
    }

    #[test]
    fn an_environment_line_keeps_every_character() {
        assert_eq!(environment_line("A", "x\"$y\\ `z`\nw"), "A=\"x\\\"\\$y\\\\ \\`z\\`\nw\"\n");
    }
}
