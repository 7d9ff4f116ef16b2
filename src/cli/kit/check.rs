//! `lifeboat kit check`: whether the shares, or the identity, at hand would bring everything back today.

use super::shares;
use crate::cli::context::{Context, Opened, Use};
use crate::cli::fault::{Exit, Failure, Fault, chain};
use crate::cli::output::{bytes, name, print, print_json, time};
use crate::cli::reference::warn_stepped_over;
use crate::id::{Sequence, SourceName};
use crate::repo::{Access, Identity, ReadError, Reader, RepoError, Selector};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    /// A share of the recovery identity; repeatable. Without any, the identity itself is checked (--identity)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    share: Vec<PathBuf>,
}

/// What was read of a source's newest snapshot.
struct Opening {
    sequence: Sequence,
    recovery_point: Timestamp,
    entries: usize,
    /// The entry whose content was read, and its bytes; none if no entry has any.
    content: Option<(Vec<u8>, u64)>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let identity = if args.share.is_empty() {
        context.require_identity(&opened)?
    } else {
        let (identity, kit) = shares::read(&args.share)?;
        let root = opened.repository.root().id;
        if kit != root {
            return Err(Fault::OtherKit { kit: kit.to_string(), url: String::new(), opened: root }.into());
        }
        identity
    };
    // Without the root's keys nothing could be backed up or pruned again.
    opened.repository.root().unlock(&identity)?;
    let mut results = Vec::new();
    for source in opened.repository.sources().await? {
        // A first backup that failed leaves a name and keys.
        if opened.lineage(&source, &Access::None).list().await?.is_empty() {
            continue;
        }
        let result = open(&opened, &source, &identity).await;
        results.push((source, result));
    }
    report(context, &opened, &results)?;
    let wrong_key = |failure: &Failure| matches!(failure.downcast_ref(), Some(RepoError::WrongKey { .. }));
    let failures = || results.iter().filter_map(|(_, result)| result.as_ref().err());
    Ok(match failures().count() {
        0 => Exit::Ok,
        _ if failures().all(wrong_key) => Exit::WrongKey,
        _ => Exit::Incomplete,
    })
}

async fn open(opened: &Opened, source: &SourceName, identity: &Identity) -> Result<Opening, Failure> {
    let lineage = opened.lineage(source, &Access::Recipient(identity.clone()));
    let (snapshot, stepped_over) = lineage.find(&Selector::Latest).await?;
    warn_stepped_over(source, &stepped_over);
    let (sequence, recovery_point) = (snapshot.sequence(), snapshot.recovery_point());
    let reader = Arc::new(Reader::open(lineage, snapshot).await?);
    reader.check_access()?;
    // The smallest is proof enough, and read at once.
    let (mut entries, mut smallest) = (0, None);
    reader
        .segments::<RepoError>(|items| {
            entries += items.len();
            let some = smallest.take().into_iter().chain(items).filter(|item| item.entry.size > 0);
            smallest = some.min_by_key(|item| item.entry.size);
            Ok(())
        })
        .await?;
    let Some(item) = smallest else {
        return Ok(Opening { sequence, recovery_point, entries, content: None });
    };
    let content = tokio::task::spawn_blocking(move || {
        let mut read = 0;
        for part in &reader.parts(&item)? {
            reader.read(&item, part, &mut |_, piece| {
                read += piece.len() as u64;
                Ok(())
            })?;
        }
        Ok::<_, ReadError>((item.entry.path, read))
    });
    Ok(Opening { sequence, recovery_point, entries, content: Some(content.await??) })
}

fn report(
    context: &Context,
    opened: &Opened,
    results: &[(SourceName, Result<Opening, Failure>)],
) -> Result<(), Failure> {
    if context.globals.json {
        let sources: Vec<Value> = results.iter().map(describe).collect();
        let id = opened.repository.root().id.to_string();
        return print_json(&json!({ "repository": id, "sources": sources }));
    }
    let mut text = format!("The identity opens repository {} and its keys.\n", opened.repository.root().id);
    for (source, result) in results {
        text += &match result {
            Err(failure) => format!("{source}: FAILED: {}\n", chain(failure.as_ref()).join(": ")),
            Ok(Opening { sequence, recovery_point, entries, content }) => {
                let read = match content {
                    Some((path, size)) => format!("read {} ({})", name(path), bytes(*size)),
                    None => "none of them has content".into(),
                };
                format!("{source}@{sequence} ({}): {entries} entries, {read}\n", time(*recovery_point))
            }
        };
    }
    print(&text)
}

fn describe((source, result): &(SourceName, Result<Opening, Failure>)) -> Value {
    match result {
        Err(failure) => json!({ "source": source.as_str(), "ok": false, "because": chain(failure.as_ref()) }),
        Ok(opening) => json!({
            "source": source.as_str(),
            "ok": true,
            "number": opening.sequence,
            "recoveryPoint": opening.recovery_point,
            "entries": opening.entries,
            "bytesRead": opening.content.as_ref().map_or(0, |(_, size)| *size),
        }),
    }
}
