//! `lifeboat receive`, which nobody types: in the pod that a claim is restored by, it puts what arrives on standard input
//! onto the volume. It reads no configuration and needs no key.

use super::fault::{Exit, Failure};
use super::output::print;
use crate::restore::receive::{look, receive};
use crate::source::volume::stream::Standing;
use std::io;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The volume is mounted as `files` below it
    root: PathBuf,
    /// Only say what it holds
    #[arg(long)]
    look: bool,
    /// What becomes of what it holds
    #[arg(long, value_enum, default_value = "refuse")]
    existing: Existing,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Existing {
    Refuse,
    Clear,
    Beside,
}

pub fn run(args: &Args) -> Result<Exit, Failure> {
    let standing = match args.existing {
        Existing::Refuse => Standing::Refuse,
        Existing::Clear => Standing::Clear,
        Existing::Beside => Standing::Beside,
    };
    let report = if args.look { look(&args.root)? } else { receive(&args.root, standing, &mut io::stdin().lock())? };
    print(&serde_json::to_string(&report)?)?;
    Ok(Exit::Ok)
}
