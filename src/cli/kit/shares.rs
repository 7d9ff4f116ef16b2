//! `lifeboat kit shares` and `kit combine`: the recovery identity among several people, and back.

use super::SecretFile;
use crate::cli::context::{Context, Use};
use crate::cli::fault::{Exit, Failure, Fault};
use crate::cli::output::{print, print_json};
use crate::id::RepositoryId;
use crate::repo::Identity;
use crate::repo::shares::{Share, combine, split};
use crate::secret::SecretRef;
use serde_json::json;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Shares {
    /// So many shares are needed to get the identity back
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u8).range(2..=32))]
    threshold: u8,
    /// So many are made
    #[arg(long = "shares", value_name = "N", value_parser = clap::value_parser!(u8).range(2..=32))]
    count: u8,
    /// The directory for the shares, one file each; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(clap::Args)]
pub struct Combine {
    /// A share, in any order; repeatable
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    share: Vec<PathBuf>,
    /// Where the identity is saved, for --identity; must not exist
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub async fn make(context: &Context, args: Shares) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let identity = context.require_identity(&opened)?;
    let root = opened.repository.root();
    // Shares of an identity that opens nothing would be found out when it is too late.
    root.unlock(&identity)?;
    let shares = split(&identity, root.id, args.threshold, args.count)
        .map_err(|why| Fault::usage(why.to_string(), "for example: --threshold 3 --shares 5"))?;
    let directory = &args.output;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Fault::file("create", directory))?;
    let mut files = Vec::new();
    for share in &shares {
        let path = directory.join(format!("share-{}-of-{}.txt", share.number, share.shares));
        files.push((SecretFile::create(&path)?, path, share));
    }
    for (file, _, share) in &mut files {
        file.fill(&share.to_text())?;
    }
    for (file, _, _) in &mut files {
        file.keep();
    }
    let paths: Vec<_> = files.iter().map(|(_, path, _)| path).collect();
    if context.globals.json {
        print_json(&json!({ "repository": root.id.to_string(), "threshold": args.threshold, "shares": paths }))?;
    } else {
        let list: String = paths.iter().map(|path| format!("  {}\n", path.display())).collect();
        let example: Vec<_> = paths.iter().take(args.threshold.into()).map(|p| p.display().to_string()).collect();
        print(&format!(
            "Saved {} shares; any {} of them open everything in repository {}:\n{list}\
             Give each to another person, on paper, and remove the files. Try them before you remove the identity:\n  \
             lifeboat {} kit check --share {}\n",
            args.count,
            args.threshold,
            root.id,
            super::place(&opened.settings),
            example.join(" --share "),
        ))?;
    }
    Ok(Exit::Ok)
}

pub fn join(context: &Context, args: &Combine) -> Result<Exit, Failure> {
    let (identity, repository) = read(&args.share)?;
    let mut file = SecretFile::create(&args.output)?;
    let text = zeroize::Zeroizing::new(format!(
        "# LIFEBOAT RECOVERY IDENTITY, combined from shares\n#\n# Whoever holds this file can read and remove everything in \
         the repository. Remove it when you are done.\n#\n# Repository: {repository}\n{}\n",
        *zeroize::Zeroizing::new(identity.to_text())
    ));
    file.fill(&text)?;
    file.keep();
    if context.globals.json {
        print_json(&json!({ "repository": repository.to_string(), "identity": args.output }))?;
    } else {
        let path = args.output.display();
        print(&format!(
            "Saved the recovery identity of repository {repository}: {path}\n\
             Give it where an identity is asked for: --identity '{path}'. Remove it when you are done.\n"
        ))?;
    }
    Ok(Exit::Ok)
}

/// What shares combine to, and the repository that they say it opens.
pub fn read(paths: &[PathBuf]) -> Result<(Identity, RepositoryId), Failure> {
    let mut shares = Vec::new();
    for path in paths {
        shares.push(share(path)?);
    }
    let identity = combine(&shares).map_err(|source| Fault::Shares { path: None, source })?;
    // There is one: no shares do not combine.
    let repository = shares.first().map(|share| share.repository);
    Ok((identity, repository.ok_or_else(|| Fault::usage("no share is given", "give them with --share FILE"))?))
}

fn share(path: &Path) -> Result<Share, Failure> {
    let text = SecretRef::File(path.into()).read()?;
    Ok(Share::from_text(&text).map_err(|source| Fault::Shares { path: Some(path.into()), source })?)
}
