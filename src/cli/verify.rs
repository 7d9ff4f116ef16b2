//! `lifeboat verify`

use super::context::{Context, Opened, Use};
use super::fault::{Exit, Failure, Fault};
use super::output::{bytes, clock, count, print, print_json};
use super::progress::{self, Done};
use super::reference::check_source;
use crate::id::SourceName;
use crate::repo::{Access, Depth, Finding, Locking, Mended, Repository, Verified, Verifying};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(clap::Args)]
pub struct Args {
    /// Only these sources
    #[arg(value_name = "SOURCE")]
    sources: Vec<SourceName>,
    /// Also open and check data (needs the recovery identity); a share such as 10% or 0.1 reads that part of the packs
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%",
          value_parser = share)]
    read_data: Option<f64>,
    /// Also check every stored byte against its digest; needs no private key
    #[arg(long, conflicts_with = "read_data")]
    scrub: bool,
    /// Put back what is missing or rotten from another copy of the repository, a Repository document's name or a URL;
    /// checks every stored byte. Needs no private key, but the right to remove and to put objects
    #[arg(long, value_name = "NAME|URL")]
    repair_from: Option<String>,
}

fn share(text: &str) -> Result<f64, String> {
    let number = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|p| p / 100.0),
        None => text.parse(),
    };
    number
        .ok()
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| "expected a share such as 10% or 0.1".into())
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let (opened, repair) = match &args.repair_from {
        None => (context.open(Use::Read).await?, None),
        Some(from) => {
            let (opened, repair) = mend(context, from).await?;
            (opened, Some(repair))
        }
    };
    let access = context.access(&opened)?;
    let (depth, share) = match (args.read_data, args.scrub || repair.is_some()) {
        (Some(share), _) => (Depth::Data, share),
        (None, true) => (Depth::Scrub, 1.0),
        (None, false) => (Depth::Structure, 1.0),
    };
    if depth == Depth::Data && !matches!(access, Access::Recipient(_)) {
        return Err(
            Fault::usage("--read-data needs the recovery identity", "give --identity FILE, or use --scrub").into()
        );
    }
    let sources = if args.sources.is_empty() { opened.repository.sources().await? } else { args.sources.clone() };
    let mut lot = [0; 8];
    // Without random numbers the same packs are read every time, which is still a verification.
    let _ = aws_lc_rs::rand::fill(&mut lot);
    let mut all = Vec::new();
    for source in sources {
        check_source(&opened.repository, &source).await?;
        let lineage = opened.lineage(&source, &access);
        let seen = Arc::new(Verifying::default());
        let reads = (depth != Depth::Structure).then_some(0);
        let bar = progress::show(context, &format!("verify {source}"), reads, {
            let seen = seen.clone();
            move || Done {
                count: seen.packs.load(Ordering::Relaxed),
                unit: "packs",
                bytes: seen.bytes.load(Ordering::Relaxed),
                expected: seen.expected.load(Ordering::Relaxed),
            }
        });
        let verified = match &repair {
            Some(repair) => lineage.repair(&repair.other, &repair.locking, depth, &seen).await,
            None => lineage.verify_watched(depth, share, u64::from_le_bytes(lot), &seen).await,
        };
        drop(bar);
        all.push((source, verified?));
    }
    if let Some(repair) = &repair {
        let asked = if args.sources.is_empty() { repair.other.sources().await? } else { args.sources };
        warn_of_newer(&opened.repository, &repair.other, &asked).await?;
    }
    report(context, repair.as_ref(), &all)
}

/// Snapshots that only the other copy has are no damage here, and not put back.
async fn warn_of_newer(own: &Repository, other: &Repository, sources: &[SourceName]) -> Result<(), Failure> {
    for source in sources {
        let tip = async |of: &Repository| {
            let newest = of.lineage(source, Access::None).newest().await;
            newest.map(|newest| newest.tip.map(|(sequence, _)| sequence))
        };
        let (here, there) = (tip(own).await?, tip(other).await?);
        if let Some(snapshot) = there.filter(|there| here.is_none_or(|here| here < *there)) {
            tracing::warn!(
                source = source.as_str(),
                snapshot = snapshot.0,
                "the other copy has newer snapshots, which are not put back: `lifeboat -r OTHER replicate --to THIS` copies them"
            );
        }
    }
    Ok(())
}

/// The other copy, and what it has given the root already.
struct Repair {
    other: Repository,
    locking: Locking,
    healed: Vec<String>,
    findings: Vec<Finding>,
}

/// Opens the repository for repair; its root comes first, since nothing can be judged without it.
async fn mend(context: &Context, from: &str) -> Result<(Opened, Repair), Failure> {
    let settings = context.settings()?;
    let other = context.open_as(context.settings_of(from)?, Use::Read).await?;
    if other.settings.url == settings.url {
        let hint = "name another copy of it (lifeboat replicate makes one)";
        return Err(Fault::usage("a repository cannot be repaired from itself", hint).into());
    }
    let store = context.store(&settings, Use::Write).await?;
    let locking = Locking::new(Context::write_options(&settings, 1).retain, clock());
    let Mended { repository, healed, findings } = Repository::mend(store, &other.repository, &locking).await?;
    let repair = Repair { other: other.repository, locking, healed, findings };
    Ok((Opened { settings, repository }, repair))
}

fn report(context: &Context, repair: Option<&Repair>, all: &[(SourceName, Verified)]) -> Result<Exit, Failure> {
    let (healed, findings) = repair.map_or((&[][..], &[][..]), |repair| (&repair.healed[..], &repair.findings[..]));
    let sound = findings.is_empty() && all.iter().all(|(_, verified)| verified.findings.is_empty());
    if context.globals.json {
        let sources: serde_json::Map<_, _> = all.iter().map(|(s, v)| (s.to_string(), json!(v))).collect();
        let mut document = json!({ "sound": sound, "sources": sources });
        if repair.is_some() {
            document["root"] = json!({ "healed": healed, "findings": findings });
        }
        print_json(&document)?;
    } else {
        let mut shown: String = healed.iter().map(|object| format!("put back: {object}\n")).collect();
        shown += &findings.iter().map(|f| format!("{}: {}\n", f.object, f.problem)).collect::<String>();
        print(&(shown + &all.iter().map(|(source, verified)| text(source, verified)).collect::<String>()))?;
    }
    Ok(if sound { Exit::Ok } else { Exit::Failed })
}

fn text(source: &SourceName, verified: &Verified) -> String {
    let Verified { snapshots, packs, bytes_read, findings, suspicious, healed } = verified;
    let (snapshots, packs) = (count(*snapshots as u64, "snapshot", "snapshots"), count(*packs as u64, "pack", "packs"));
    let mut text = format!("{source}: {snapshots}, {packs}, {} read: ", bytes(*bytes_read));
    let healed: String = healed.iter().map(|object| format!("  put back: {object}\n")).collect();
    let healed = healed + &suspicious.iter().map(|text| format!("  warning: {text}\n")).collect::<String>();
    if findings.is_empty() {
        return text + "sound\n" + &healed;
    }
    text += &(count(findings.len() as u64, "finding", "findings") + "\n");
    for finding in findings {
        let hurt: Vec<_> = finding.snapshots.iter().map(ToString::to_string).collect();
        text += &format!("  {}: {}\n", finding.object, finding.problem);
        if !hurt.is_empty() {
            text += &format!("    concerns snapshots {}\n", hurt.join(", "));
        }
    }
    text + &healed
        + "  what is damaged can be put back from a replica (--repair-from); later backups rely on it, unless they begin\n  \
           afresh (docs/operations.md, \"Damage\")\n"
}
