//! `lifeboat kit …`, and the recovery kit itself: all that is needed to bring data back, on one page.

mod check;
mod page;
mod shares;

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::sync_name;
use crate::config;
use crate::repo::{Identity, Prepared};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Split the recovery identity into shares for several people
    Shares(shares::Shares),
    /// Get the recovery identity back from shares
    Combine(shares::Combine),
    /// Prove that the shares, or the identity, at hand open the newest snapshot of every source
    Check(check::Args),
    /// Write a page for the safe: where everything is, who holds the shares, the first commands; it holds no secret
    Print(page::Args),
}

pub async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Shares(args) => shares::make(context, args).await,
        Command::Combine(args) => shares::join(context, &args),
        Command::Check(args) => check::run(context, args).await,
        Command::Print(args) => page::run(context, args).await,
    }
}

/// Writes the kit. `identity` is `None` when the recipient's private half is somebody else's.
pub fn text(
    settings: &config::Repository,
    prepared: &Prepared,
    recipient: &str,
    identity: Option<&Identity>,
) -> String {
    let Prepared { root, keys, .. } = prepared;
    let (id, url, created) = (root.id, &settings.url, root.created());
    let identity = match identity {
        Some(identity) => identity.to_text(),
        None => format!("(not here: whoever gave {recipient} holds it)"),
    };
    let (writer, keeper) = (keys.writer.to_text(), keys.keeper.to_text());
    let place = place(settings);
    format!(
        "\
# LIFEBOAT RECOVERY KIT
#
# Whoever holds this page can read and remove everything in the repository; whoever loses it, and every copy, cannot
# restore anything. Keep two copies offline (a password manager, a printed page in a safe), never beside the backups.
#
# Repository: {id}
# URL:        {url}
# Created:    {created}
# Recipient:  {recipient}

# 1. Recovery identity: opens everything. Only people hold it.
{identity}

# 2. Writer key: what an agent needs to back up. It cannot read or delete what was backed up.
{writer}

# 3. Keeper key: prunes. Give it to whoever prunes, and not to the agents.
{keeper}

# How to restore, with nothing but the lifeboat program, the bucket (or directory) and this file:
#
# 1. Save this page as kit.txt, readable for you alone.
# 2. For s3:// set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to credentials that may read the bucket.
# 3. See what there is:
#      lifeboat {place} --identity kit.txt snapshots
# 4. Bring files back into a new directory:
#      lifeboat {place} --identity kit.txt restore snapshot SOURCE@latest --to DIRECTORY
# 5. Or take data out in its system's own format (etcd: for `etcdutl snapshot restore`; files: tar; command: its output):
#      lifeboat {place} --identity kit.txt export SOURCE@latest -o FILE
#    An earlier state: SOURCE@2026-03-01T12:00:00Z (the newest snapshot at or before that time).
"
    )
}

/// Of which repository, and where, a kit says that it is.
pub fn repository(text: &str) -> Option<(String, String)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    Some((field("# Repository:")?, field("# URL:").unwrap_or_default()))
}

/// The options that name a repository.
pub fn place(settings: &config::Repository) -> String {
    let mut options = format!("-r '{}'", settings.url);
    let Some(s3) = &settings.s3 else { return options };
    if let Some(endpoint) = &s3.endpoint {
        options += &format!(" --s3-endpoint '{endpoint}'");
    }
    if let Some(region) = &s3.region {
        options += &format!(" --s3-region '{region}'");
    }
    if s3.path_style {
        options += " --s3-path-style";
    }
    options
}

/// A file that only its owner may read. It must not be there yet, and is removed again unless it is kept.
pub struct SecretFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl SecretFile {
    pub fn create(path: &Path) -> Result<Self, Fault> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match file {
            Ok(file) => Ok(Self { path: path.into(), file, kept: false }),
            Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => Err(Fault::usage(
                format!("{} exists already", path.display()),
                "it may hold the only keys of a repository: choose another file, or see what its keys open before it goes",
            )),
            Err(why) => Err(Fault::file("create", path)(why)),
        }
    }

    /// Makes the content, and the file's name, durable.
    pub fn fill(&mut self, text: &str) -> Result<(), Fault> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.and_then(|()| sync_name(&self.path)).map_err(Fault::file("write", &self.path))
    }

    /// From now on it stays, unless it is discarded.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    pub fn discard(mut self) {
        self.kept = false;
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
