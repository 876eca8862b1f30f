//! What the templates of a release see.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};

use serde_json::json;
use tera::{Context, Value};

use crate::config::{Environment, Server};
use crate::host::HostView;
use crate::ids::{HostName, ManifestName};

/// What a release is of.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) manifest: &'a ManifestName,
    pub(super) environment: &'a Environment,
    pub(super) server: &'a Server,
    pub(super) host: &'a HostName,
    pub(super) view: &'a HostView,
}

/// What is the same for many releases, made once.
#[derive(Default)]
pub(super) struct Kept<'a> {
    variables: OnceCell<Value>,
    deployment: OnceCell<Value>,
    hosts: RefCell<HashMap<&'a HostName, Value>>,
}

impl<'a> Kept<'a> {
    /// The context of a subject. `variables` are those of the environment where they are templates themselves, rendered.
    pub(super) fn context(&self, subject: Subject<'a>, variables: Option<&BTreeMap<&'a str, String>>) -> Context {
        let Subject { manifest, environment, server, host, view } = subject;
        let mut context = Context::new();
        match variables {
            Some(variables) => context.insert("env", variables),
            None => context.insert_value("env", self.variables.get_or_init(|| as_written(environment)).clone()),
        }
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.entry(host).or_insert_with(|| about_host(host, view)).clone();
        context.insert_value("host", host);
        context.insert("server", &about_server(server, view));
        let deployment =
            || Value::from_serializable(&json!({ "manifest": manifest, "environment": environment.name.value }));
        context.insert_value("deployment", self.deployment.get_or_init(deployment).clone());
        context
    }
}

fn as_written(environment: &Environment) -> Value {
    let variables: BTreeMap<&String, &String> =
        environment.variables.iter().map(|(name, written)| (name, &written.value)).collect();
    Value::from_serializable(&variables)
}

fn about_host(host: &HostName, view: &HostView) -> Value {
    let HostView { address, labels, state_dir, .. } = view;
    Value::from_serializable(&json!({ "name": host, "address": address, "labels": labels, "state_dir": state_dir }))
}

fn about_server(server: &Server, view: &HostView) -> serde_json::Value {
    let name = &server.name.value;
    let folder = format!("{}/servers/{name}", view.state_dir);
    json!({
        "name": name,
        "port": server.run.port.as_ref().map(|port| port.value),
        "version": server.package.as_ref().map(|package| package.value.version.value.clone()),
        "data_dir": format!("{folder}/data"),
        "config_dir": format!("{folder}/current/config"),
        "app_dir": format!("{folder}/current/app"),
    })
}
