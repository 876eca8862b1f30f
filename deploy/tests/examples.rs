//! The definitions that the guide shows are definitions.

use fleetwright_deploy::config::{Server, Source};
use fleetwright_deploy::planning::{Files, Needs, check_alone};

const GUIDE: &str = include_str!("../../docs/configuration.md");

#[test]
fn the_servers_that_the_guide_shows_can_be_planned() {
    let (_, part) = GUIDE.split_once("## Four servers to start from").expect("the part");
    let (part, _) = part.split_once("\n## ").expect("its end");
    let texts: Vec<&str> = part.split("```yaml\n").skip(1).filter_map(|text| text.split("```").next()).collect();
    assert_eq!(texts.len(), 4);
    for text in texts {
        let name = text.lines().find_map(|line| line.strip_prefix("name: ")).expect("a name");
        let source = Source { path: format!("{name}.yaml"), text: text.to_owned() };
        let server = Server::parse(&source).expect(name);
        let needs = Needs::named_in(text).expect("names");
        check_alone(&source, &server, &needs, &Files::default()).expect(name);
    }
}
