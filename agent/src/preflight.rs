//! What must hold on this host before anything is fetched: each failure names what is missing.

use std::path::Path;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::release::Release;

use crate::facts::Known;
use crate::layout::ServerLayout;
use crate::runtime;

/// Least free space for staging a release, in bytes.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
const STEP: &str = "preflight";

/// Checks needs, disk and port. `running` is the release that holds this server's port now, if one does.
pub(crate) async fn check(
    release: &Release,
    server: &ServerLayout,
    running: Option<&Release>,
    facts: &Known,
) -> Result<(), Failure> {
    facts.check(&release.requires, STEP).await?;
    runtime::chosen(release)?;
    check_disk(server.folder())?;
    let port_is_ours = running.is_some_and(|running| {
        running.run.endpoint.as_ref().map(|at| (&at.address, at.port))
            == release.run.endpoint.as_ref().map(|at| (&at.address, at.port))
    });
    if !port_is_ours {
        check_port(release).await?;
    }
    Ok(())
}

fn check_disk(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|error| crate::install::file_failure(folder, &error))?;
    let stat = rustix::fs::statvfs(folder)
        .map_err(|error| Failure::new(FailureKind::ResourceError, STEP, format!("{}: {error}", folder.display())))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < FREE_BYTES_MIN {
        let message = format!("{} MiB are free on the disk, {} MiB are needed", free >> 20, FREE_BYTES_MIN >> 20);
        return Err(Failure::new(FailureKind::ResourceError, STEP, message).hint("free some space on the host"));
    }
    Ok(())
}

async fn check_port(release: &Release) -> Result<(), Failure> {
    let Some(endpoint) = &release.run.endpoint else { return Ok(()) };
    let authority = endpoint.authority();
    match tokio::net::TcpListener::bind(&authority).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::new(
            FailureKind::ResourceError,
            STEP,
            format!("port {} on {} is taken", endpoint.port, endpoint.address),
        )
        .hint(format!(
            "see who listens with `ss -ltnp 'sport = :{}'`, or give the server another port",
            endpoint.port
        ))),
        Err(error) => {
            Err(Failure::new(FailureKind::ResourceError, STEP, format!("nothing can listen on {authority}: {error}"))
                .hint("check the host's address"))
        }
    }
}
