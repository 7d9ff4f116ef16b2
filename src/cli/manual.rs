//! `lifeboat completions SHELL` and `lifeboat man`

use super::Cli;
use super::fault::{Exit, Failure};
use super::output::print;
use clap::CommandFactory as _;

#[derive(clap::Args)]
pub struct Completions {
    #[arg(value_name = "SHELL", value_enum)]
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub struct Man {
    /// The page of this command ("restore snapshot"); without it, the overview
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

pub fn completions(args: &Completions) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lifeboat", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Exit::Ok)
}

pub fn man(args: &Man) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut name = "lifeboat".to_owned();
    for part in &args.command {
        name = format!("{name}-{part}");
        let found = command.find_subcommand(part).cloned();
        command = found
            .ok_or_else(|| super::fault::Fault::usage(format!("there is no command {part}"), "see lifeboat --help"))?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).title(name).render(&mut page)?;
    print(&String::from_utf8(page)?)?;
    Ok(Exit::Ok)
}
