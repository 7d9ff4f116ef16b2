//! `lifeboat receive`, which nobody types: in the pod that a claim is restored by, it puts what arrives on standard input
//! onto the volume. It reads no configuration and needs no key.

use super::fault::{Exit, Failure};
use super::output::{clock, print};
use crate::restore::receive::{give_back, look, receive};
use crate::source::volume::stream::{Standing, Terms};
use crate::source::{Cancel, Context};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The volume is mounted as `files` below it
    root: PathBuf,
    /// Only say whether it would be taken
    #[arg(long)]
    look: bool,
    /// What becomes of what it holds
    #[arg(long, value_enum, default_value = "refuse")]
    existing: Existing,
    /// What it holds is moved aside, by the step of this name
    #[arg(long, value_name = "STEP", conflicts_with = "existing")]
    aside: Option<String>,
    /// Bytes that will come
    #[arg(long, default_value_t = 0)]
    needs: u64,
    /// Prepare what came, which is of a snapshot of this kind
    #[arg(long, value_name = "KIND", requires = "version_of")]
    prepare: Option<String>,
    /// The version of the system that was captured
    #[arg(long, value_name = "VERSION")]
    version_of: Option<String>,
    /// Give up what the step of this name did not bring to its end
    #[arg(long, value_name = "STEP", conflicts_with_all = ["look", "existing", "aside"])]
    back: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Existing {
    Refuse,
    Clear,
    Beside,
}

pub fn run(args: Args) -> Result<Exit, Failure> {
    let standing = match (args.aside, args.existing) {
        (Some(step), _) => Standing::Aside(step),
        (None, Existing::Refuse) => Standing::Refuse,
        (None, Existing::Clear) => Standing::Clear,
        (None, Existing::Beside) => Standing::Beside,
    };
    let terms = Terms { standing, needs: args.needs, prepare: args.prepare.zip(args.version_of) };
    // The pod ends when it must.
    let world = Context::new(Cancel::default(), clock(), Duration::from_hours(24));
    let report = match args.back {
        Some(step) => give_back(&args.root, &step)?,
        None if args.look => look(&world, &args.root, &terms)?,
        None => {
            let mut input = io::stdin().lock();
            let received = receive(&world, &args.root, &terms, &mut input);
            // Whoever sends learns of the end only when all that is under way has been taken.
            let _ = io::copy(&mut input, &mut io::sink());
            received?
        }
    };
    print(&serde_json::to_string(&report)?)?;
    Ok(Exit::Ok)
}
