//! What it costs that a host must have something: a hello and a stage, with and without `requires`.
//!
//! `cargo run --release -p fleetwright-tests --bin facts`. A hello is the agent's view of its host, which it waits for before it
//! greets; a stage is that of a release without a package. `requires` names everything that this machine has.

#![expect(clippy::print_stdout, reason = "its output is for people")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use fleetwright_agent::{Machine, ThisHost};
use fleetwright_deploy::host::{Facts, Requirement, UNKNOWN_MARK};
use fleetwright_deploy::ids::{ReleaseId, ServerName};
use fleetwright_deploy::release::Release;

/// Measures hellos and stages on this machine.
#[derive(Parser)]
struct Arguments {
    /// How many of each.
    #[arg(long, default_value_t = 200)]
    times: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { times } = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let host = ThisHost::new(folder.path(), "127.0.0.1".to_owned(), BTreeMap::new());
    let begun = Instant::now();
    let view = host.refresh().await?;
    let asking = begun.elapsed();
    let facts = view.facts.context("facts")?;
    let needs = needs(&facts)?;
    println!("asking everything once: {asking:.1?}; this machine has {}", words(&needs));

    let restarted = tempfile::tempdir()?;
    let mut hellos = Vec::new();
    for state_dir in [restarted.path(), folder.path()] {
        let mut took = Vec::new();
        for _ in 0..times {
            // An agent that has just begun, of a host that was never asked, or was.
            let fresh = ThisHost::new(state_dir, "127.0.0.1".to_owned(), BTreeMap::new());
            let begun = Instant::now();
            fresh.view().await;
            took.push(begun.elapsed());
        }
        hellos.push(median(took));
    }
    println!("hello: {:.0?} where nothing is known, {:.0?} where it is", hellos[0], hellos[1]);

    let server: ServerName = "server".parse()?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for number in 0..times {
        without.push(stage(&host, &server, number, Vec::new()).await?);
        with.push(stage(&host, &server, number, needs.clone()).await?);
    }
    let (without, with) = (median(without), median(with));
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!("stage: {without:.0?} without `requires`, {with:.0?} with it: {ratio:.3} times");
    Ok(())
}

fn needs(facts: &Facts) -> Result<Vec<Requirement>> {
    let known = facts.runtimes.keys().filter(|name| !name.starts_with(UNKNOWN_MARK));
    known.map(|name| Ok(Requirement::try_from(name.clone())?)).collect()
}

fn words(needs: &[Requirement]) -> String {
    needs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Stages a release that was not staged before, and gives the time that it took.
async fn stage(host: &ThisHost, server: &ServerName, number: u32, requires: Vec<Requirement>) -> Result<Duration> {
    let mut release = Release::plain(server.clone(), vec!["/bin/true".to_owned()]);
    release.run.user = rustix::process::geteuid().is_root().then(|| "root".to_owned());
    release.run.environment.insert("NUMBER".to_owned(), number.to_string());
    release.requires = requires;
    let bytes = serde_json::to_vec(&release)?;
    let id = ReleaseId::of(&bytes);
    host.receive(server, &id, &bytes, &BTreeMap::new())?;
    let begun = Instant::now();
    host.stage(server, &id, None).await?;
    let took = begun.elapsed();
    host.discard(server, &id, &[])?;
    Ok(took)
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}
