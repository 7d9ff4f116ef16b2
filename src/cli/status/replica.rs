//! How far the replicas are that schedules ask for: the newest recovery point that they have of what is here, against the one
//! here.

use crate::cli::context::{Context, Opened, Use};
use crate::cli::fault::{Failure, chain};
use crate::id::{Sequence, SourceName};
use crate::policy::Tier;
use crate::policy::duration::Shown;
use crate::repo::{Access, RepoError, Snapshot};
use crate::restore::plan::between;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// What is known of one source at one replica.
pub struct Copied {
    to: String,
    /// The newest there that is from here and counts, and how far its recovery point is behind the one here.
    newest: Option<(Sequence, Timestamp, Duration)>,
    /// There is nothing here that could be copied.
    nothing_here: bool,
    /// One that is there and not here: it was removed here, or written there.
    only_there: Option<Sequence>,
    /// One that is another here: both places were written to.
    parted: Option<Sequence>,
    /// Why it is not known how far it is.
    unknown: Option<String>,
}

impl Copied {
    /// Whether a tier's recovery point objective would be met, had the first place gone away just after the newest snapshot.
    pub fn keeps(&self, tier: Option<Tier>) -> bool {
        match (&self.unknown, self.newest, tier) {
            (Some(_), ..) => false,
            (None, Some((.., lag)), Some(tier)) => lag <= tier.rpo(),
            (None, Some(_), None) => true,
            (None, None, _) => self.nothing_here,
        }
    }

    /// Whether something is there that is not from here.
    pub fn has_its_own(&self) -> bool {
        self.only_there.is_some() || self.parted.is_some()
    }

    pub fn warning(&self) -> Option<String> {
        if let Some(why) = &self.unknown {
            return Some(format!("it is not known how far the replica {} is: {why}", self.to));
        }
        if let Some(own) = self.parted {
            return Some(format!(
                "the replica {} has another snapshot {own} than this repository: both were written to, so it is no copy of what is \
                 newest here; keep both, and see docs/runbook.md, \"Back again\"",
                self.to
            ));
        }
        let sequence = self.only_there?;
        Some(format!(
            "only the replica {} has snapshot {sequence}: somebody removed it here, or wrote there; copy it back with `lifeboat -r {} \
             replicate --to` and this repository",
            self.to, self.to
        ))
    }

    pub fn describe(&self, tier: Option<Tier>) -> Value {
        json!({
            "name": self.to,
            "number": self.newest.map(|(sequence, ..)| sequence.0),
            "recoveryPoint": self.newest.map(|(_, time, _)| time),
            "onlyThere": self.only_there,
            "parted": self.parted,
            "lagSeconds": self.newest.map(|(.., lag)| lag.as_secs_f64()),
            "verdict": if self.unknown.is_some() { "unknown" } else if self.keeps(tier) { "met" } else { "missed" },
        })
    }
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.unknown, self.newest) {
            (Some(_), _) => write!(f, "{}: not known", self.to),
            (None, None) => write!(f, "{}: nothing", self.to),
            (None, Some((.., lag))) if lag.is_zero() => write!(f, "{}: up to date", self.to),
            (None, Some((.., lag))) => write!(f, "{}: {} behind", self.to, Shown(lag)),
        }
    }
}

/// The replicas that were opened, or why they could not be; `None`: nothing is there yet.
#[derive(Default)]
pub struct Replicas(BTreeMap<String, Result<Option<Opened>, String>>);

impl Replicas {
    /// Of the source, whose newest snapshot that counts is `here`.
    pub async fn look(
        &mut self,
        context: &Context,
        opened: &Opened,
        access: &Access,
        source: &SourceName,
        here: Option<&Snapshot>,
    ) -> Result<Vec<Copied>, Failure> {
        let schedules = context.config()?.schedules_of(source);
        let own = schedules.filter(|schedule| schedule.repository == opened.settings.name);
        let names: BTreeSet<String> =
            own.filter_map(|schedule| schedule.replica.as_ref()).map(|replica| replica.to.clone()).collect();
        let mut all = Vec::new();
        for to in names {
            if !self.0.contains_key(&to) {
                let place = open(context, opened, &to).await;
                self.0.insert(to.clone(), place.map_err(|failure| chain(failure.as_ref()).join(": ")));
            }
            let found = match &self.0[&to] {
                Ok(None) => Ok(None),
                Ok(Some(place)) => {
                    let shared = place.lineage(source, access).shared_with(&opened.lineage(source, access)).await;
                    shared.map(Some).map_err(|error| chain(&error).join(": "))
                }
                Err(why) => Err(why.clone()),
            };
            let nothing_here = here.is_none();
            let mut copied = Copied { to, newest: None, nothing_here, only_there: None, parted: None, unknown: None };
            match found {
                Ok(None) => {}
                Ok(Some(shared)) => {
                    (copied.only_there, copied.parted) = (shared.only_there, shared.parted);
                    if let Some(there) = shared.newest {
                        let (sequence, time) = (there.sequence(), there.recovery_point());
                        let lag = here.map_or(Duration::ZERO, |here| between(time, here.recovery_point()));
                        copied.newest = Some((sequence, time, lag));
                    }
                }
                Err(why) => copied.unknown = Some(why),
            }
            all.push(copied);
        }
        Ok(all)
    }
}

async fn open(context: &Context, opened: &Opened, to: &str) -> Result<Option<Opened>, Failure> {
    let place = match context.open_as(context.settings_of(to)?, Use::Read).await {
        Err(failure) if matches!(failure.downcast_ref(), Some(RepoError::NoRepository { .. })) => return Ok(None),
        other => other?,
    };
    let (theirs, ours) = (place.repository.root().id, opened.repository.root().id);
    if theirs != ours {
        return Err(format!("{} holds another repository ({theirs}, not {ours})", place.settings.url).into());
    }
    Ok(Some(place))
}
