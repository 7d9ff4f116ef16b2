//! Restores that would get into each other's way: of the same plan, or with a target in common.
//!
//! A restore first writes to its own journal that somebody is at it, then looks at the journals of all others: of two that
//! begin at the same moment, at least one sees the other and gives way (perhaps both, on different machines; they begin
//! again). Whoever is at a restore writes at least every half minute. One that wrote nothing for longer than
//! [`LEASE`], by the store's clock, or that a person says is dead, is displaced: a record in its journal takes the number
//! of its next one, so that it stops there if it lives after all. On this machine locks say who lives, at once.
//!
//! Deliberately absent: what a bucket cannot give. Between two machines of which one cannot reach the repository nothing is
//! excluded, and one that is displaced while it lives works on until its next record.

use super::kept;
use crate::cli::fault::{Failure, Fault, chain};
use crate::cli::output::clock;
use crate::policy::duration::Shown;
use crate::repo::{Journals, Written};
use crate::restore::plan::between;
use crate::restore::plan::execute::LEASE;
use crate::restore::plan::journal::{Event, History, Record};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::time::Duration;
use tokio::time::timeout;

/// Another restore of this machine looks around for no longer.
const TURN: Duration = Duration::from_mins(1);
/// The repository is asked for the others for no longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was silent for so long does not wake up any more.
const FORGOTTEN: Duration = Duration::from_hours(24);

/// Somebody is at it, or at another restore that would get into its way.
#[derive(Debug, thiserror::Error)]
#[error("restore {id} is being carried out {place}{}", in_common.as_ref().map(|what| format!(", and concerns {what} too")).unwrap_or_default())]
pub struct Busy {
    pub id: String,
    pub place: Where,
    pub in_common: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub enum Where {
    Here,
    /// Elsewhere, and so long ago it was heard of.
    There {
        ago: Duration,
    },
}

impl std::fmt::Display for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("by another process of this machine"),
            Self::There { ago } => write!(f, "on another machine, last heard of {} ago", Shown(*ago)),
        }
    }
}

impl Busy {
    pub fn hint(&self) -> String {
        match self.place {
            Where::Here => "let it end, or end that process; nothing was changed".into(),
            Where::There { ago } => format!(
                "let it end; if its machine is gone, add --dead {}, or wait {} until it is taken for dead; nothing was changed",
                self.id,
                Shown(LEASE.saturating_sub(ago))
            ),
        }
    }
}

/// While it is held, no other restore of this machine begins.
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Blocks.
    pub fn take() -> Result<Self, Failure> {
        let directory = kept::directory()?;
        std::fs::create_dir_all(&directory).map_err(Fault::file("create", &directory))?;
        let path = directory.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Fault::file("open", &path))?;
        if !kept::lock(&file, TURN) {
            let message = format!("another restore of this machine holds {}", path.display());
            return Err(Fault::usage(message, "look what it waits for, then try again").into());
        }
        Ok(Self { _file: file })
    }

    /// Sees to it that nobody else is at what the restore `id` is about to change; its own journal says that it is at work.
    /// `dead`: those that a person says are not at work any more.
    ///
    /// # Errors
    /// [`Busy`]: somebody is.
    pub async fn exclude(
        self,
        id: &str,
        own: &History,
        journals: Option<&Journals>,
        dead: &[String],
    ) -> Result<(), Failure> {
        let far = match journals {
            Some(journals) => list(journals).await,
            None => BTreeMap::new(),
        };
        let near = kept::here();
        let all: BTreeSet<&String> = near.iter().chain(far.keys()).filter(|other| *other != id).collect();
        for other in all {
            let silent = far.get(id).zip(far.get(other)).map(|(now, then)| between(*then, *now));
            let here = kept::is_at_work(other);
            if !here && silent.is_none_or(|silent| silent > FORGOTTEN) {
                continue;
            }
            let (history, wrote_last) = match kept::look(other, journals).await {
                Ok(found) => found,
                Err(why) => {
                    let error = why.as_ref() as &dyn std::error::Error;
                    tracing::warn!(id = other, error, "a journal cannot be read: see that nobody is at that restore");
                    continue;
                }
            };
            let Some(in_common) = own.in_common(&history).filter(|_| history.at_work) else { continue };
            let busy = |place| Busy { id: other.clone(), place, in_common: Some(in_common.clone()) };
            if here {
                return Err(busy(Where::Here).into());
            }
            // Nobody here is at it, and nobody elsewhere went on with it: it was killed.
            let Some(ago) = silent.filter(|_| !wrote_last) else { continue };
            if ago < LEASE && !dead.contains(other) {
                return Err(busy(Where::There { ago }).into());
            }
            if let Some(journals) = journals
                && !displace(journals, other, &history, id).await?
            {
                return Err(busy(Where::There { ago: Duration::ZERO }).into());
            }
        }
        Ok(())
    }
}

async fn list(journals: &Journals) -> BTreeMap<String, Timestamp> {
    let why = match timeout(PATIENCE, journals.list()).await {
        Ok(Ok(found)) => return found,
        Ok(Err(error)) => chain(&error).join(": "),
        Err(_) => "no answer".into(),
    };
    tracing::warn!(error = why, "it is not known whether another machine is at the same: see that nobody is");
    BTreeMap::new()
}

/// False: it wrote a record in the meantime, and lives.
async fn displace(journals: &Journals, other: &str, history: &History, by: &str) -> Result<bool, Failure> {
    let record = Record { number: history.next, at: clock(), event: Event::Displaced { by: by.to_owned() } };
    let written = journals.write(other, record.number, &serde_json::to_vec(&record)?).await?;
    if written == Written::Done {
        tracing::warn!(id = other, "that restore is taken to be dead, and stops if it is not");
    }
    Ok(written == Written::Done)
}
