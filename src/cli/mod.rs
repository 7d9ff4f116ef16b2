//! The command line: one file per command; composition happens here and nowhere else.
//!
//! Invariants: the clock, the environment, the terminal and the signals are met only here; standard output carries what
//! was asked for (one JSON document with `--json`), standard error everything else; every way to fail maps to one exit
//! code ([`fault::classify`]).

mod backup;
mod by_snapshot;
mod context;
mod diff;
mod doctor;
mod export;
mod fault;
mod globals;
mod init;
mod interrupt;
mod keys;
mod kit;
mod log;
mod ls;
mod manual;
mod output;
mod progress;
mod prune;
mod receive;
mod reference;
mod replicate;
mod restore;
mod schedule;
mod show;
mod snapshots;
mod status;
mod store;
mod verify;

use crate::exec;
use clap::{Parser, Subcommand};
use context::Context;
use fault::{Exit, Failure};
use globals::Globals;
use interrupt::Interrupt;
#[doc(hidden)]
pub use reference::Reference;
use std::process::ExitCode;

/// Backup and disaster recovery for Kubernetes platforms.
#[derive(Parser)]
#[command(name = "lifeboat", version, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a repository; print and save its recovery kit
    Init(init::Args),
    /// Capture sources and commit one snapshot of each
    Backup(backup::Args),
    /// List snapshots
    Snapshots(snapshots::Args),
    /// Show what is known of one snapshot
    Show(show::Args),
    /// List the entries of a snapshot
    Ls(ls::Args),
    /// Compare two snapshots
    Diff(diff::Args),
    /// Write a snapshot in its system's own format (etcd: a snapshot file; files: tar; command: the stream)
    Export(export::Args),
    /// Bring something back
    #[command(subcommand)]
    Restore(restore::Command),
    /// Say whether every source keeps its recovery point objective (exit code 4 if one does not)
    Status(status::Args),
    /// Check that snapshots can be read back
    Verify(verify::Args),
    /// Remove the snapshots that retention does not keep, and the packs that nothing needs any more
    Prune(prune::Args),
    /// Bring a second copy of the repository, in another place, up to date
    Replicate(replicate::Args),
    /// Examine the place where a repository is kept
    #[command(subcommand)]
    Store(store::Command),
    /// Manage who can read and who writes
    #[command(subcommand)]
    Keys(keys::Command),
    /// Share the recovery identity among people, prove that it opens everything, print the page for the safe
    #[command(subcommand)]
    Kit(kit::Command),
    /// Check configuration, keys, clock, store and sources; say what to do
    Doctor(doctor::Args),
    /// Work on schedules
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// Print the completion script of a shell
    Completions(manual::Completions),
    /// Print the manual page
    Man(manual::Man),
    /// Put the files of a volume where they belong, in the pod that a claim is restored by
    #[command(hide = true)]
    Receive(receive::Args),
    /// Have a volume's CSI driver take a snapshot, and a pod back it up
    #[command(hide = true)]
    BackupBySnapshot(by_snapshot::Args),
}

impl Command {
    /// Whether an interrupted command is given time: it watches for interrupts itself, or must not end half-way (keys that
    /// were made and not saved).
    fn stops_itself(&self) -> bool {
        matches!(
            self,
            Self::Backup(_)
                | Self::BackupBySnapshot(_)
                | Self::Restore(_)
                | Self::Export(_)
                | Self::Init(_)
                | Self::Keys(_)
        )
    }

    /// Whether it reads, restores or heals, and backs nothing up: a mistake in some document must not keep it from what the
    /// others say.
    fn forgives_mistakes(&self) -> bool {
        matches!(
            self,
            Self::Kit(kit::Command::Check(_))
                | Self::Snapshots(_)
                | Self::Show(_)
                | Self::Ls(_)
                | Self::Diff(_)
                | Self::Export(_)
                | Self::Restore(_)
                | Self::Status(_)
                | Self::Verify(_)
        )
    }

    async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Init(args) => init::run(context, args).await,
            Self::Backup(args) => backup::run(context, args).await,
            Self::Snapshots(args) => snapshots::run(context, args).await,
            Self::Show(args) => show::run(context, args).await,
            Self::Ls(args) => ls::run(context, args).await,
            Self::Diff(args) => diff::run(context, args).await,
            Self::Export(args) => export::run(context, args).await,
            Self::Restore(command) => Box::pin(restore::run(context, command)).await,
            Self::Status(args) => status::run(context, args).await,
            Self::Verify(args) => Box::pin(verify::run(context, args)).await,
            Self::Prune(args) => prune::run(context, args).await,
            Self::Replicate(args) => replicate::run(context, args).await,
            Self::Store(command) => store::run(context, command).await,
            Self::Keys(command) => keys::run(context, command).await,
            Self::Kit(command) => kit::run(context, command).await,
            Self::Doctor(args) => doctor::run(context, args).await,
            Self::Schedule(command) => schedule::run(context, &command),
            Self::Completions(args) => manual::completions(&args),
            Self::Man(args) => manual::man(&args),
            Self::Receive(args) => receive::run(args),
            Self::BackupBySnapshot(args) => by_snapshot::run(context, args).await,
        }
    }
}

/// Runs the process.
#[must_use]
pub fn main() -> ExitCode {
    forbid_core_dumps();
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == exec::SUPERVISE) {
        // As a shell says that there is no such program; whoever started this one tells people why.
        let refused = |error: exec::ExecError| {
            eprintln!("{}", fault::chain(&error).join(": "));
            127
        };
        return exec::supervise(words).unwrap_or_else(refused).into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error).into(),
    };
    let form = if cli.globals.json { fault::Form::Json } else { cli.globals.log_format.into() };
    match execute(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => fault::report(failure.as_ref(), form).into(),
    }
}

/// What the command line itself gets wrong. `--help` and `--version` come this way too, to standard output.
fn refuse(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Ok;
    }
    let json = std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    let text = error.render().to_string();
    if json {
        let (what, usage) = text.trim().split_once("\n\n").unwrap_or((text.trim(), ""));
        let failure = fault::Fault::Usage {
            message: what.trim_start_matches("error: ").into(),
            hint: (!usage.is_empty()).then(|| usage.into()),
        };
        return fault::report(&failure, fault::Form::Json);
    }
    let _ = error.print();
    Exit::Usage
}

fn execute(mut cli: Cli) -> Result<Exit, Failure> {
    // What it prints must not depend on where somebody's own cluster is.
    if matches!(cli.command, Command::Schedule(_)) {
        cli.globals.kubeconfig = None;
    }
    let run = output::random_id();
    log::start(&cli.globals, &run);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores.clamp(2, 4)).enable_all().build()?;
    let result = runtime.block_on(async {
        let interrupt = Interrupt::listen()?;
        let (stops_itself, forgiving) = (cli.command.stops_itself(), cli.command.forgives_mistakes());
        let context = Context::new(cli.globals, run, interrupt.clone(), forgiving);
        let mut command = std::pin::pin!(cli.command.run(&context));
        tokio::select! {
            result = &mut command => result,
            () = interrupt.patience_ends(stops_itself) => Err(fault::Fault::Interrupted { left: None }.into()),
        }
    });
    // What still blocks (a read of a hanging file system) must not keep the process.
    runtime.shutdown_background();
    result
}

/// Keys are in memory: no image of it may reach a disk. With a limit of 1 the kernel gives none to a program either that
/// `core_pattern` names, which it does with 0 (core(5), `do_coredump`).
fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(1), maximum: Some(1) };
    if let Err(why) = setrlimit(Resource::Core, none) {
        eprintln!("warning: core dumps cannot be switched off: {why}");
    }
}
