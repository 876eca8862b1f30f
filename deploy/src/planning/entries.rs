//! The servers of a manifest by number: what planning looks up for each of them, looked up once.

use hashbrown::HashMap;

use super::Configuration;
use crate::config::{ManifestServer, Problem, Server, Source};
use crate::ids::ServerName;

/// The entries of a manifest, each with the definition of its server.
pub(super) struct Entries<'a> {
    manifest: &'a Source,
    written: &'a [ManifestServer],
    numbers: HashMap<&'a ServerName, usize>,
    /// Those of servers that are defined, in the order of their names.
    by_name: Vec<usize>,
    definitions: Vec<Option<&'a (Source, Server)>>,
    /// Those whose server one before them lists.
    twice: Vec<usize>,
}

impl<'a> Entries<'a> {
    pub(super) fn of(configuration: &'a Configuration) -> Self {
        let (source, manifest) = &configuration.manifest;
        let written = manifest.servers.as_slice();
        let mut numbers = HashMap::with_capacity(written.len());
        for (number, entry) in written.iter().enumerate() {
            numbers.entry(&entry.server.value).or_insert(number);
        }
        let mut definitions = vec![None; written.len()];
        let mut by_name = Vec::with_capacity(written.len());
        for (server, definition) in &configuration.servers {
            if let Some(number) = numbers.get(server) {
                definitions[*number] = Some(definition);
                by_name.push(*number);
            }
        }
        // What is listed twice is defined once.
        let first = |number: usize| numbers[&written[number].server.value];
        let twice: Vec<usize> = (0..written.len()).filter(|number| first(*number) != *number).collect();
        twice.iter().for_each(|number| definitions[*number] = definitions[first(*number)]);
        Self { manifest: source, written, numbers, by_name, definitions, twice }
    }

    pub(super) fn len(&self) -> usize {
        self.written.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'a ManifestServer> + use<'a> {
        self.written.iter()
    }

    /// The numbers of those that are defined, in the order of the names of their servers.
    pub(super) fn by_name(&self) -> impl Iterator<Item = usize> {
        self.by_name.iter().copied()
    }

    pub(super) fn entry(&self, number: usize) -> &'a ManifestServer {
        &self.written[number]
    }

    pub(super) fn name(&self, number: usize) -> &'a ServerName {
        &self.written[number].server.value
    }

    pub(super) fn number(&self, server: &ServerName) -> Option<usize> {
        self.numbers.get(server).copied()
    }

    /// The entries that list a server which one before them lists.
    pub(super) fn listed_twice(&self) -> impl Iterator<Item = &'a ManifestServer> {
        self.twice.iter().map(|number| &self.written[*number])
    }

    /// The definition of an entry's server, where there is one.
    pub(super) fn defined(&self, number: usize) -> Option<&'a (Source, Server)> {
        self.definitions[number]
    }

    /// The definition of an entry's server, or the problem that there is none.
    pub(super) fn definition(&self, number: usize) -> Result<&'a (Source, Server), Problem> {
        self.definitions[number].ok_or_else(|| {
            let server = &self.written[number].server;
            let problem = Problem::at(self.manifest, server, format!("server `{}` is not defined", server.value));
            problem.hint(format!("define it in config/servers/{}.yaml", server.value))
        })
    }
}
