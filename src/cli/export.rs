//! `lifeboat export REF [PATH] -o OUT`: data in its system's own format, for tools that know nothing of Lifeboat.

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{bytes, print, print_json, problems_json, problems_text, sync_name};
use super::reference::{Reference, open_reader};
use crate::repo::Reader;
use crate::restore::export::{Flowing, Format, format, write};
use crate::restore::{RestoreError, Selection};
use crate::source;
use serde_json::json;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
    /// Helm's releases as a tar archive, each with its chart, values, manifest and records, for helm and kubectl
    Helm,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let to_stdout = args.output == Path::new("-");
    if to_stdout && context.globals.json {
        return Err(Fault::usage("--json and -o - both want standard output", "write to a file with -o FILE").into());
    }
    let (passed_over, reader) = open_reader(context, &args.reference).await?;
    reader.check_access()?;
    let format = match args.format {
        Some(Named::Argocd) => named(&reader, "argocd")?,
        Some(Named::Helm) => named(&reader, "helm")?,
        None => format(&reader, Selection::new(args.path.map(OsStringExt::into_vec))).await?,
    };
    let partial = if to_stdout { None } else { Some(Partial::create(&args.output)?) };
    let flowing = |partial: &Partial| Flowing::new(&partial.file, &partial.temporary);
    let file = partial.as_ref().map(flowing).transpose()?;
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
        // A transfer that was cut short must not look whole. Whoever read has said enough.
        Err(RestoreError::Export(why)) if to_stdout && why.kind() == io::ErrorKind::BrokenPipe => {
            return Ok(Exit::Failed);
        }
        other => other?,
    };
    let exit = if passed_over.is_empty() { Exit::Ok } else { Exit::Incomplete };
    let Some(partial) = partial else { return Ok(exit) };
    partial.keep()?;
    let what = format!("{}@{}", args.reference.source, reader.snapshot().sequence());
    if context.globals.json {
        print_json(&json!({
            "snapshot": what, "file": args.output, "format": label, "bytes": count,
            "problems": problems_json(&passed_over),
        }))?;
    } else {
        let problems = problems_text(&passed_over);
        print(&format!("Exported {what} to {} ({label}, {})\n{problems}", args.output.display(), bytes(count)))?;
    }
    Ok(exit)
}

fn named(reader: &Reader, name: &str) -> Result<Format, Failure> {
    let kind = reader.catalogue().kind.as_str();
    source::format(kind, name).map(Format::Native).ok_or_else(|| {
        let message = format!("a snapshot of kind {kind} has no format {name}");
        Fault::usage(message, "leave --format out").into()
    })
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
