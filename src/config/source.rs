//! `kind: Source`: one thing that is protected.

use super::At;
use super::decode::Wrong;
use super::node::Node;
use crate::id::SourceName;
use crate::policy::{Tier, duration, guard};
use crate::source;
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Source {
    pub name: SourceName,
    pub at: At,
    /// What the source itself asks for; [`super::Config::tier`] also looks at the schedules.
    pub tier: Option<Tier>,
    pub capture: source::Spec,
    pub guard: guard::Rules,
}

/// The document's spec. The kinds are fields, so that the decoder can name them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    tier: Option<Tier>,
    files: Option<source::files::Spec>,
    command: Option<source::command::Spec>,
    etcd: Option<source::etcd::Spec>,
    #[serde(default)]
    guard: Guard,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Guard {
    minimum_share: Option<f64>,
}

impl Document {
    pub(super) fn into_source(
        self,
        name: SourceName,
        at: At,
        document: &Node,
        directory: &Path,
    ) -> Result<Source, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let mut say = |field: &str, message: &str| {
            wrong.push(Wrong { line: document.line_of(field), field: field.into(), message: message.into() });
        };
        let share = self.guard.minimum_share;
        if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            say("spec.guard.minimumShare", "expected a number from 0 to 1");
        }
        let kinds = [
            self.files.map(source::Spec::Files),
            self.command.map(source::Spec::Command),
            self.etcd.map(source::Spec::Etcd),
        ];
        let mut kinds: Vec<_> = kinds.into_iter().flatten().collect();
        for kind in &mut kinds {
            check(kind, directory, &mut say);
        }
        if kinds.len() != 1 {
            say("spec", "expected exactly one of files, command, etcd");
        }
        match kinds.pop() {
            Some(capture) if wrong.is_empty() => {
                let guard = guard::Rules { minimum_share: share.unwrap_or(guard::Rules::default().minimum_share) };
                Ok(Source { name, at, tier: self.tier, capture, guard })
            }
            _ => Err(wrong),
        }
    }
}

/// What no type can say, and relative paths made whole.
fn check(kind: &mut source::Spec, directory: &Path, say: &mut impl FnMut(&str, &str)) {
    match kind {
        source::Spec::Files(files) => {
            if !files.path.is_absolute() {
                say("spec.files.path", "expected an absolute path");
            }
            for (name, patterns) in [("include", &files.include), ("exclude", &files.exclude)] {
                for (index, pattern) in patterns.iter().enumerate() {
                    if let Err(why) = globset::Glob::new(pattern) {
                        say(&format!("spec.files.{name}[{index}]"), &why.to_string());
                    }
                }
            }
        }
        source::Spec::Command(command) => {
            if command.argv.first().is_none_or(String::is_empty) {
                say("spec.command.argv", "expected the program and its arguments");
            }
            if command.output.is_empty() || command.output.contains('/') || matches!(&*command.output, "." | "..") {
                say("spec.command.output", "expected a file name, without slashes, such as \"dump.sql\"");
            }
            if let Some(Err(why)) = command.timeout.as_deref().map(duration::parse) {
                say("spec.command.timeout", &why.to_string());
            }
        }
        source::Spec::Etcd(etcd) => {
            if etcd.endpoints.is_empty() {
                say("spec.etcd.endpoints", "expected the client URL of at least one member");
            }
            for (index, endpoint) in etcd.endpoints.iter().enumerate() {
                let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
                if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                    let field = format!("spec.etcd.endpoints[{index}]");
                    say(&field, "expected https://HOST:PORT, without credentials");
                }
            }
            if let Some(tls) = &mut etcd.tls {
                if tls.certificate.is_some() != tls.key.is_some() {
                    say("spec.etcd.tls", "certificate and key belong together: give both or neither");
                }
                let paths: [Option<&mut PathBuf>; 3] = [Some(&mut tls.ca), tls.certificate.as_mut(), tls.key.as_mut()];
                for path in paths.into_iter().flatten() {
                    *path = directory.join(&*path);
                }
            }
        }
    }
}
