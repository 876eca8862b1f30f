//! The rules of an environment, as they are written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::text::Text;

/// What a manifest must satisfy in an environment.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Every server has at least one critical health check.
    #[serde(default)]
    pub critical_check: Option<bool>,
    /// A failure puts everything back.
    #[serde(default)]
    pub rollback: Option<bool>,
    /// A canary goes first.
    #[serde(default)]
    pub canary: Option<bool>,
    /// Somebody approves before anything is switched.
    #[serde(default)]
    pub approval: Option<bool>,
    /// Every package of a registry has a lock.
    #[serde(default)]
    pub locked: Option<bool>,
    /// Every server has limits for memory and processor time.
    #[serde(default)]
    pub resource_limits: Option<bool>,
    /// No secret has a stand-in.
    #[serde(default)]
    pub real_secrets: Option<bool>,
    /// No value that looks like a secret is written in a definition or among the variables.
    #[serde(default)]
    pub no_inline_secrets: Option<bool>,
    /// The largest `max_unavailable`.
    #[serde(default)]
    pub max_unavailable_max: Option<u32>,
    /// The largest `max_parallel`.
    #[serde(default)]
    pub max_parallel_max: Option<u32>,
    /// Where packages may come from: `pypi`, `npm`, `archive`, `file`, `oci`.
    #[serde(default)]
    pub package_sources: Option<Vec<String>>,
    /// Which of the rules above only warn.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Text>>")]
    pub warn: Option<Vec<Spanned<String>>>,
    /// Which rules an operator may set aside with a reason.
    #[serde(default)]
    #[schemars(with = "Option<Vec<Text>>")]
    pub overridable: Option<Vec<Spanned<String>>>,
    /// Rules of the operators' own, by their ids.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RuleWritten>")]
    pub custom: BTreeMap<String, Spanned<RuleWritten>>,
}

/// The ids of the rules that come with Fleetwright.
pub const BUILT_IN_RULES: [&str; 11] = [
    "critical_check",
    "rollback",
    "canary",
    "approval",
    "locked",
    "resource_limits",
    "real_secrets",
    "no_inline_secrets",
    "max_unavailable_max",
    "max_parallel_max",
    "package_sources",
];

/// A rule of the operators' own.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleWritten {
    /// What it is checked for.
    #[serde(default, rename = "for")]
    pub scope: RuleScope,
    /// A CEL expression that is true where the rule holds.
    #[schemars(with = "Text")]
    pub check: Spanned<String>,
    /// What is wrong where it does not hold.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
    /// What a broken rule does.
    #[serde(default)]
    pub severity: RuleSeverity,
}

/// What a rule is checked for, once each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleScope {
    /// The manifest as a whole.
    Manifest,
    /// Every server of the manifest.
    #[default]
    Server,
    /// Every instance, as it is rendered.
    Instance,
}

/// What a broken rule does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleSeverity {
    /// It stops the plan.
    #[default]
    Deny,
    /// It is told.
    Warn,
}

impl Rules {
    /// These rules, with those that they do not speak of taken from others.
    pub fn or(self, mut base: Self) -> Self {
        base.custom.extend(self.custom);
        Self {
            critical_check: self.critical_check.or(base.critical_check),
            rollback: self.rollback.or(base.rollback),
            canary: self.canary.or(base.canary),
            approval: self.approval.or(base.approval),
            locked: self.locked.or(base.locked),
            resource_limits: self.resource_limits.or(base.resource_limits),
            real_secrets: self.real_secrets.or(base.real_secrets),
            no_inline_secrets: self.no_inline_secrets.or(base.no_inline_secrets),
            max_unavailable_max: self.max_unavailable_max.or(base.max_unavailable_max),
            max_parallel_max: self.max_parallel_max.or(base.max_parallel_max),
            package_sources: self.package_sources.or(base.package_sources),
            warn: self.warn.or(base.warn),
            overridable: self.overridable.or(base.overridable),
            custom: base.custom,
        }
    }
}
