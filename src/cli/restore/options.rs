//! How a snapshot is brought back into a running system, as the command line says it.

use crate::cli::fault::{Failure, Fault};
use crate::source::target::{Existing, Options, Patch};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct OptionArgs {
    /// What becomes of objects that are there and differ
    #[arg(long, value_enum, default_value_t = Choice::Skip, requires = "system")]
    existing: Choice,
    /// Go on although the target is another system than the one that was captured
    #[arg(long, requires = "system")]
    foreign: bool,
    /// Restore a namespace under another name
    #[arg(long, value_name = "FROM=TO", value_parser = pair, requires = "system")]
    map_namespace: Vec<(String, String)>,
    /// Give volumes and claims another storage class
    #[arg(long, value_name = "FROM=TO", value_parser = pair, requires = "system")]
    map_storage_class: Vec<(String, String)>,
    /// Take images from another place, such as docker.io=registry.example.org/mirror
    #[arg(long, value_name = "PREFIX=PREFIX", value_parser = pair, requires = "system")]
    map_image: Vec<(String, String)>,
    /// Only these objects: RESOURCE (deployments.apps) or NAMESPACE/RESOURCE/NAME, with wildcards
    #[arg(long, value_name = "PATTERN", requires = "system")]
    include: Vec<String>,
    /// Not these objects
    #[arg(long, value_name = "PATTERN", requires = "system")]
    exclude: Vec<String>,
    /// Only objects with these labels, as kubectl get -l takes them
    #[arg(long, value_name = "LABELS", requires = "system")]
    selector: Option<String>,
    /// Change objects before they are restored: a YAML list of {kind, name, patch}, with JSON patches
    #[arg(long, value_name = "FILE", requires = "system")]
    patches: Option<PathBuf>,
    /// Give custom objects that are made the status back that they had
    #[arg(long, requires = "system")]
    status: bool,
    /// Only this secret of a Vault (secret/data/NAME), or all below a folder (secret/data/FOLDER/)
    #[arg(long = "path", value_name = "PATH", requires = "system")]
    vault_paths: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Choice {
    /// They stay as they are
    Skip,
    /// They are changed to what the snapshot holds
    Update,
    /// They are deleted and made anew
    Replace,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.into(), to.into())),
        _ => Err("expected FROM=TO, two names".into()),
    }
}

impl OptionArgs {
    pub fn options(&self) -> Result<Options, Failure> {
        let existing = match self.existing {
            Choice::Skip => Existing::Skip,
            Choice::Update => Existing::Update,
            Choice::Replace => Existing::Replace,
        };
        let options = Options {
            existing,
            foreign: self.foreign,
            namespaces: map("the namespace", &self.map_namespace)?,
            storage_classes: map("the storage class", &self.map_storage_class)?,
            images: map("images from", &self.map_image)?,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            selector: self.selector.clone(),
            patches: self.patches.as_deref().map(patches).transpose()?.unwrap_or_default(),
            status: self.status,
            vault_paths: self.vault_paths.clone(),
            ..Options::default()
        };
        let mut mistakes = Vec::new();
        options.check(&mut |field, why| mistakes.push(format!("{field}: {why}")));
        if mistakes.is_empty() {
            return Ok(options);
        }
        Err(Fault::usage(mistakes.join("; "), "see `lifeboat restore snapshot --help`").into())
    }
}

fn map(what: &str, pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut map = BTreeMap::new();
    for (from, to) in pairs {
        if map.insert(from.clone(), to.clone()).is_some() {
            let message = format!("{what} {from} would get two new names");
            return Err(Fault::usage(message, "restore it twice, once under each").into());
        }
    }
    Ok(map)
}

fn patches(path: &Path) -> Result<Vec<Patch>, Failure> {
    let text = std::fs::read_to_string(path).map_err(Fault::file("read the patches", path))?;
    // What a patch writes may be a Secret's: the text is not shown.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
        let line = error.location().map_or_else(String::new, |at| format!(" (line {})", at.line()));
        let message = format!("{} is not a list of patches{line}", path.display());
        Fault::usage(
            message,
            "expected YAML such as [{kind: deployments.apps, name: web, patch: [{op: remove, path: /spec/paused}]}]",
        )
        .into()
    })
}
