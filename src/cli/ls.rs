//! `lifeboat ls REF [PATH]`

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{forgive_closed_pipe, name, time};
use super::reference::{Reference, open_reader};
use crate::entry::{Entry, Kind};
use crate::repo::RepoError;
use crate::restore::is_within;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{self, Write};

#[derive(clap::Args)]
pub struct Args {
    /// SOURCE[@latest | @TIME | @NUMBER | @ID]
    #[arg(value_name = "REF")]
    reference: Reference,
    /// Only this entry and what is below it
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// Show mode, owner, size and time
    #[arg(short, long)]
    long: bool,
}

/// The document is written as the entries come: there may be millions.
const BEGIN: &str = "{\"entries\":[";

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let (_, reader) = open_reader(context, &args.reference).await?;
    let wanted = args.path.as_deref().map(|p| p.trim_matches('/').as_bytes().to_vec()).unwrap_or_default();
    let json = context.globals.json;
    let (mut out, mut found) = (io::BufWriter::new(io::stdout()), 0_u64);
    let mut written = Ok(());
    let listed = reader.segments::<Stop>(|items| {
        for entry in items.into_iter().map(|item| item.entry).filter(|e| is_within(&e.path, &wanted)) {
            found += 1;
            written = match (json, args.long) {
                (true, _) => write!(out, "{}{}", if found > 1 { "," } else { BEGIN }, describe(&entry)),
                (false, true) => writeln!(out, "{}", line(&entry)),
                (false, false) => writeln!(out, "{}", name(&entry.path)),
            };
            if written.is_err() {
                return Err(Stop::Output);
            }
        }
        Ok(())
    });
    match listed.await {
        Err(Stop::Repo(error)) => return Err(error.into()),
        Err(Stop::Output) | Ok(()) => {}
    }
    if found == 0 && !wanted.is_empty() {
        let message = format!("{} is not in the snapshot", name(&wanted));
        return Err(Fault::Failed { message, hint: Some("paths are relative to the source's root".into()) }.into());
    }
    if json {
        written = written.and_then(|()| writeln!(out, "{}]}}", if found == 0 { BEGIN } else { "" }));
    }
    forgive_closed_pipe(written.and_then(|()| out.flush()))?;
    Ok(Exit::Ok)
}

enum Stop {
    Repo(RepoError),
    /// Nobody reads what is written.
    Output,
}

impl From<RepoError> for Stop {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

fn mtime(entry: &Entry) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(entry.mtime_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File | Kind::Hardlink => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Socket => 's',
    }
}

fn line(entry: &Entry) -> String {
    let arrow = match (entry.kind, &entry.link) {
        (Kind::Symlink, Some(link)) => format!(" -> {}", name(link)),
        (Kind::Hardlink, Some(link)) => format!(" = {}", name(link)),
        _ => String::new(),
    };
    let (mode, uid, gid, size) = (entry.mode, entry.uid, entry.gid, entry.size);
    let (kind, time, path) = (letter(entry.kind), time(mtime(entry)), name(&entry.path));
    format!("{kind}{mode:04o} {uid:>5} {gid:>5} {size:>12} {time} {path}{arrow}")
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Hardlink => "hardlink",
        Kind::Fifo => "fifo",
        Kind::CharDevice => "charDevice",
        Kind::BlockDevice => "blockDevice",
        Kind::Socket => "socket",
    }
}

/// A name that is not UTF-8 is also given in hexadecimal digits.
pub fn describe(entry: &Entry) -> Value {
    let mut document = json!({
        "path": String::from_utf8_lossy(&entry.path),
        "kind": kind(entry.kind),
        "mode": format!("{:04o}", entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "modified": mtime(entry),
    });
    if std::str::from_utf8(&entry.path).is_err() {
        document["pathHex"] = entry.path.iter().map(|b| format!("{b:02x}")).collect::<String>().into();
    }
    if let Some(link) = &entry.link {
        document["link"] = String::from_utf8_lossy(link).into();
    }
    document
}
