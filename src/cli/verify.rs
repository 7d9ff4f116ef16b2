//! `lifeboat verify`

use super::context::{Context, Use};
use super::fault::{Exit, Failure, Fault};
use super::output::{bytes, count, print, print_json};
use super::progress::{self, Done};
use super::reference::check_source;
use crate::id::SourceName;
use crate::repo::{Access, Depth, Verified, Verifying};
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
    let opened = context.open(Use::Read).await?;
    let access = context.access(&opened)?;
    let (depth, share) = match (args.read_data, args.scrub) {
        (Some(share), _) => (Depth::Data, share),
        (None, true) => (Depth::Scrub, 1.0),
        (None, false) => (Depth::Structure, 1.0),
    };
    if depth == Depth::Data && !matches!(access, Access::Recipient(_)) {
        return Err(
            Fault::usage("--read-data needs the recovery identity", "give --identity FILE, or use --scrub").into()
        );
    }
    let sources = if args.sources.is_empty() { opened.repository.sources().await? } else { args.sources };
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
        let verified = lineage.verify_watched(depth, share, u64::from_le_bytes(lot), &seen).await;
        drop(bar);
        all.push((source, verified?));
    }
    let sound = all.iter().all(|(_, verified)| verified.findings.is_empty());
    if context.globals.json {
        let sources: serde_json::Map<_, _> = all.iter().map(|(s, v)| (s.to_string(), json!(v))).collect();
        print_json(&json!({ "sound": sound, "sources": sources }))?;
    } else {
        print(&all.iter().map(|(source, verified)| text(source, verified)).collect::<String>())?;
    }
    Ok(if sound { Exit::Ok } else { Exit::Failed })
}

fn text(source: &SourceName, verified: &Verified) -> String {
    let Verified { snapshots, packs, bytes_read, findings } = verified;
    let (snapshots, packs) = (count(*snapshots as u64, "snapshot", "snapshots"), count(*packs as u64, "pack", "packs"));
    let mut text = format!("{source}: {snapshots}, {packs}, {} read: ", bytes(*bytes_read));
    if findings.is_empty() {
        return text + "sound\n";
    }
    text += &(count(findings.len() as u64, "finding", "findings") + "\n");
    for finding in findings {
        let hurt: Vec<_> = finding.snapshots.iter().map(ToString::to_string).collect();
        text += &format!("  {}: {}\n", finding.object, finding.problem);
        if !hurt.is_empty() {
            text += &format!("    concerns snapshots {}\n", hurt.join(", "));
        }
    }
    text + "  what is damaged can be put back from a copy of the repository; later backups rely on it, unless they begin afresh\n  \
            (docs/operations.md, \"Damage\")\n"
}
