//! The operator's key, which signs intents. Commands read it, and programs that embed an operator; the coordinator holds
//! its public half alone, and nothing that runs in it makes a value of this type.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use fleetwright_certs::{Signer, store};
use fleetwright_deploy::admission::{INTENT_LIFETIME_MAX, Purpose};
use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::{DeploymentId, FleetName, Generation, HostName, InstanceId};
use fleetwright_deploy::plan::{Plan, StepAction};
use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::command::{INTENT_PURPOSE, IntentV2};
use fleetwright_protocol::frame::encode;
use fleetwright_protocol::{Envelope, FrameError, Intent};

use crate::state_dir::StateDir;

/// The operator's key.
pub struct OperatorKey(Signer);

impl OperatorKey {
    /// A new key.
    pub fn generate() -> Result<Self> {
        Ok(Self(Signer::generate(INTENT_PURPOSE)?))
    }

    /// The key in a PEM text.
    pub fn from_pem(pem: &str) -> Result<Self> {
        Ok(Self(Signer::from_pem(pem, INTENT_PURPOSE)?))
    }

    /// The key as a PEM text, for whoever keeps it.
    pub fn to_pem(&self) -> Result<String> {
        Ok(self.0.to_pem()?)
    }

    /// Its public half as a PEM text: what coordinators and hosts know.
    pub fn public_pem(&self) -> Result<String> {
        Ok(self.0.public_pem()?)
    }

    /// Reads the key from a file.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let pem = store::read(file)?;
        Self::from_pem(&pem).with_context(|| format!("{} holds no operator's key", file.display()))
    }

    /// Makes a key in a new file.
    pub(crate) fn create(file: &Path) -> Result<Self> {
        let key = Self::generate()?;
        let fail = || format!("{} cannot be written", file.display());
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(fail)?;
        }
        let mut made = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("{} is there already\n  hint: a key is never written over; name another file", file.display());
            }
            other => other.with_context(fail)?,
        };
        made.write_all(key.to_pem()?.as_bytes()).and_then(|()| made.sync_all()).with_context(fail)?;
        Ok(key)
    }

    /// Writes the public half into a state folder, of the key that lies there; makes that first where it is asked for.
    pub(crate) fn export(state_dir: &StateDir, create: bool) -> Result<()> {
        let file = state_dir.operator_key_file();
        let key = if create && !file.exists() {
            state_dir.make_folder()?;
            Self::create(&file)?
        } else {
            Self::read(&file)?
        };
        state_dir.save_operator_public(&key.public_pem()?)
    }

    /// What an operator signs to undo what a deployment did to some instances, or to all of them when none are named: for
    /// their hosts, and for no other.
    pub(crate) fn sign_rollback(
        &self,
        fleet: &FleetName,
        deployment: &DeploymentId,
        plan: &Plan,
        (only, generation): (&BTreeSet<InstanceId>, Generation),
        now: Timestamp,
    ) -> Result<BTreeMap<HostName, String>, FrameError> {
        let mut intents = self.sign(fleet, deployment, plan, (Purpose::RollBack, generation), now)?;
        intents.retain(|host, _| concerns(only, host));
        Ok(intents)
    }

    /// What an operator signs for a plan: for each host, which servers may run which release, to what purpose, and by
    /// when the host must have heard of it.
    pub(crate) fn sign(
        &self,
        fleet: &FleetName,
        deployment: &DeploymentId,
        plan: &Plan,
        (purpose, generation): (Purpose, Generation),
        now: Timestamp,
    ) -> Result<BTreeMap<HostName, String>, FrameError> {
        let plan_id = plan.id();
        let begin_by = now.after(plan.begin_within(purpose));
        let signed = plan.per_host().into_iter().map(|(host, servers)| {
            let intent = IntentV2 {
                fleet: fleet.clone(),
                host: host.clone(),
                deployment: deployment.clone(),
                purpose,
                plan: plan_id.clone(),
                generation,
                begin_by,
                not_after: now.after(INTENT_LIFETIME_MAX),
                servers,
            };
            let envelope = Envelope::seal(&Intent::V2(intent), &self.0)?;
            Ok((host, hex::encode(encode(&envelope, usize::MAX)?)))
        });
        signed.collect()
    }
}

/// Whether undoing these instances, or all of them when none are named, concerns a host.
pub(crate) fn concerns(only: &BTreeSet<InstanceId>, host: &HostName) -> bool {
    only.is_empty() || only.iter().any(|instance| instance.host == *host)
}

/// Whether a plan that a coordinator has told is the one that its deployment is named after: nobody signs another.
pub(crate) fn check_told(deployment: &DeploymentId, plan: &Plan) -> Result<(), Failure> {
    if DeploymentId::new(plan.parent.next(), &plan.id()) == *deployment {
        return Ok(());
    }
    let message = format!("the coordinator told another plan for {deployment} than the one it is named after");
    Err(Failure::new(FailureKind::PermissionError, "intent", message).hint("look at the coordinator's machine"))
}

/// Whether hosts can check every secret that a plan gets them.
pub(crate) fn check_secrets(plan: &Plan) -> Result<(), Failure> {
    for (_, step) in plan.changes().filter(|(_, step)| step.action != StepAction::Remove) {
        let secrets = step.release.iter().flat_map(|release| &release.secrets);
        if let Some((name, _)) = secrets.into_iter().find(|(_, secret)| !secret.is_bound()) {
            let message = format!("the plan holds no digest of the secret `{name}` that its host could check");
            let failure = Failure::new(FailureKind::ConfigurationError, "intent", message)
                .at(&step.instance.host, &step.instance.server);
            return Err(failure.hint("plan again, with a coordinator that answers"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_key_is_made_for_its_owner_alone_and_never_in_the_place_of_anything() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("keys/operator.key");
        let made = OperatorKey::create(&file).expect("made");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let refused = OperatorKey::create(&file).err().expect("refused").to_string();
        assert!(
            refused.contains("is there already") && refused.contains("hint: a key is never written over"),
            "{refused}"
        );
        let kept = OperatorKey::read(&file).expect("a key");
        assert_eq!(kept.public_pem().expect("a half"), made.public_pem().expect("a half"));
        let (link, elsewhere) = (folder.path().join("link"), folder.path().join("elsewhere"));
        symlink(&elsewhere, &link).expect("link");
        assert!(
            OperatorKey::create(&link).is_err() && !elsewhere.exists(),
            "a link that leads to nothing is something"
        );
    }
}
