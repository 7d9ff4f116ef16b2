//! One run of one source: begin a snapshot, capture, hold the capture against the one before, commit.
//!
//! Invariants: nothing is committed unless the whole capture was taken; what looks empty, younger or foreign is committed
//! into quarantine, unless a person has accepted an earlier capture that looked the same; what was accepted is recorded in
//! the snapshot's facts. Deliberately absent: schedules, and several sources at once (their runs know nothing of each other).

use crate::entry::Facts;
use crate::id::{Sequence, SourceName};
use crate::policy::guard;
use crate::repo::{
    Access, Committed, Finished, Lineage, Options, Progress, RepoError, Repository, Selector, State, Summary, WriterKey,
};
use crate::source::{Cancel, Context, SourceError, Spec};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// What to capture, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    pub source: SourceName,
    pub capture: Spec,
    pub guard: guard::Rules,
    /// A snapshot in quarantine that shows the source as it is meant to be now: the capture is compared with it too.
    pub accept: Option<Sequence>,
    pub options: Options,
    /// A run that takes longer is stopped.
    pub max_duration: Duration,
}

/// A run that committed.
#[derive(Debug)]
pub struct Report {
    pub committed: Committed,
    pub took: Duration,
    /// The snapshot before, if an earlier writer key sealed it: the guard could not compare with it.
    pub not_compared_with: Option<Sequence>,
}

/// The fact that says what a person accepted.
pub const ACCEPTED: &str = "accepted";

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("capture source {name}")]
    Source { name: SourceName, source: SourceError },
    #[error("{name}@{number} cannot be accepted: {why}")]
    NotAcceptable { name: SourceName, number: Sequence, why: String },
    #[error("the run of {name} did not end within {:.0} s; nothing was committed", limit.as_secs_f64())]
    TooLong { name: SourceName, limit: Duration },
    #[error("the run was interrupted; nothing was committed")]
    Cancelled,
    #[error("the capture of {0} crashed (a defect of Lifeboat); nothing was committed")]
    Crashed(SourceName),
}

/// So long a source has to say in its own words that its deadline has passed. It cannot while the store takes nothing from it.
/// A request of the commit itself is not cut short.
const SAYING: Duration = Duration::from_secs(2);

/// Carries `plan` out. `watch` is told of the counters as soon as there are any; `cancel` ends the run early.
///
/// # Errors
/// Nothing was committed then.
pub async fn run(
    repository: &Repository,
    key: &WriterKey,
    plan: Plan,
    run: &str,
    started: Timestamp,
    cancel: &Cancel,
    watch: impl FnOnce(Arc<Progress>),
) -> Result<Report, BackupError> {
    let clock = Instant::now();
    let name = plan.source.clone();
    let failed = |source| BackupError::Source { name: name.clone(), source };
    let mut source = plan.capture.open().map_err(failed)?;
    let kind = source.kind();
    let lineage = Arc::new(repository.lineage(&plan.source, Access::Writer(key.clone())));
    let accepted = match plan.accept {
        Some(number) => Some(Accepted { number, facts: acceptable(&lineage, number).await? }),
        None => None,
    };
    let writer = lineage.begin(plan.options, started).await?;
    watch(writer.progress());
    let (stop, not_compared_with) = (writer.stopper(), writer.sealed_base());
    let limit = plan.max_duration;
    let context =
        Context { runtime: Handle::current(), cancel: cancel.clone(), started, begun: clock, deadline: clock + limit };
    let work = async {
        let captured = tokio::task::spawn_blocking(move || {
            let mut writer = writer;
            let facts = source.capture(&context, &mut writer);
            (writer, facts)
        });
        let (writer, facts) = captured.await.map_err(|_| BackupError::Crashed(name.clone()))?;
        let mut facts = match facts {
            Ok(facts) => facts,
            // The repository's side failed first; the source only noticed.
            Err(SourceError::Stopped(_)) => return Err(writer.abandon().await.into()),
            Err(error) => {
                writer.abandon().await;
                return Err(BackupError::Source { name: name.clone(), source: error });
            }
        };
        let finished = writer.finish().await?;
        // What could not be read is not there.
        facts.objects = facts.objects.map(|objects| objects.saturating_sub(finished.left_out()));
        let reasons = judge(&finished, &mut facts, plan.guard, accepted.as_ref());
        let summary = Summary { kind: kind.into(), started, facts, reasons, run: run.into() };
        Ok(finished.commit(summary).await?)
    };
    let mut work = std::pin::pin!(work);
    let mut is_late = false;
    let result = tokio::select! {
        result = &mut work => result,
        () = cancelled(cancel) => {
            stop();
            work.await
        }
        () = tokio::time::sleep(limit.saturating_add(SAYING).saturating_sub(clock.elapsed())) => {
            is_late = true;
            stop();
            work.await
        }
    };
    match result {
        Ok(committed) => Ok(Report { committed, took: clock.elapsed(), not_compared_with }),
        Err(_) if cancel.is_cancelled() => Err(BackupError::Cancelled),
        Err(BackupError::Repo(RepoError::Stopped)) if is_late => {
            Err(BackupError::TooLong { name: name.clone(), limit })
        }
        Err(error) => Err(error),
    }
}

struct Accepted {
    number: Sequence,
    facts: Facts,
}

/// The facts of a snapshot that may be accepted: one in quarantine, and none that is not has come after it. So an order
/// that is repeated by mistake accepts nothing a second time.
async fn acceptable(lineage: &Lineage, number: Sequence) -> Result<Facts, BackupError> {
    let refuse = |why: &str| BackupError::NotAcceptable { name: lineage.source().clone(), number, why: why.into() };
    let (snapshot, _) = lineage.find(&Selector::Number(number)).await?;
    if snapshot.state() != State::Quarantined {
        return Err(refuse("it is not in quarantine"));
    }
    let newest = lineage.newest().await?.snapshot;
    if let Some(newer) = newest.map(|snapshot| snapshot.sequence()).filter(|newer| *newer > number) {
        return Err(refuse(&format!("snapshot {newer} came after it and is not in quarantine")));
    }
    let catalogue = snapshot.catalogue.ok_or_else(|| refuse("it is sealed with a writer key that was rotated away"))?;
    Ok(catalogue.facts)
}

/// Why the capture goes to quarantine. What is accepted instead is noted among its facts.
fn judge(captured: &Finished, now: &mut Facts, rules: guard::Rules, accepted: Option<&Accepted>) -> Vec<String> {
    let Some(previous) = captured.base().and_then(|base| base.catalogue.as_ref()) else { return Vec::new() };
    let mut reasons = guard::judge(&previous.facts, now, &rules);
    if previous.bytes > 0 && captured.bytes() == 0 {
        reasons.push(format!("there is nothing in it, it had {} bytes", previous.bytes));
    }
    let Some(Accepted { number, facts }) = accepted.filter(|_| !reasons.is_empty()) else { return reasons };
    let differs = guard::judge(facts, now, &rules);
    if differs.is_empty() {
        now.details.insert(ACCEPTED.into(), format!("as snapshot {number}: {}", reasons.join("; ")));
        return Vec::new();
    }
    differs.into_iter().map(|why| format!("it is not as snapshot {number}, which was accepted: {why}")).collect()
}

/// Waits until the run is cancelled.
async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
