//! A git repository: branches, tags and notes with their history, fetched by `git` itself.
//!
//! The snapshot is a bundle, `repository.bundle`, written so that an unchanged repository is the same bytes (see
//! `bundle`), and `HEAD`, the branch that a clone begins with. The whole repository is fetched into a temporary
//! directory with every run: nothing is kept between runs, and what travels is what a clone costs. Its objects are
//! examined before anything is captured. A copy that is kept would save the third of a run's work that fetching is (of
//! 10,000 commits to 400 manifests, 13 MB as git packs them: 0.7 s of processor time, and 1.3 s to examine and to write the
//! bundle), for a volume that pods do not have and a state that could be wrong.
//!
//! What the guard can compare: the first commit of the main branch is the repository's identity, the number of commits
//! in that branch its position, the refs are its objects. The recovery point is the moment before the refs were
//! listed, however old the newest commit is. Deliberately absent: what a forge keeps beside git (issues, permissions),
//! objects of Git LFS and of submodules, which are named, `git fast-export` (it loses signatures, and with them the
//! commits' ids).

mod bundle;
mod examine;
mod program;
mod refs;
mod restore;
mod sops;

pub(super) use bundle::BUNDLE;
pub use restore::Restoring;

use super::command::plain_file;
use super::http::Tls;
use super::{Context, Needs, Say, Source, SourceError, unpack};
use crate::entry::{Facts, Input, Layout, OnError, Sink};
use crate::secret::SecretRef;
use program::Program;
use refs::{Advertised, Refs};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// `https://HOST/PATH`, `ssh://USER@HOST/PATH`, `USER@HOST:PATH`, `file:///PATH` or an absolute path.
    pub url: String,
    /// Who the token is sent as; what forges expect differs, and most take any name.
    #[serde(default = "default_username")]
    pub username: String,
    /// For https: an access token, or a password.
    pub token: Option<SecretRef>,
    pub tls: Option<Tls>,
    pub ssh: Option<Ssh>,
    /// What is captured, by the fronts of the refs' names; default `refs/heads/`, `refs/tags/` and `refs/notes/`.
    #[serde(default = "default_refs")]
    pub refs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ssh {
    /// File of the private key, without a passphrase.
    pub key: PathBuf,
    /// File with the server's public key, as `ssh-keyscan` prints it.
    pub known_hosts: PathBuf,
}

fn default_username() -> String {
    "git".into()
}

fn default_refs() -> Vec<String> {
    ["refs/heads/", "refs/tags/", "refs/notes/"].map(str::to_owned).into()
}

/// What kind of place a URL names.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Web { transport: &'static str, origin: String, loopback: bool },
    Ssh,
    Local(PathBuf),
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        let mut files: Vec<_> = self.tls.iter().flat_map(Tls::files).collect();
        files.extend(self.ssh.iter().flat_map(|ssh| [ssh.key.as_path(), &ssh.known_hosts]));
        if let Some(Place::Local(_)) = self.place() {
            files.push(Path::new(self.url.strip_prefix("file://").unwrap_or(&self.url)));
        }
        Needs { files, secrets: self.token.iter().collect(), account: false }
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
        if let Some(Ssh { key, known_hosts }) = &mut self.ssh {
            (*key, *known_hosts) = (directory.join(&*key), directory.join(&*known_hosts));
        }
        self.check_rest(say);
    }

    fn check_rest(&self, say: &mut Say<'_>) {
        let place = self.place();
        match &place {
            None => say(
                "url",
                "expected https://HOST/PATH without credentials, ssh://USER@HOST/PATH, file:///PATH or an absolute path",
            ),
            Some(Place::Web { transport: "http", loopback: false, .. }) if self.token.is_some() => {
                say("url", "expected https: the token must not be sent in plain to another machine");
            }
            Some(Place::Ssh) if self.ssh.is_none() => say("ssh", "expected the key and knownHosts for ssh"),
            _ => {}
        }
        if !matches!(place, Some(Place::Web { .. })) && (self.token.is_some() || self.tls.is_some()) {
            say("url", "token and tls are for https");
        }
        if self.ssh.is_some() && !matches!(place, Some(Place::Ssh)) {
            say("ssh", "the url is not one for ssh");
        }
        if self.username.is_empty() || self.username.contains('\n') {
            say("username", "expected a name");
        }
        if self.refs.is_empty() {
            say("refs", "expected at least one, such as refs/heads/");
        }
        for (index, front) in self.refs.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
            if !front.starts_with("refs/") || !front.ends_with('/') || !front.chars().all(plain) {
                say(&format!("refs[{index}]"), "expected the front of names with its slash, such as refs/heads/");
            }
        }
    }

    fn place(&self) -> Option<Place> {
        let url = self.url.as_str();
        if url.contains(|c: char| c.is_control() || c == ' ') {
            return None;
        }
        for transport in ["https", "http"] {
            let Some(rest) = url.strip_prefix(transport).and_then(|rest| rest.strip_prefix("://")) else { continue };
            let (host, path) = rest.split_once('/')?;
            if host.is_empty() || path.is_empty() || host.contains('@') {
                return None;
            }
            let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            let name = port.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
            let loopback = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            return Some(Place::Web { transport, origin: format!("{transport}://{host}"), loopback });
        }
        if let Some(path) = url.strip_prefix("file://").or(Some(url)).filter(|path| path.starts_with('/')) {
            return Some(Place::Local(path.into()));
        }
        let rest = url.strip_prefix("ssh://");
        let (host, path) = rest.map_or_else(|| url.split_once(':'), |rest| rest.split_once('/'))?;
        let user = host.split_once('@').map_or("", |(user, _host)| user);
        let plain = !host.is_empty() && !host.starts_with('-') && !path.is_empty() && !path.starts_with(':');
        (plain && !user.contains(':') && !host.contains('/')).then_some(Place::Ssh)
    }
}

/// Refspecs come by its standard input.
const FETCH: [&str; 6] =
    ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--stdin"];
/// The fact that says how ids are made.
const OBJECT_FORMAT: &str = "object_format";

#[derive(Debug)]
pub struct Git {
    spec: Spec,
}

impl Git {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        sound(&spec)?;
        Ok(Self { spec })
    }

    /// What is to be captured of what there is.
    fn chosen<'a>(&self, refs: &'a Refs) -> impl Iterator<Item = (&'a String, &'a String)> {
        refs.iter().filter(|(name, _)| self.spec.refs.iter().any(|front| name.starts_with(front)))
    }
}

fn sound(spec: &Spec) -> Result<(), SourceError> {
    let mut wrong = None;
    spec.check_rest(&mut |field, message| _ = wrong.get_or_insert(format!("git.{field}: {message}")));
    wrong.map_or(Ok(()), |what| Err(SourceError::Spec { what }))
}

impl Source for Git {
    fn kind(&self) -> &'static str {
        "git"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let git = Program::new(&self.spec)?;
        let Advertised { head, refs } = refs::advertised(context, &git)?;
        let number = self.chosen(&refs).count();
        if number == 0 {
            return Err(SourceError::Empty { path: git.url });
        }
        Ok(vec![format!("{}: {number} refs, HEAD is {}", git.url, head.as_deref().unwrap_or("not a branch"))])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        let git = Program::new(&self.spec)?;
        let asked = context.now();
        let Advertised { head, refs: there } = refs::advertised(context, &git)?;
        let Some((_, id)) = self.chosen(&there).next() else {
            return Err(SourceError::Empty { path: git.url });
        };
        let format = if id.len() == 64 { "sha256" } else { "sha1" };
        git.init(context, format)?;
        let wanted: String = self.spec.refs.iter().map(|front| format!("+{front}*:{front}*\n")).collect();
        git.tell(context, "fetch", &[&FETCH[..], &["--", &git.url]].concat(), &wanted)?;
        let refs = refs::held(context, &git)?;
        if refs.is_empty() {
            return Err(SourceError::Empty { path: git.url });
        }
        let mut facts = examine::facts(context, &git, head.as_deref(), &refs, sink)?;
        facts.recovery_point_ms = Some(asked.as_millisecond());
        let others = there.len() - self.chosen(&there).count();
        facts.details.insert(OBJECT_FORMAT.into(), format.into());
        facts.details.insert("refs_not_captured".into(), others.to_string());
        let open = bundle::open(context, &git, head.as_deref(), &refs);
        if let Some(head) = head {
            let text = format!("ref: {head}\n");
            let entry = plain_file(bundle::HEAD.into(), text.len() as u64, context.started);
            unpack::hand_over(context, sink, entry, Layout::Content, &mut text.as_bytes())?;
        }
        let entry = plain_file(BUNDLE.into(), 0, context.started);
        sink.add(entry, Some(Input { layout: Layout::Records, fingerprint: None, on_error: OnError::Fail, open }))?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(url: &str) -> Spec {
        let (username, refs) = (default_username(), default_refs());
        Spec { url: url.into(), username, token: None, tls: None, ssh: None, refs }
    }

    fn complaints(spec: &Spec) -> Vec<String> {
        let mut found = Vec::new();
        spec.check_rest(&mut |field, message| found.push(format!("{field}: {message}")));
        found
    }

    #[test]
    fn urls_say_where_a_repository_is() {
        let place = |url: &str| spec(url).place();
        for (url, origin) in [
            ("https://forge.example.org/a/b.git", "https://forge.example.org"),
            ("https://forge.example.org:8443/a", "https://forge.example.org:8443"),
        ] {
            let found = Place::Web { transport: "https", origin: origin.into(), loopback: false };
            assert_eq!(place(url), Some(found), "{url}");
        }
        for url in ["http://127.0.0.1:80/a", "http://[::1]/a", "http://localhost:3000/a"] {
            assert!(matches!(place(url), Some(Place::Web { loopback: true, .. })), "{url}");
        }
        for url in ["ssh://git@forge/a.git", "ssh://git@forge:2222/a", "git@forge:a/b.git"] {
            assert_eq!(place(url), Some(Place::Ssh), "{url}");
        }
        for url in ["/srv/a.git", "file:///srv/a.git"] {
            assert_eq!(place(url), Some(Place::Local("/srv/a.git".into())), "{url}");
        }
        for url in [
            "",
            "a.git",
            "https://user:token@forge/a",
            "https://forge",
            "ext::sh -c evil",
            "ext::evil",
            "ssh://-oProxyCommand=evil/a",
            "--upload-pack=evil",
            "ssh://user:password@forge/a",
            "git@forge:a\nb",
        ] {
            assert_eq!(place(url), None, "{url}");
        }
    }

    #[test]
    fn a_token_is_not_sent_in_plain() {
        let token = Some(SecretRef::Env("TOKEN".into()));
        let with = |url: &str| Spec { token: token.clone(), ..spec(url) };
        assert!(complaints(&with("https://forge/a")).is_empty());
        assert!(complaints(&with("http://127.0.0.1/a")).is_empty());
        assert!(complaints(&with("http://forge/a"))[0].starts_with("url: expected https"));
        assert!(complaints(&with("/srv/a"))[0].starts_with("url: token and tls are for https"));
        assert!(complaints(&spec("git@forge:a"))[0].starts_with("ssh: expected the key"));
        assert!(complaints(&Spec { refs: vec!["refs/pull".into()], ..spec("/a") })[0].starts_with("refs[0]"));
    }
}
