//! `lifeboat export REF [PATH] -o OUT`: data in its system's own format, for tools that know nothing of Lifeboat.

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{bytes, print, print_json, sync_name};
use super::reference::{Reference, open_reader};
use crate::entry::Kind;
use crate::repo::{Item, Reader, RepoError};
use crate::restore::supply::Supplied;
use crate::restore::{RestoreError, Selection, stream, tar};
use crate::source::{self, Native, native};
use crossbeam_channel::{Sender, bounded};
use serde_json::json;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    /// SOURCE[@latest | @TIME | @NUMBER | @ID]
    #[arg(value_name = "REF")]
    reference: Reference,
    /// A file (written as it is), or a directory (written as tar)
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    /// Another format than the system's usual one
    #[arg(long, value_enum, conflicts_with = "path")]
    format: Option<Named>,
    /// The file to write, which must not exist; `-` is standard output
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Named {
    /// What `argocd admin import` takes, of a snapshot that has Argo CD's namespace
    Argocd,
}

/// How an export is to be written.
enum Format {
    Tar(Selection),
    Raw(Box<Item>),
    Native(&'static dyn Native),
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let to_stdout = args.output == Path::new("-");
    if to_stdout && context.globals.json {
        return Err(Fault::usage("--json and -o - both want standard output", "write to a file with -o FILE").into());
    }
    let (_, reader) = open_reader(context, &args.reference).await?;
    reader.check_access()?;
    let format = match args.format {
        Some(Named::Argocd) => named(&reader, "argocd")?,
        None => format(&reader, args.path.map(OsStringExt::into_vec)).await?,
    };
    let partial = if to_stdout { None } else { Some(Partial::create(&args.output)?) };
    let file = partial.as_ref().map(Flowing::new).transpose()?;
    let work = tokio::task::spawn_blocking({
        let reader = reader.clone();
        move || match file {
            Some(file) => write(&reader, format, file),
            None => write(&reader, format, io::stdout()),
        }
    });
    let written = tokio::select! {
        written = work => written?,
        () = context.interrupt.requested() => return Err(Fault::Interrupted { left: None }.into()),
    };
    let (label, count) = match written {
        Err(RestoreError::Export(why)) if to_stdout && why.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Ok),
        other => other?,
    };
    let Some(partial) = partial else { return Ok(Exit::Ok) };
    partial.keep()?;
    let what = format!("{}@{}", args.reference.source, reader.snapshot().sequence());
    if context.globals.json {
        print_json(&json!({ "snapshot": what, "file": args.output, "format": label, "bytes": count }))?;
    } else {
        print(&format!("Exported {what} to {} ({label}, {})\n", args.output.display(), bytes(count)))?;
    }
    Ok(Exit::Ok)
}

fn named(reader: &Reader, name: &str) -> Result<Format, Failure> {
    let kind = reader.catalogue().kind.as_str();
    source::format(kind, name).map(Format::Native).ok_or_else(|| {
        let message = format!("a snapshot of kind {kind} has no format {name}");
        Fault::usage(message, "leave --format out").into()
    })
}

async fn format(reader: &Arc<Reader>, path: Option<Vec<u8>>) -> Result<Format, Failure> {
    let kind = reader.catalogue().kind.as_str();
    let selection = Selection::new(path);
    match native(kind) {
        Some(native) if selection.is_all() => return Ok(Format::Native(native)),
        None if selection.is_all() && kind == "files" => return Ok(Format::Tar(selection)),
        _ => {}
    }
    let mut found = first_two(reader, &selection).await?;
    let file = found.first().filter(|item| item.entry.kind == Kind::Hardlink).and_then(|item| item.entry.link.clone());
    if let (1, Some(file)) = (found.len(), file) {
        found = first_two(reader, &Selection::new([file])).await?;
    }
    match (found.len(), found.pop()) {
        (1, Some(item)) if item.entry.kind == Kind::File => Ok(Format::Raw(Box::new(item))),
        (0, _) => {
            let message = match selection.paths().first() {
                Some(path) => format!("{} is not in the snapshot", String::from_utf8_lossy(path)),
                None => "the snapshot holds no entries".into(),
            };
            Err(Fault::Failed { message, hint: Some("see `lifeboat ls`".into()) }.into())
        }
        _ => Ok(Format::Tar(selection)),
    }
}

/// One entry is a file to be written as it is; of more, the number does not matter.
async fn first_two(reader: &Reader, selection: &Selection) -> Result<Vec<Item>, RepoError> {
    let mut found = Vec::new();
    reader
        .segments::<RepoError>(|items| {
            let wanted = items.into_iter().filter(|item| selection.contains(&item.entry.path));
            found.extend(wanted.take(2_usize.saturating_sub(found.len())));
            Ok(())
        })
        .await?;
    Ok(found)
}

fn write(reader: &Reader, format: Format, out: impl Write + Send) -> Result<(&'static str, u64), RestoreError> {
    let mut out = Counting { inner: BufWriter::with_capacity(256 << 10, out), count: 0 };
    let label = match format {
        Format::Tar(selection) => {
            tar::write(reader, &selection, &mut out)?;
            "tar"
        }
        Format::Raw(item) => {
            stream::copy(reader, &item, &mut out)?;
            "the content itself"
        }
        Format::Native(native) => {
            native.write(&Supplied::new(reader, Selection::default()), &mut out).map_err(RestoreError::of_export)?;
            native.label()
        }
    };
    out.flush().map_err(RestoreError::Export)?;
    Ok((label, out.count))
}

/// A file whose bytes go to the disk while more are written: the sync at its end has little left to do.
struct Flowing {
    file: File,
    behind: u64,
    kick: Sender<()>,
}

impl Flowing {
    const SYNC_EVERY: u64 = 32 << 20;

    fn new(partial: &Partial) -> io::Result<Self> {
        // Opened anew: an error is told once to every description, and that of `partial` must hear of it.
        let other = File::open(&partial.temporary)?;
        let (kick, kicked) = bounded(1);
        let sync = move || kicked.into_iter().for_each(|()| _ = other.sync_data());
        std::thread::Builder::new().name("sync".into()).spawn(sync)?;
        Ok(Self { file: partial.file.try_clone()?, behind: 0, kick })
    }
}

impl Write for Flowing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.behind += written as u64;
        if self.behind >= Self::SYNC_EVERY {
            self.behind = 0;
            let _ = self.kick.try_send(()); // full: it is at it
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Counting<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A file that appears under its name only when it is whole.
struct Partial {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, Fault> {
        if path.symlink_metadata().is_ok() {
            return Err(Fault::usage(
                format!("{} exists already", path.display()),
                "choose another file, or remove it",
            ));
        }
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.partial", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        Ok(Self { file: file.map_err(Fault::file("create", &temporary))?, temporary, path: path.into() })
    }

    fn keep(self) -> Result<(), Fault> {
        self.file.sync_all().map_err(Fault::file("write", &self.temporary))?;
        // A link refuses to replace what came in between, which a rename would not.
        std::fs::hard_link(&self.temporary, &self.path)
            .or_else(|_| {
                if self.path.exists() {
                    Err(io::ErrorKind::AlreadyExists.into())
                } else {
                    std::fs::rename(&self.temporary, &self.path)
                }
            })
            .and_then(|()| sync_name(&self.path))
            .map_err(Fault::file("create", &self.path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}
