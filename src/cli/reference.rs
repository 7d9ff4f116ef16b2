//! REF: which snapshot is meant.

use super::context::{Context, Opened, Use};
use super::fault::{Failure, Fault, chain};
use crate::config::nearest;
use crate::entry::Problem;
use crate::id::{Sequence, SourceName};
use crate::repo::{Access, Lineage, Reader, RepoError, Repository, Selector, Snapshot, SteppedOver};
use jiff::Timestamp;
use std::str::FromStr;
use std::sync::Arc;

/// `SOURCE`, `SOURCE@latest`, `SOURCE@<RFC 3339 time>`, `SOURCE@<number or id prefix>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub source: SourceName,
    which: Which,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Selected(Selector),
    /// Beginning of an id, in hexadecimal digits.
    Id(String),
}

const SHORTEST_ID: usize = 6;

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (source, which) = text.split_once('@').unwrap_or((text, "latest"));
        let source = source.parse::<SourceName>().map_err(|why| why.to_string())?;
        let is_id = which.len() >= SHORTEST_ID && which.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let which = if which == "latest" {
            Which::Selected(Selector::Latest)
        } else if let Some(number) = which.parse().ok().filter(|n| (1..=Sequence::MAX).contains(n)) {
            Which::Selected(Selector::Number(Sequence(number)))
        } else if let Ok(time) = which.parse::<Timestamp>() {
            Which::Selected(Selector::At(time))
        } else if is_id {
            Which::Id(which.to_owned())
        } else {
            return Err(format!(
                "{which:?} names no snapshot; expected SOURCE@latest, SOURCE@NUMBER, SOURCE@ID (at least {SHORTEST_ID} \
                 digits of it) or SOURCE@TIME such as 2026-03-01T12:00:00Z"
            ));
        };
        Ok(Self { source, which })
    }
}

/// `SOURCE@NUMBER`, where a slip of the finger must not mean another snapshot.
pub fn numbered(text: &str) -> Result<(SourceName, Sequence), String> {
    let (source, number) = text.split_once('@').ok_or("expected SOURCE@NUMBER")?;
    let source = source.parse().map_err(|e: crate::id::InvalidId| e.to_string())?;
    let number = number.parse().ok().filter(|n| (1..=Sequence::MAX).contains(n));
    Ok((
        source,
        Sequence(number.ok_or("expected SOURCE@NUMBER, a snapshot's number as `lifeboat snapshots` lists it")?),
    ))
}

/// A snapshot's id: the digest of its manifest.
pub fn id(snapshot: &Snapshot) -> String {
    snapshot.manifest.digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Says that a source is not there, and which one may be meant.
pub async fn check_source(repository: &Repository, source: &SourceName) -> Result<(), Failure> {
    let known = repository.sources().await?;
    if known.contains(source) {
        return Ok(());
    }
    let names: Vec<_> = known.iter().map(SourceName::as_str).collect();
    let hint = match (nearest(source.as_str(), &names), names.len()) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, 0) => "the repository has no snapshots yet: lifeboat backup".into(),
        (None, 1..=20) => format!("it has {}", names.join(", ")),
        (None, _) => "see `lifeboat snapshots`".into(),
    };
    Err(Fault::usage(format!("the repository has no source {source}"), hint).into())
}

/// Logs what had to be stepped over on the way to a snapshot.
pub fn warn_stepped_over(source: &SourceName, stepped_over: &[SteppedOver]) {
    for step in stepped_over {
        tracing::warn!(
            source = source.as_str(),
            snapshot = step.sequence.0,
            error = &step.error as &dyn std::error::Error,
            "stepped over a snapshot that does not count"
        );
    }
}

/// "snapshots 3, 4 and 17 more are missing".
pub fn missing_text(sequences: &[Sequence]) -> String {
    let first: Vec<_> = sequences.iter().take(5).map(ToString::to_string).collect();
    let more = sequences.len().saturating_sub(first.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    match sequences {
        [only] => format!("snapshot {only} is missing"),
        _ => format!("snapshots {}{more} are missing", first.join(", ")),
    }
}

/// Logs which snapshots of a source somebody took away, before one of the others is relied on.
pub async fn warn_missing(lineage: &Lineage) -> Result<(), Failure> {
    let missing = lineage.missing_lately().await?;
    if !missing.is_empty() {
        let source = lineage.source().as_str();
        tracing::warn!(source, "{}, and no prune record explains it", missing_text(&missing));
    }
    Ok(())
}

impl Reference {
    pub async fn find(&self, opened: &Opened, access: &Access) -> Result<(Arc<Lineage>, Snapshot), Failure> {
        let (lineage, snapshot, _) = self.look(opened, access).await?;
        Ok((lineage, snapshot))
    }

    /// With what had to be stepped over, which is also logged.
    async fn look(
        &self,
        opened: &Opened,
        access: &Access,
    ) -> Result<(Arc<Lineage>, Snapshot, Vec<SteppedOver>), Failure> {
        let lineage = opened.lineage(&self.source, access);
        let found = match &self.which {
            Which::Selected(selector) => lineage.find(selector).await,
            Which::Id(prefix) => by_id(&lineage, prefix).await,
        };
        match found {
            Ok((snapshot, stepped_over)) => {
                warn_stepped_over(&self.source, &stepped_over);
                Ok((lineage, snapshot, stepped_over))
            }
            Err(error @ RepoError::NoSnapshot { .. }) => {
                check_source(&opened.repository, &self.source).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn by_id(lineage: &Lineage, prefix: &str) -> Result<(Snapshot, Vec<SteppedOver>), RepoError> {
    let (snapshots, stepped_over) = lineage.snapshots().await?;
    let mut found = snapshots.into_iter().filter(|s| id(s).starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok((only, stepped_over)),
        (None, _) => Err(RepoError::NoSnapshot {
            source_name: lineage.source().clone(),
            wanted: format!("has an id that begins with {prefix}"),
        }),
        _ => Err(RepoError::Refused(format!(
            "several snapshots of {} have the id {prefix}…: give more of it",
            lineage.source()
        ))),
    }
}

/// Opens a snapshot for reading names and contents. With it comes which newer ones do not count.
pub async fn open_reader(context: &Context, reference: &Reference) -> Result<(Vec<Problem>, Arc<Reader>), Failure> {
    let opened = context.open(Use::Read).await?;
    let access = context.access_to_contents(&opened)?;
    let (lineage, snapshot, stepped_over) = reference.look(&opened, &access).await?;
    let reader = Arc::new(Reader::open(lineage.clone(), snapshot).await?);
    warn_missing(&lineage).await?;
    let newer = stepped_over.iter().filter(|step| step.sequence > reader.snapshot().sequence());
    let problems = newer.map(|step| Problem {
        path: format!("{}@{}", reference.source, step.sequence).into_bytes(),
        text: format!("it is newer, and does not count: {}", chain(&step.error).join(": ")),
    });
    Ok((problems.collect(), reader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_say_which_snapshot() {
        let which = |text: &str| text.parse::<Reference>().unwrap().which;
        let at = |text: &str| Which::Selected(Selector::At(text.parse().unwrap()));
        assert_eq!(which("db"), Which::Selected(Selector::Latest));
        assert_eq!(which("db@latest"), Which::Selected(Selector::Latest));
        assert_eq!(which("db@12"), Which::Selected(Selector::Number(Sequence(12))));
        assert_eq!(which("db@0a1b2c"), Which::Id("0a1b2c".into()));
        assert_eq!(which("db@2026-03-01T12:00:00Z"), at("2026-03-01T12:00:00Z"));
        assert_eq!(which("db@2026-03-01T14:00:00+02:00"), at("2026-03-01T12:00:00Z"));
        for bad in ["", "@latest", "db@", "db@0", "db@newest", "db@2026-03-01", "DB", "a@b@c"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
