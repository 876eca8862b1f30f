//! What is believed of a host, whatever its agent says.

use super::*;
use crate::host::{ADDRESS_UNSAID, LABEL_BYTES_MAX, LABELS_MAX};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn view(address: &str, pairs: &[(&str, &str)]) -> HostView {
    HostView { address: address.to_owned(), state_dir: "/state".to_owned(), labels: labels(pairs), facts: None }
}

fn introduction(address: Option<&str>, pairs: &[(&str, &str)]) -> Introduction {
    Introduction { by: "ops".to_owned(), labels: labels(pairs), address: address.map(str::to_owned) }
}

impl Story {
    fn greet(&mut self, address: &str, pairs: &[(&str, &str)]) -> Effects {
        let event = FleetEvent::HostConnected { host: host(), view: view(address, pairs), claimed: true };
        self.tell(event).expect("a greeting")
    }

    fn host(&self) -> &Host {
        &self.fleet.hosts()[&host()]
    }

    fn believed(&self) -> HostView {
        self.host().believed().expect("a view")
    }

    fn label(&mut self, changes: &[(&str, Option<&str>)]) -> Result<Effects, Refused> {
        let labels = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
        self.tell(FleetEvent::HostLabelled { host: host(), labels, by: "ops".to_owned() })
    }

    fn address(&mut self, address: &str) -> Result<Effects, Refused> {
        self.tell(FleetEvent::HostAddressed { host: host(), address: address.to_owned(), by: "ops".to_owned() })
    }
}

fn notes(effects: &Effects) -> Vec<&str> {
    effects.notes.iter().map(|note| note.message.as_str()).collect()
}

#[test]
fn what_the_token_says_is_believed_and_what_the_agent_says_is_shown_once() {
    let mut story = Story::begin();
    story.introduce(introduction(Some("10.0.0.3"), &[("zone", "a")]));
    let told = story.greet("10.0.0.9", &[("zone", "secret"), ("tier", "gold")]);
    assert_eq!((story.believed().address, story.believed().labels), ("10.0.0.3".to_owned(), labels(&[("zone", "a")])));
    let claims = [
        "h1 says it is at 10.0.0.9; believed 10.0.0.3",
        "h1 says it is tier=gold; it has no such label",
        "h1 says it is zone=secret; believed a",
    ];
    assert_eq!(notes(&told)[1..], claims);
    assert_eq!(story.host().troubles(&host()).len(), 3);
    assert_eq!(notes(&story.greet("10.0.0.9", &[("zone", "secret"), ("tier", "gold")])), ["h1 connected"]);
    story.greet("10.0.0.3", &[]);
    assert_eq!(story.host().troubles(&host()), []);
}

#[test]
fn the_first_address_is_taken_where_nobody_says_one_and_a_later_one_waits_for_an_operator() {
    let mut story = Story::begin();
    story.enrol();
    assert_eq!(story.host().believed(), None, "it has told nothing");
    let told = story.greet("10.0.0.3", &[("zone", "a")]);
    assert!(notes(&told)[1].starts_with("h1 is believed to be at 10.0.0.3"), "{told:?}");
    assert_eq!((story.believed().address.as_str(), story.believed().labels), ("10.0.0.3", labels(&[])));
    story.greet("10.0.0.9", &[]);
    assert_eq!(story.believed().address, "10.0.0.3");
    story.address("10.0.0.9").expect("an operator");
    assert_eq!((story.believed().address.as_str(), story.host().claims()), ("10.0.0.9", Vec::new()));
    // Enrolling anew is no way to another address, nor to other labels.
    story.label(&[("zone", Some("b"))]).expect("an operator");
    story.enrol();
    story.greet("10.0.0.66", &[("zone", "secret")]);
    assert_eq!((story.believed().address.as_str(), story.believed().labels), ("10.0.0.9", labels(&[("zone", "b")])));
    story.introduce(introduction(Some("h1.example"), &[("zone", "c")]));
    assert_eq!((story.believed().address.as_str(), story.believed().labels), ("h1.example", labels(&[("zone", "c")])));
}

#[test]
fn an_agent_that_says_no_address_is_on_this_machine_and_one_that_says_nonsense_is_nowhere() {
    let mut story = Story::begin();
    story.enrol();
    story.greet("", &[]);
    assert_eq!((story.believed().address.as_str(), story.host().claims()), (ADDRESS_UNSAID, Vec::new()));
    let mut story = Story::begin();
    story.enrol();
    story.greet("10.0.0.3/\u{1b}]52;c;x@evil", &[]);
    assert_eq!(story.host().believed(), None);
    let claims = story.host().claims();
    assert_eq!(claims, ["says it is at 10.0.0.3/\\u{1b}]52;c;x@evil, which is no address"]);
    story.address("10.0.0.3").expect("an operator");
    assert_eq!(story.believed().address, "10.0.0.3");
}

#[test]
fn operators_change_labels_and_what_they_overruled_is_no_trouble_any_more() {
    let mut story = Story::begin();
    assert!(story.label(&[("a", Some("b"))]).expect_err("no host").to_string().contains("there is no host h1"));
    story.introduce(introduction(None, &[("zone", "a"), ("old", "x")]));
    story.greet("10.0.0.3", &[("zone", "a"), ("old", "x")]);
    let told = story.label(&[("zone", Some("b")), ("old", None)]).expect("an operator");
    assert_eq!(notes(&told), ["h1 was labelled old- zone=b by ops"]);
    assert_eq!((story.believed().labels, story.host().claims()), (labels(&[("zone", "b")]), Vec::new()));
    assert_eq!(story.label(&[("zone", Some("b"))]), Err(Refused::NoChange));
    story.greet("10.0.0.3", &[("zone", "secret")]);
    assert_eq!(story.host().claims(), ["says it is zone=secret; believed b"]);
    for (key, value) in [("", "x"), ("a b", "x"), ("a=b", "x"), ("a", "\u{1b}[2J")] {
        assert!(story.label(&[(key, Some(value))]).expect_err(key).to_string().contains("is no label"), "{key}");
    }
    assert!(story.label(&[("a", Some(&"x".repeat(LABEL_BYTES_MAX + 1)))]).is_err());
    let many: Vec<String> = (0..=LABELS_MAX).map(|n| format!("l{n}")).collect();
    let many: Vec<(&str, Option<&str>)> = many.iter().map(|key| (key.as_str(), Some("x"))).collect();
    assert!(story.label(&many).expect_err("many").to_string().contains("are too many"));
    for wrong in ["", "a b", "http://x", "1.2.3.4/x", "\u{7f}"] {
        assert!(story.address(wrong).expect_err(wrong).to_string().contains("is no address"), "{wrong}");
    }
}

#[test]
fn a_host_that_is_there_twice_is_told_of_once_an_hour_until_it_enrols_anew() {
    let mut story = Story::begin();
    story.enrol();
    story.greet("10.0.0.3", &[]);
    let twice = |newer: &str| {
        let addresses = ["10.0.0.3".parse().expect("address"), newer.parse().expect("address")];
        FleetEvent::HostSeenTwice { host: host(), addresses }
    };
    let told = story.tell(twice("10.9.9.9")).expect("it is news");
    assert!(notes(&told)[0].contains("connected from 10.0.0.3 and from 10.9.9.9 at once"), "{told:?}");
    assert_eq!(story.tell(twice("10.9.9.8")), Err(Refused::NoChange));
    let trouble = story.host().troubles(&host()).remove(0);
    assert!(trouble.hint.expect("a hint").contains("fleetwright hosts token h1"));
    story.now += i64::try_from(SEEN_TWICE_PAUSE.ms()).expect("small");
    story.tell(twice("10.9.9.8")).expect("an hour later");
    assert_eq!(story.host().seen_twice.as_ref().map(|seen| seen.times), Some(2));
    story.enrol();
    assert_eq!(story.host().troubles(&host()), []);
}

/// What a coordinator of before has written down, as events and as a snapshot.
#[test]
fn in_journals_of_before_what_a_host_told_is_believed() {
    let enrolled = r#"{"type":"host_enrolled","host":"h1","certificate_sha256":"aa"}"#;
    let connected = r#"{"type":"host_connected","host":"h1","view":{"address":"10.0.0.3","state_dir":"/state","labels":{"zone":"a"},"facts":null}}"#;
    let mut fleet = Fleet::new("f".parse().expect("name"));
    for line in [enrolled, connected] {
        fleet.apply(serde_json::from_str(line).expect("an event"), at(1)).expect("it was taken");
    }
    let kept = r#"{"certificate_sha256":"aa","view":{"address":"10.0.0.3","state_dir":"/state","labels":{"zone":"a"},"facts":null},"connected":true,"since":"1970-01-01T00:00:00.001Z"}"#;
    let kept: Host = serde_json::from_str(kept).expect("a host");
    assert_eq!(fleet.hosts()[&host()], kept);
    let claims =
        FleetEvent::HostConnected { host: host(), view: view("10.0.0.9", &[("zone", "secret")]), claimed: true };
    fleet.apply(claims, at(2)).expect("a greeting");
    let believed = fleet.hosts()[&host()].believed().expect("a view");
    assert_eq!((believed.address.as_str(), believed.labels), ("10.0.0.3", labels(&[("zone", "a")])));
    let again: Fleet = serde_json::from_str(&serde_json::to_string(&fleet).expect("JSON")).expect("a snapshot");
    assert_eq!(again, fleet);
}
