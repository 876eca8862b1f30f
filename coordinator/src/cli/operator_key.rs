//! `fleetwright operator-key`

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use super::{Context, exit};
use crate::operator_key::OperatorKey;
use crate::state_dir::{STATE_DIR_NAME, StateDir};

/// The operator's key, which signs what hosts may run: makes one, or tells a coordinator of its public half.
#[derive(Subcommand)]
pub(crate) enum OperatorKeyCommand {
    /// Makes a key in a new file, and its public half beside it in FILE.pub.
    ///
    /// `fleetwright coordinator --operator-public FILE.pub` makes a fleet that does what is signed with it; the key itself
    /// never lies on the coordinator's machine then.
    Create {
        /// The file. Keep it where the operator works; whoever has it decides what the fleet runs.
        file: PathBuf,
    },
    /// Writes the public half of the operator's key into the state folder, as `operator.pub`.
    ///
    /// The coordinator needs only that. Fleets that were made by versions before have none.
    Export {
        /// Do nothing where it is there already, or where there is no fleet.
        #[arg(long)]
        if_missing: bool,
        /// Make a key where there is none.
        #[arg(long)]
        create: bool,
    },
}

pub(super) fn operator_key(command: OperatorKeyCommand, context: &Context) -> Result<u8> {
    match command {
        OperatorKeyCommand::Create { file } => {
            let mut public = file.clone().into_os_string();
            public.push(".pub");
            let public = PathBuf::from(public);
            if public.exists() {
                bail!("{} is there already\n  hint: a key is never written over; name another file", public.display());
            }
            let key = OperatorKey::create(&file)?;
            let pem = key.public_pem()?;
            File::create_new(&public)
                .and_then(|mut made| made.write_all(pem.as_bytes()))
                .with_context(|| format!("{} cannot be written", public.display()))?;
            context.ui.say(&format!("made {} and {}", file.display(), public.display()));
        }
        OperatorKeyCommand::Export { if_missing, create } => {
            let state_dir = match context.state_dir()? {
                Some(found) => found,
                None => StateDir::new(std::path::Path::new(STATE_DIR_NAME))?,
            };
            if !(if_missing && (state_dir.has_operator_public() || !state_dir.exists())) {
                if create {
                    OperatorKey::export(&state_dir, create)?;
                } else {
                    state_dir.save_operator_public(&context.operator_key()?.public_pem()?)?;
                }
            }
        }
    }
    Ok(exit::DONE)
}
