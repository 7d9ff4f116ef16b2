//! One run of one source: begin a snapshot, capture, hold the capture against the one before, commit.
//!
//! Invariants: nothing is committed unless the whole capture was taken; what looks empty, younger or foreign is committed
//! into quarantine. Deliberately absent: schedules, and several sources at once (their runs know nothing of each other).

use crate::entry::Facts;
use crate::id::SourceName;
use crate::policy::guard;
use crate::repo::{Access, Committed, Options, Progress, RepoError, Repository, SnapshotWriter, Summary, WriterKey};
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
    pub options: Options,
    /// A run that takes longer is stopped.
    pub max_duration: Duration,
}

/// A run that committed.
#[derive(Debug)]
pub struct Report {
    pub committed: Committed,
    pub took: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("capture source {name}")]
    Source { name: SourceName, source: SourceError },
    #[error("the run was interrupted; nothing was committed")]
    Cancelled,
    #[error("the capture of {0} crashed (a defect of Lifeboat); nothing was committed")]
    Crashed(SourceName),
}

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
    let writer = lineage.begin(plan.options, started).await?;
    watch(writer.progress());
    let stop = writer.stopper();
    let context =
        Context { runtime: Handle::current(), cancel: cancel.clone(), started, deadline: clock + plan.max_duration };
    let work = async {
        let captured = tokio::task::spawn_blocking(move || {
            let mut writer = writer;
            let facts = source.capture(&context, &mut writer);
            (writer, facts)
        });
        let (writer, facts) = captured.await.map_err(|_| BackupError::Crashed(name.clone()))?;
        let facts = match facts {
            Ok(facts) => facts,
            // The repository's side failed first; the source only noticed.
            Err(SourceError::Stopped(_)) => return Err(writer.abandon().await.into()),
            Err(error) => {
                writer.abandon().await;
                return Err(BackupError::Source { name: name.clone(), source: error });
            }
        };
        let reasons = judge(&writer, &facts, plan.guard);
        let summary = Summary { kind: kind.into(), started, facts, reasons, run: run.into() };
        Ok(writer.commit(summary).await?)
    };
    let mut work = std::pin::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = cancelled(cancel) => {
            stop();
            work.await
        }
    };
    match result {
        Ok(committed) => Ok(Report { committed, took: clock.elapsed() }),
        Err(_) if cancel.is_cancelled() => Err(BackupError::Cancelled),
        Err(error) => Err(error),
    }
}

/// Why the capture goes to quarantine.
fn judge(writer: &SnapshotWriter, now: &Facts, rules: guard::Rules) -> Vec<String> {
    let previous = writer.base().and_then(|base| base.catalogue.as_ref());
    previous.map_or_else(Vec::new, |previous| guard::judge(&previous.facts, now, &rules))
}

/// Waits until the run is cancelled.
async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
