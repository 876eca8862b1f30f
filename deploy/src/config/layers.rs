//! Definitions in layers: what a definition's own file says, and over it what environments say of it, for all hosts and
//! for single ones.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{DEFINITION_BYTES_MAX, Environment, Problem, Problems, Server, Source, StandardChecks, parse};
use crate::host::FactName;
use crate::ids::{HostName, ServerName};

/// Lists whose items are told apart by a field, and matched by it; all other lists are replaced whole.
const NAMED_LISTS: [(&str, &str); 3] = [("health_checks", "name"), ("files", "path"), ("integration_tests", "tool")];

/// A part of a definition, and the file that says it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The path of the file.
    pub origin: String,
    /// What it says.
    pub value: Value,
}

/// What an environment may take from one that it extends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// A variable, by its name.
    Variable,
    /// A secret, by its name.
    Secret,
    /// Memory or processor time that may be given away.
    Capacity,
    /// A rule of the operators' own, by its id; or one of the lists among the rules.
    Rule,
}

/// A definition as it counts, and where each of its values comes from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The text of the definition: of its own file, or, with layers over it, made of all of them.
    pub source: Source,
    /// The definition.
    pub server: Server,
    /// Which file says what, by path of the value, such as `run.port`.
    pub origins: BTreeMap<String, String>,
}

impl Server {
    /// Reads a definition with layers over it, the last of which counts most.
    pub fn resolve(source: &Source, layers: &[Layer], standard: Option<&StandardChecks>) -> Result<Resolved, Problems> {
        let server = Self::parse_with(source, standard)?;
        let mut value: Value = parse(source, DEFINITION_BYTES_MAX)?;
        let mut origins = BTreeMap::new();
        note("", &value, &source.path, &mut origins);
        if layers.is_empty() {
            return Ok(Resolved { source: source.clone(), server, origins });
        }
        for layer in layers {
            overlay("", &mut value, &layer.value, &layer.origin, &mut origins);
        }
        let text = serde_saphyr::to_string(&value)
            .map_err(|error| Problem::in_file(source, format!("cannot be written with what is over it: {error}")))?;
        let over: Vec<&str> = layers.iter().map(|layer| layer.origin.as_str()).collect();
        let source = Source { path: format!("{} with {}", source.path, over.join(", ")), text };
        let resolved = Self::written(&source, standard)?;
        if resolved.name.value != server.name.value {
            let problem = Problem::in_file(&source, "a layer gives the server another name");
            return Err(problem.hint("the name is what the definition is found by: leave it out").into());
        }
        Ok(Resolved { source, server: resolved, origins })
    }
}

impl Environment {
    /// What this environment, in the file of this path, says of a server: for all hosts, or for one alone.
    pub fn layer_of(&self, path: &str, server: &ServerName, host: Option<&HostName>) -> Option<Layer> {
        let written = match host {
            None => self.servers.get(server)?,
            Some(host) => self.hosts.get(host)?.servers.get(server)?,
        };
        Some(Layer { origin: path.to_owned(), value: written.value.clone() })
    }

    /// This environment with all that it does not say itself taken from the one that it extends.
    pub fn extend(mut self, base: Self, base_source: &Source) -> Self {
        let mut inherit = |field: Field, name: &str| {
            let origin = base.inherited.get(&field).and_then(|of| of.get(name)).unwrap_or(base_source).clone();
            self.inherited.entry(field).or_default().insert(name.to_owned(), origin);
        };
        for (name, value) in base.variables {
            self.variables.entry(name).or_insert_with_key(|name| {
                inherit(Field::Variable, name);
                value
            });
        }
        for (name, secret) in base.secrets {
            self.secrets.entry(name).or_insert_with_key(|name| {
                inherit(Field::Secret, name);
                secret
            });
        }
        for id in base.rules.custom.keys().filter(|id| !self.rules.custom.contains_key(*id)) {
            inherit(Field::Rule, id);
        }
        if self.rules.warn.is_none() && base.rules.warn.is_some() {
            inherit(Field::Rule, "warn");
        }
        if self.rules.overridable.is_none() && base.rules.overridable.is_some() {
            inherit(Field::Rule, "overridable");
        }
        self.rules = self.rules.or(base.rules);
        for (name, own, of_base) in
            [("memory", &self.capacity.memory, &base.capacity.memory), ("cpu", &self.capacity.cpu, &base.capacity.cpu)]
        {
            if own.is_none() && of_base.is_some() {
                inherit(Field::Capacity, name);
            }
        }
        self.capacity = self.capacity.or(base.capacity);
        self.trusted_facts = self.trusted_facts.or(base.trusted_facts);
        self.rollout = self.rollout.or(base.rollout);
        self.rollback = self.rollback.or(base.rollback);
        self
    }

    /// Whether what agents tell of this may decide where servers go.
    pub fn trusts(&self, fact: FactName) -> bool {
        self.trusted_facts.as_ref().is_none_or(|trusted| trusted.contains(&fact))
    }

    /// The file in which something of this environment is written.
    pub fn source_of<'a>(&'a self, own: &'a Source, field: Field, name: &str) -> &'a Source {
        self.inherited.get(&field).and_then(|of| of.get(name)).unwrap_or(own)
    }
}

/// Puts one value over another: mappings field by field, named lists item by item, everything else whole; `null` takes a
/// field away.
fn overlay(path: &str, under: &mut Value, over: &Value, origin: &str, origins: &mut BTreeMap<String, String>) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                let at = joined(path, key);
                if value.is_null() {
                    under.remove(key);
                    forget(&at, origins);
                    continue;
                }
                overlay(&at, under.entry(key.clone()).or_insert(Value::Null), value, origin, origins);
            }
        }
        (Value::Array(under), Value::Array(over)) if key_of(path).is_some() => {
            let key = key_of(path).unwrap_or_default();
            for item in over {
                let name = name_of(item, key);
                let at = joined(path, name);
                match under.iter_mut().find(|known| name_of(known, key) == name) {
                    Some(known) => overlay(&at, known, item, origin, origins),
                    None => {
                        note(&at, item, origin, origins);
                        under.push(item.clone());
                    }
                }
            }
        }
        (under, over) => {
            forget(path, origins);
            *under = without_nulls(over.clone());
            note(path, under, origin, origins);
        }
    }
}

/// The field by which the items of a list are told apart.
fn key_of(path: &str) -> Option<&'static str> {
    NAMED_LISTS.iter().find(|(list, _)| *list == path).map(|(_, key)| *key)
}

/// What an item is told apart by; a standard check without a name of its own has that of what it uses.
fn name_of<'a>(item: &'a Value, key: &str) -> &'a str {
    let standard = || item.get("use").filter(|_| key == "name");
    item.get(key).or_else(standard).and_then(Value::as_str).unwrap_or_default()
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect::<Map<_, _>>())
        }
        other => other,
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Notes that everything in a value comes from one file.
fn note(path: &str, value: &Value, origin: &str, origins: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(key, value)| note(&joined(path, key), value, origin, origins));
        }
        Value::Array(items) if key_of(path).is_some() && !items.is_empty() => {
            let key = key_of(path).unwrap_or_default();
            for item in items {
                note(&joined(path, name_of(item, key)), item, origin, origins);
            }
        }
        _ => drop(origins.insert(path.to_owned(), origin.to_owned())),
    }
}

fn forget(path: &str, origins: &mut BTreeMap<String, String>) {
    let below = format!("{path}.");
    origins.retain(|known, _| known != path && !known.starts_with(&below));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DEFINITION: &str = "apiVersion: fleetwright/v1\nname: time\nrun:\n  command: [serve]\n  port: 8801\n  environment: { A: one, B: two }\n\
                              health_checks:\n  - { name: port, type: tcp, interval: 5s }\n";

    fn source() -> Source {
        Source { path: "servers/time.yaml".to_owned(), text: DEFINITION.to_owned() }
    }

    fn layer(origin: &str, value: Value) -> Layer {
        Layer { origin: origin.to_owned(), value }
    }

    #[test]
    fn layers_change_fields_and_named_items_and_the_last_one_counts() {
        let layers = [
            layer("base.yaml", json!({ "run": { "port": 9000, "environment": { "A": "base", "C": "base" } } })),
            layer(
                "prod.yaml",
                json!({
                    "run": { "port": 9001, "command": ["serve", "--fast"], "environment": { "B": null } },
                    "health_checks": [{ "name": "port", "interval": "1s" }, { "name": "more", "type": "tcp" }],
                }),
            ),
        ];
        let resolved = Server::resolve(&source(), &layers, None).expect("it resolves");
        let run = &resolved.server.run;
        assert_eq!(run.port.as_ref().map(|port| port.value), Some(9001));
        let environment: Vec<(&str, &str)> =
            run.environment.iter().map(|(name, value)| (name.as_str(), value.value.as_str())).collect();
        assert_eq!(environment, [("A", "base"), ("C", "base")]);
        assert_eq!(run.command.len(), 2);
        let checks: Vec<&str> = resolved.server.checks.iter().map(|check| check.value.name.as_str()).collect();
        assert_eq!(checks, ["port", "more"]);
        let from = |path: &str| resolved.origins.get(path).map(String::as_str);
        assert_eq!(from("run.port"), Some("prod.yaml"));
        assert_eq!((from("run.environment.A"), from("run.environment.B")), (Some("base.yaml"), None));
        assert_eq!(from("health_checks.port.type"), Some("servers/time.yaml"));
        assert_eq!(from("health_checks.port.interval"), Some("prod.yaml"));
        assert_eq!(resolved.source.path, "servers/time.yaml with base.yaml, prod.yaml");
    }

    #[test]
    fn resolving_what_is_resolved_changes_nothing() {
        let layers = [layer("prod.yaml", json!({ "run": { "port": 9001 }, "resources": { "memory": "1GiB" } }))];
        let once = Server::resolve(&source(), &layers, None).expect("it resolves");
        let again = Source { path: "servers/time.yaml".to_owned(), text: once.source.text.clone() };
        let twice = Server::resolve(&again, &layers, None).expect("it resolves");
        assert_eq!(once.source.text, twice.source.text);
    }

    #[test]
    fn what_a_layer_says_wrongly_is_told_with_its_file() {
        let told = |value: Value| {
            let problems = Server::resolve(&source(), &[layer("prod.yaml", value)], None).expect_err("a problem");
            problems.to_string()
        };
        let unknown = told(json!({ "run": { "prot": 1 } }));
        assert!(unknown.contains("time.yaml with prod.yaml:") && unknown.contains("prot"), "{unknown}");
        assert!(told(json!({ "name": "other" })).contains("another name"));
        assert!(told(json!({ "run": { "port": "many" } })).contains("prod.yaml"));
    }

    /// What a layer may say: some fields, of which some are taken away.
    fn any_layer() -> impl Strategy<Value = Value> {
        let port = prop::option::of((1_u16..9_000).prop_map(Value::from));
        let variable = prop::option::of("[a-z: #'{}-]{0,8}").prop_map(Value::from);
        let environment = prop::collection::btree_map("[A-C]", variable, 0..3);
        let interval = prop::sample::select(vec!["1s", "250ms", "1h30m"]);
        let checks = prop::collection::btree_map("[a-c]", interval, 0..3);
        (port, environment, checks, any::<bool>()).prop_map(|(port, environment, checks, limited)| {
            let checks = checks.into_iter().map(|(name, interval)| {
                json!({ "name": name, "type": "tcp", "config": { "address": "h:1" }, "interval": interval })
            });
            let checks: Vec<Value> = checks.collect();
            let mut layer = json!({ "run": { "environment": environment }, "health_checks": checks });
            if let Some(port) = port {
                layer["run"]["port"] = port;
            }
            if limited {
                layer["resources"] = json!({ "memory": "1GiB" });
            }
            layer
        })
    }

    proptest! {
        #[test]
        fn resolving_again_with_the_same_layers_changes_nothing(layers in prop::collection::vec(any_layer(), 0..4)) {
            let layers: Vec<Layer> = layers.into_iter().map(|value| layer("e.yaml", value)).collect();
            let once = Server::resolve(&source(), &layers, None).expect("it resolves");
            let again = Source { path: "servers/time.yaml".to_owned(), text: once.source.text.clone() };
            let twice = Server::resolve(&again, &layers, None).expect("it resolves");
            prop_assert_eq!(&once.source.text, &twice.source.text);
            let alone = Server::resolve(&again, &[], None).expect("it resolves");
            prop_assert_eq!(format!("{:?}", once.server.run.environment.keys()), format!("{:?}", alone.server.run.environment.keys()));
        }
    }
}
