//! What the network and power cuts do to a fleet: the real coordinator and agents over real QUIC, in virtual time.

use std::time::Duration;

use fleetwright_deploy::deployment::Outcome;
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::HostName;
use fleetwright_protocol::report::AgentMessageV1;
use fleetwright_tests::attacker::tell;
use fleetwright_tests::simnet::{COORDINATOR, Net, Pace, Setup, host, server, version};
use tokio::time::sleep;

const YEAR: Duration = Duration::from_secs(366 * 24 * 3_600);

/// A fleet that runs version 1 everywhere.
async fn running(net: &Net) {
    net.connected().await;
    assert_eq!(net.deploy(1).await, Outcome::Succeeded);
    net.assert_all_run(1);
}

/// Whether a host is connected, as the coordinator sees it.
async fn until_connected(net: &Net, host: &HostName, wanted: bool) {
    let host = host.clone();
    net.until("the connection is seen", move |fleet| fleet.hosts()[&host].connected == wanted).await;
}

#[test]
fn hosts_enrol_connect_and_are_deployed_to() {
    Setup::default().run(|net| async move {
        running(&net).await;
        assert_eq!(net.deploy(2).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_slow_host_holds_up_nobody_before_the_switch() {
    Setup::default().run(|net| async move {
        running(&net).await;
        let slow = Pace { stage: Duration::from_secs(40), ..Pace::default() };
        net.machine(&host(0)).set_pace(slow);
        let id = net.start(2).await.expect("it starts");
        for fast in [host(1), host(2)] {
            net.step_is(&id, &fast, &["staged"]).await;
        }
        net.step_is(&id, &host(0), &["staging"]).await;
        assert_eq!(net.running(), vec![Some(version(1)); 3], "nothing is touched until everything is ready");
        assert_eq!(net.outcome(&id).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_host_behind_a_slow_link_does_not_delay_commands_to_others() {
    Setup::default().run(|net| async move {
        running(&net).await;
        net.slow_link(&host(0), Duration::from_secs(1));
        let began = turmoil::elapsed();
        let id = net.start(2).await.expect("it starts");
        net.step_is(&id, &host(1), &["staged"]).await;
        net.step_is(&id, &host(2), &["staged"]).await;
        assert!(turmoil::elapsed() - began < Duration::from_secs(4), "fast hosts waited for the slow link");
        assert_eq!(net.outcome(&id).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_lossy_and_reordering_network_only_takes_longer() {
    let latency = (Duration::from_millis(5), Duration::from_millis(150));
    Setup { seed: 11, hosts: 2, latency, loss: 0.05 }.run(|net| async move {
        running(&net).await;
        assert_eq!(net.deploy(2).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_link_that_is_cut_for_a_moment_in_the_midst_of_a_switch_changes_nothing() {
    Setup::default().run(|net| async move {
        running(&net).await;
        let id = net.start(2).await.expect("it starts");
        net.step_is(&id, &host(0), &["switching", "verifying"]).await;
        net.cut(&host(0));
        sleep(Duration::from_secs(4)).await;
        net.mend(&host(0));
        assert_eq!(net.outcome(&id).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_switch_that_never_reached_its_host_is_asked_for_again() {
    Setup::default().run(|net| async move {
        running(&net).await;
        // Another host is ready last, so that the link can be cut before the first switch is asked for.
        net.machine(&host(1)).set_pace(Pace { stage: Duration::from_secs(5), ..Pace::default() });
        let id = net.start(2).await.expect("it starts");
        net.step_is(&id, &host(0), &["staged"]).await;
        net.cut(&host(0));
        net.step_is(&id, &host(0), &["switching"]).await;
        until_connected(&net, &host(0), false).await;
        assert_eq!(net.machine(&host(0)).folder(&server()).current, Some(version(1)));
        net.mend(&host(0));
        assert_eq!(net.outcome(&id).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_host_that_is_cut_off_in_the_midst_of_a_switch_puts_itself_back_and_everything_follows() {
    Setup::default().run(|net| async move {
        running(&net).await;
        let id = net.start(2).await.expect("it starts");
        net.step_is(&id, &host(0), &["verifying"]).await;
        net.cut(&host(0));
        until_connected(&net, &host(0), false).await;
        let machine = net.machine(&host(0));
        let alone = async {
            while machine.folder(&server()).current != Some(version(1)) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        // The coordinator cannot have told it to.
        tokio::time::timeout(Duration::from_secs(60), alone).await.expect("it puts itself back");
        net.mend(&host(0));
        assert_eq!(net.outcome(&id).await, Outcome::RolledBack);
        assert_eq!(net.running(), vec![Some(version(1)); 3]);
    });
}

#[test]
fn a_fleet_that_is_cut_off_whole_puts_itself_back() {
    Setup::default().run(|net| async move {
        running(&net).await;
        let id = net.start(2).await.expect("it starts");
        net.step_is(&id, &host(2), &["verifying"]).await;
        net.hosts().for_each(|host| net.cut(host));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(net.running(), vec![Some(version(1)); 3], "no host waits for a coordinator that is gone");
        net.hosts().for_each(|host| net.mend(host));
        assert_eq!(net.outcome(&id).await, Outcome::RolledBack);
        assert_eq!(net.running(), vec![Some(version(1)); 3]);
        net.connected().await;
        assert_eq!(net.deploy(3).await, Outcome::Succeeded);
    });
}

#[test]
fn a_coordinator_that_loses_its_power_goes_on_where_it_was() {
    for (phase, states) in
        [("staging", &["staging"][..]), ("switching", &["switching", "verifying"]), ("confirming", &["confirming"])]
    {
        Setup::default().run(move |net| async move {
            running(&net).await;
            let id = net.start(2).await.expect("it starts");
            net.step_is(&id, &host(0), states).await;
            net.crash(COORDINATOR);
            sleep(Duration::from_secs(3)).await;
            net.restart(COORDINATOR);
            assert_eq!(net.outcome(&id).await, Outcome::Succeeded, "it was cut off while {phase}");
            net.assert_all_run(2);
        });
    }
}

#[test]
fn twenty_agents_are_back_soon_after_a_coordinator_that_was_long_away() {
    Setup { hosts: 20, ..Setup::default() }.run(|net| async move {
        net.connected().await;
        net.crash(COORDINATOR);
        // Long enough that every agent waits as long as it ever does.
        sleep(Duration::from_secs(150)).await;
        net.restart(COORDINATOR);
        let began = turmoil::elapsed();
        net.connected().await;
        let took = turmoil::elapsed() - began;
        assert!(took < Duration::from_secs(75), "the last agent was back after {took:?}");
    });
}

#[test]
fn an_agent_that_loses_its_power_goes_on_where_it_was() {
    for states in [&["staging"][..], &["switching"], &["verifying"]] {
        Setup::default().run(move |net| async move {
            running(&net).await;
            let id = net.start(2).await.expect("it starts");
            net.step_is(&id, &host(1), states).await;
            net.crash("h1");
            sleep(Duration::from_millis(500)).await;
            net.restart("h1");
            assert_eq!(net.outcome(&id).await, Outcome::Succeeded, "it was cut off while {states:?}");
            assert_eq!(net.running(), vec![Some(version(2)); 3]);
        });
    }
}

#[test]
fn a_connection_of_which_only_one_half_works_is_given_up_by_both_and_made_anew() {
    Setup::default().run(|net| async move {
        running(&net).await;
        net.mute(&host(0));
        until_connected(&net, &host(0), false).await;
        net.mend(&host(0));
        until_connected(&net, &host(0), true).await;
        assert_eq!(net.deploy(2).await, Outcome::Succeeded);
        net.assert_all_run(2);
    });
}

#[test]
fn a_newer_connection_takes_over_from_one_that_the_coordinator_still_holds_for_open() {
    Setup::default().run(|net| async move {
        running(&net).await;
        let id = net.start(2).await.expect("it starts");
        net.step_is(&id, &host(0), &["staging"]).await;
        // It is back before the coordinator could have missed it.
        net.crash("h0");
        sleep(Duration::from_millis(50)).await;
        net.restart("h0");
        assert_eq!(net.outcome(&id).await, Outcome::Succeeded);
        // When the old connection is given up at last, the new one stays.
        sleep(Duration::from_secs(40)).await;
        assert!(net.look(|fleet| fleet.hosts()[&host(0)].connected).await);
        assert_eq!(net.deploy(3).await, Outcome::Succeeded);
        net.assert_all_run(3);
    });
}

#[test]
fn a_host_whose_certificate_is_over_gets_nothing_more_on_its_open_connection_either() {
    Setup::default().run(|net| async move {
        running(&net).await;
        // By the coordinator's clock, all certificates are over.
        net.jump(COORDINATOR, YEAR);
        for n in 0..3 {
            until_connected(&net, &host(n), false).await;
        }
        let refused = net.start(2).await.expect_err("nobody is there");
        assert!(refused.to_string().contains("not connected"), "{refused}");
        sleep(Duration::from_secs(60)).await;
        assert!(net.look(|fleet| fleet.hosts().values().all(|host| !host.connected)).await, "none comes back");
        assert_eq!(net.running(), vec![Some(version(1)); 3], "their servers go on");
    });
}

#[test]
fn an_agent_obeys_no_coordinator_whose_certificate_is_over() {
    Setup::default().run(|net| async move {
        running(&net).await;
        net.jump("h0", YEAR);
        until_connected(&net, &host(0), false).await;
        sleep(Duration::from_secs(60)).await;
        assert!(net.look(|fleet| !fleet.hosts()[&host(0)].connected).await);
        assert!(net.look(|fleet| fleet.hosts()[&host(1)].connected).await);
    });
}

#[test]
fn a_release_that_is_not_healthy_is_undone_everywhere() {
    Setup::default().run(|net| async move {
        running(&net).await;
        net.machine(&host(1)).breaks(version(2));
        assert_eq!(net.deploy(2).await, Outcome::RolledBack);
        assert_eq!(net.running(), vec![Some(version(1)); 3]);
    });
}

#[test]
fn agents_notice_at_once_that_a_restarted_coordinator_knows_nothing_of_their_connections() {
    Setup::default().run(|net| async move {
        net.connected().await;
        net.crash(COORDINATOR);
        net.restart(COORDINATOR);
        net.until("the coordinator starts anew", |fleet| fleet.hosts().values().all(|host| !host.connected)).await;
        let began = turmoil::elapsed();
        net.connected().await;
        let took = turmoil::elapsed() - began;
        assert!(took < Duration::from_secs(7), "they waited for {took:?}, as if nobody had told them");
    });
}

#[test]
fn a_clock_that_is_set_neither_hastens_nor_puts_off_the_moment_at_which_a_host_puts_itself_back() {
    for jump in [Duration::ZERO, Duration::from_secs(40)] {
        Setup::default().run(move |net| async move {
            running(&net).await;
            let id = net.start(2).await.expect("it starts");
            net.step_is(&id, &host(0), &["verifying"]).await;
            let switched = turmoil::elapsed();
            net.cut(&host(0));
            net.jump("h0", jump);
            while net.machine(&host(0)).folder(&server()).current != Some(version(1)) {
                sleep(Duration::from_millis(100)).await;
            }
            let after = turmoil::elapsed() - switched;
            assert!(
                after > Duration::from_secs(14) && after < Duration::from_secs(40),
                "it took {after:?} with {jump:?}"
            );
            net.mend(&host(0));
            assert_eq!(net.outcome(&id).await, Outcome::RolledBack);
        });
    }
}

/// Where a step of a host may be when something happens to it.
const MOMENTS: [&str; 6] = ["stage", "staged", "snapshot", "switch", "verifying", "confirmed"];

/// What happens in the midst of a step.
#[derive(Clone, Copy, Debug)]
enum Happens {
    CoordinatorDies,
    AgentDies,
    LinkIsCut,
}

/// Whatever happens, and whenever: every host is on the new release and healthy, or exactly as it was.
fn ends_right_whenever(what: Happens) {
    for moment in MOMENTS {
        Setup::default().run(move |net| async move {
            running(&net).await;
            let slow = Pace { stage: Duration::from_secs(2), rest: Duration::from_secs(2) };
            net.hosts().for_each(|host| net.machine(host).set_pace(slow));
            // It is ready before the others, and waits for them.
            net.machine(&host(0)).set_pace(Pace { stage: Duration::from_millis(500), ..slow });
            let before = net.machine(&host(0)).folder(&server()).data;
            let id = net.start(2).await.expect("it starts");
            match moment {
                "staged" => net.step_is(&id, &host(0), &["staged"]).await,
                "verifying" => net.step_is(&id, &host(0), &["verifying"]).await,
                "confirmed" => net.step_is(&id, &host(0), &["confirmed", "done"]).await,
                work => {
                    while net.machine(&host(0)).doing() != Some(work) {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            match what {
                Happens::CoordinatorDies => {
                    net.crash(COORDINATOR);
                    sleep(Duration::from_secs(3)).await;
                    net.restart(COORDINATOR);
                }
                Happens::AgentDies => {
                    net.crash("h0");
                    sleep(Duration::from_secs(1)).await;
                    net.restart("h0");
                }
                Happens::LinkIsCut => {
                    net.cut(&host(0));
                    sleep(Duration::from_secs(40)).await;
                    net.mend(&host(0));
                }
            }
            let outcome = net.outcome(&id).await;
            for host in net.hosts() {
                let folder = net.machine(host).folder(&server());
                let at = format!("{what:?} at {moment}, {outcome:?}: {host}");
                match outcome {
                    Outcome::Succeeded => assert_eq!(folder.current, Some(version(2)), "{at}"),
                    Outcome::RolledBack => {
                        assert_eq!((folder.current, folder.data), (Some(version(1)), before), "{at}");
                    }
                    other => panic!("{at}: it ended as {other:?}"),
                }
            }
        });
    }
}

#[test]
fn a_coordinator_that_dies_at_any_moment_of_a_step_leaves_it_new_or_as_it_was() {
    ends_right_whenever(Happens::CoordinatorDies);
}

#[test]
fn an_agent_that_dies_at_any_moment_of_a_step_leaves_it_new_or_as_it_was() {
    ends_right_whenever(Happens::AgentDies);
}

#[test]
fn a_link_that_is_cut_at_any_moment_of_a_step_leaves_it_new_or_as_it_was() {
    ends_right_whenever(Happens::LinkIsCut);
}

/// How many messages a host has on their way at once that does nothing but greet.
const GREETINGS_AT_ONCE: usize = 16;

/// Greets as fast as it is let, each time as another host than before.
async fn greet_for_ever(net: Net) {
    let connections = [net.intruder(&host(99)).await.expect("in"), net.intruder(&host(99)).await.expect("in")];
    let mut greeting = tokio::task::JoinSet::new();
    for n in 0..GREETINGS_AT_ONCE {
        let connection = connections[n % connections.len()].clone();
        greeting.spawn(async move {
            for greeting in 0_u64.. {
                let view = HostView {
                    address: "127.0.0.1".to_owned(),
                    state_dir: "/state".to_owned(),
                    labels: [("n".to_owned(), format!("{n}-{greeting}-{}", "x".repeat(4_000)))].into(),
                    facts: None,
                };
                let hello = AgentMessageV1::Greeting { agent_version: "0".to_owned(), view };
                if tell(&connection, hello).await.is_none() {
                    break;
                }
            }
        });
    }
    greeting.join_all().await;
}

#[test]
fn a_host_that_floods_delays_the_steps_of_others_by_less_than_a_tenth() {
    Setup::default().run(|net| async move {
        running(&net).await;
        let began = turmoil::elapsed();
        assert_eq!(net.deploy(2).await, Outcome::Succeeded);
        let calm = turmoil::elapsed() - began;
        let flood = tokio::spawn(greet_for_ever(net.clone()));
        net.until("the flood is on", |fleet| fleet.hosts().get(&host(99)).is_some_and(|host| host.connected)).await;
        let began = turmoil::elapsed();
        assert_eq!(net.deploy(3).await, Outcome::Succeeded);
        let flooded = turmoil::elapsed() - began;
        assert!(!flood.is_finished(), "the flood goes on until the end");
        flood.abort();
        assert!(flooded * 10 <= calm * 11, "{calm:?} in calm, {flooded:?} in the flood");
        net.assert_all_run(3);
    });
}
