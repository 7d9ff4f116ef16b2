//! Whether a store keeps its contract: one suite for the tests and for a user's own bucket.
//!
//! It writes only below `_check/<random>/` and removes what it wrote, except what it had to lock; the report names that.
//! A server that ignores `If-None-Match` or cuts ranges short is found here, not in an emergency.

mod suite;

use super::{Features, Result as StoreResult, Store, StoreError, StoreErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use serde::Serialize;
use std::time::{Duration, Instant};
use suite::Suite;

const CHECK_TIMEOUT: Duration = Duration::from_mins(3);

/// What whoever holds the same credentials can do past [`Store`]; for showing that it does no harm.
#[async_trait]
pub trait Rival: Send + Sync {
    /// Writes over `key`, in a versioned bucket as a later version.
    async fn overwrite(&self, key: &str, body: Bytes) -> StoreResult<()>;

    /// Deletes `key`, in a versioned bucket by a delete marker.
    async fn hide(&self, key: &str) -> StoreResult<()>;
}

#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The checker's clock, now.
    pub now: Timestamp,
    /// The size of the large object; above the store's part size, parts are checked too.
    pub large: usize,
    /// For the checks of a versioned store.
    pub rival: Option<&'a dyn Rival>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub url: String,
    pub lock: bool,
    pub versions: bool,
    pub checks: Vec<Check>,
    pub latencies: Vec<Latency>,
    /// How far the store's clock is ahead of the checker's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// What could not be removed, because it is locked or for the reason given by the check `clean up`.
    pub left: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<Timestamp>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| !matches!(check.outcome, Outcome::Failed { .. }))
    }

    fn add(&mut self, name: &'static str, outcome: Outcome) {
        self.checks.push(Check { name, outcome });
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Outcome {
    Ok,
    Failed { why: String },
    NotSupported { why: String },
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub operation: &'static str,
    pub samples: usize,
    pub median_ms: f64,
    pub longest_ms: f64,
}

/// Carries every check out; a failed one does not stop the rest.
///
/// # Errors
/// None: what goes wrong is in the report.
pub async fn check(store: &dyn Store, options: Options<'_>) -> Report {
    let Features { lock, versions } = store.features();
    let mut report = Report {
        url: store.url(),
        lock,
        versions,
        checks: Vec::new(),
        latencies: Vec::new(),
        clock_ahead_ms: None,
        left: Vec::new(),
        locked_until: None,
    };
    let mut random = [0; 8];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        report.add("random numbers", Outcome::Failed { why: "the system gave none".into() });
        return report;
    }
    let place = format!("_check/{:016x}", u64::from_be_bytes(random));
    let suite = Suite { store, options, place, begin: Instant::now() };
    for (name, check) in suite.checks() {
        report.add(name, outcome(check).await);
    }
    let verdict = suite.versions().await;
    report.add("the first version is the true one", verdict);
    let verdict = outcome(suite.clock(&mut report.clock_ahead_ms).boxed()).await;
    report.add("clock", verdict);
    let verdict = outcome(suite.latencies(&mut report.latencies).boxed()).await;
    report.add("latency", verdict);
    let verdict = if lock {
        outcome(suite.lock(&mut report.locked_until).boxed()).await
    } else {
        Outcome::NotSupported { why: "the store has no Object Lock, or it is not switched on".into() }
    };
    report.add("lock", verdict);
    let verdict = outcome(suite.clean_up(&mut report.left).boxed()).await;
    report.add("clean up", verdict);
    report
}

type Verdict = Result<(), String>;

async fn outcome(check: BoxFuture<'_, Verdict>) -> Outcome {
    match tokio::time::timeout(CHECK_TIMEOUT, check).await {
        Ok(Ok(())) => Outcome::Ok,
        Ok(Err(why)) => Outcome::Failed { why },
        Err(_) => Outcome::Failed { why: format!("not done after {} s", CHECK_TIMEOUT.as_secs()) },
    }
}

fn explain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn must<T>(result: StoreResult<T>) -> Result<T, String> {
    result.map_err(|e| explain(&e))
}

fn must_fail<T>(result: StoreResult<T>, kind: StoreErrorKind, what: &str) -> Verdict {
    match result {
        Err(e) if e.kind == kind => Ok(()),
        Err(e) => Err(format!("{what}: expected {kind:?}, got: {}", explain(&e))),
        Ok(_) => Err(format!("{what}: expected {kind:?}, but it succeeded")),
    }
}

fn must_be(holds: bool, what: impl Into<String>) -> Verdict {
    if holds { Ok(()) } else { Err(what.into()) }
}
