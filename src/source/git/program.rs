//! The program `git`, cut off from the machine's and the user's configuration.
//!
//! Everything that it is told lies in one file in a temporary directory: which transports may be used, whom to trust, who
//! gives the token. The token itself is in the environment of `git`, and handed out by a credential helper to the
//! document's own server only. Redirections are not followed, HTTP/2 is not spoken (large pushes fail over it at some
//! servers). An ssh key is used by itself, and the host must be known.

use super::{Place, Spec};
use crate::exec::{self, ExecError, causes};
use crate::secret::SecretRef;
use crate::source::{Context, SourceError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use zeroize::Zeroizing;

/// Bytes of an answer: some 300,000 refs.
const LARGEST: usize = 32 << 20;
/// Hands the token to whom the configuration says. The shell's own `printf` does it: no argument list shows it.
const HELPER: &str = "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \"$LIFEBOAT_GIT_USERNAME\" \
                      \"$LIFEBOAT_GIT_TOKEN\"; }; f";
/// What servers say when they do not let us in.
const DENIALS: [&str; 5] =
    ["Authentication failed", "could not read Username", "Permission denied (", "returned error: 403", "access denied"];
const ADVICE: &str = "look at the token or key: reading is enough to capture, restoring needs the right to push";

/// Reaches one repository, and has one of its own in a temporary directory, which is gone with the last clone.
#[derive(Clone)]
pub(super) struct Program {
    home: Arc<TempDir>,
    env: Vec<(String, Zeroizing<String>)>,
    pub url: String,
}

impl Program {
    pub fn new(spec: &Spec) -> Result<Self, SourceError> {
        let failed = |source: std::io::Error| SourceError::System {
            attempt: format!("make a temporary directory for {}", spec.url),
            text: source.to_string(),
            need: "it must hold the whole repository; TMPDIR says where it lies".into(),
        };
        let home = exec::private_directory("lifeboat-git-").map_err(failed)?;
        let config = home.path().join("config");
        std::fs::write(&config, configuration(spec)).map_err(failed)?;
        let plain = |text: String| Zeroizing::new(text);
        let transport = match &spec.place() {
            Some(Place::Web { transport, .. }) => transport,
            Some(Place::Ssh) => "ssh",
            _ => "file",
        };
        let mut env = vec![
            ("GIT_CONFIG_GLOBAL".to_owned(), plain(config.display().to_string())),
            ("GIT_CONFIG_SYSTEM".to_owned(), plain("/dev/null".into())),
            ("GIT_ALLOW_PROTOCOL".to_owned(), plain(transport.into())),
            ("GIT_TERMINAL_PROMPT".to_owned(), plain("0".into())),
            ("GIT_ASKPASS".to_owned(), plain("false".into())),
            ("SSH_ASKPASS".to_owned(), plain("false".into())),
            ("LC_ALL".to_owned(), plain("C".into())),
        ];
        // These overrule git's configuration where the caller has them.
        if let Some(tls) = &spec.tls {
            let files = [("GIT_SSL_CAINFO", &tls.ca), ("GIT_SSL_CERT", &tls.certificate), ("GIT_SSL_KEY", &tls.key)];
            for (name, path) in files {
                env.extend(path.as_ref().map(|path| (name.to_owned(), plain(path.display().to_string()))));
            }
        }
        if let Some(ssh) = &spec.ssh {
            let options = "-F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes \
                           -o GlobalKnownHostsFile=/dev/null -o ConnectTimeout=15 -o ServerAliveInterval=15";
            let (hosts, key) = (in_shell(&ssh.known_hosts), in_shell(&ssh.key));
            let command = format!("ssh {options} -o UserKnownHostsFile={hosts} -i {key}");
            env.push(("GIT_SSH_COMMAND".into(), plain(command)));
        }
        if let Some(token) = spec.token.as_ref().map(SecretRef::read).transpose()? {
            if token.contains('\n') {
                return Err(SourceError::Spec { what: "git.token holds more than one line".into() });
            }
            env.push(("LIFEBOAT_GIT_USERNAME".into(), plain(spec.username.clone())));
            env.push(("LIFEBOAT_GIT_TOKEN".into(), token));
        }
        Ok(Self { home: Arc::new(home), env, url: spec.url.clone() })
    }

    /// The repository of its own.
    fn mirror(&self) -> PathBuf {
        self.home.path().join("mirror.git")
    }

    /// Where packs are written: a repository with the same objects and no refs.
    pub fn packer(&self) -> PathBuf {
        self.home.path().join("packer.git")
    }

    /// Makes both; `format` is how ids are made.
    pub fn init(&self, context: &Context, format: &str) -> Result<(), SourceError> {
        self.make(context, &self.mirror(), format)?;
        self.make(context, &self.packer(), format)?;
        let (objects, info) = (self.mirror().join("objects"), self.packer().join("objects/info"));
        let alternates = || {
            std::fs::create_dir_all(&info)?;
            std::fs::write(info.join("alternates"), format!("{}\n", objects.display()))
        };
        alternates().map_err(|error| self.not_written(&info, &error))
    }

    fn not_written(&self, path: &Path, error: &std::io::Error) -> SourceError {
        SourceError::System {
            attempt: format!("write {} for {}", path.display(), self.url),
            text: error.to_string(),
            need: String::new(),
        }
    }

    /// Makes a bare repository at a local path.
    pub fn make(&self, context: &Context, path: &Path, format: &str) -> Result<(), SourceError> {
        std::fs::create_dir_all(path).map_err(|error| self.not_written(path, &error))?;
        let format = format!("--object-format={format}");
        let command = self.command_in(context, path, &["init", "--quiet", "--bare", "--template=", &format]);
        command.run(LARGEST).map(drop).map_err(|error| self.failed(context, "make the repository", &error))
    }

    /// Says which branch a clone of the repository at a local path begins with.
    pub fn name_head(&self, context: &Context, path: &Path, head: &str) -> Result<(), SourceError> {
        let command = self.command_in(context, path, &["symbolic-ref", "HEAD", head]);
        command.run(LARGEST).map(drop).map_err(|error| self.failed(context, "set HEAD", &error))
    }

    pub fn command(&self, context: &Context, arguments: &[&str]) -> exec::Command {
        self.command_in(context, &self.mirror(), arguments)
    }

    pub fn command_in(&self, context: &Context, repository: &Path, arguments: &[&str]) -> exec::Command {
        let mut all = vec![format!("--git-dir={}", repository.display())];
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let cancel = context.cancel.clone();
        exec::Command {
            program: "git".into(),
            inherits: exec::Inherits::Little,
            arguments: all,
            env: self.env.clone(),
            deadline: context.deadline,
            stop: Box::new(move || cancel.is_cancelled()),
        }
    }

    /// What git answers.
    pub fn ask(&self, context: &Context, action: &'static str, arguments: &[&str]) -> Result<String, SourceError> {
        let answer = self.command(context, arguments).run(LARGEST);
        let answer = answer.map_err(|error| self.failed(context, action, &error))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// As [`Self::ask`], of a search: exit status 1 means that there is nothing.
    pub fn find(&self, context: &Context, action: &'static str, arguments: &[&str]) -> Result<String, SourceError> {
        match self.command(context, arguments).run(LARGEST) {
            Ok(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
            Err(ExecError::Exit { status, .. }) if status.ends_with(" status 1") => Ok(String::new()),
            Err(error) => Err(self.failed(context, action, &error)),
        }
    }

    /// Whether it ends well; what it says does not matter.
    pub fn holds(&self, context: &Context, arguments: &[&str]) -> Result<bool, SourceError> {
        match self.command(context, arguments).run(LARGEST) {
            Ok(_) => Ok(true),
            Err(ExecError::Exit { .. }) => Ok(false),
            Err(error) => Err(self.failed(context, "examine the copy", &error)),
        }
    }

    /// Gives git lines; its answer must be short.
    pub fn tell(
        &self,
        context: &Context,
        action: &'static str,
        arguments: &[&str],
        lines: &str,
    ) -> Result<(), SourceError> {
        let failed = |error: ExecError| self.failed(context, action, &error);
        let mut running = self.command(context, arguments).start_fed().map_err(failed)?;
        // Where it ended early, its end tells why.
        let _ = running.write_all(lines.as_bytes());
        running.close();
        running.wait().map_err(failed)
    }

    pub fn failed(&self, context: &Context, action: &'static str, error: &ExecError) -> SourceError {
        if let Err(ended) = context.go_on() {
            return ended;
        }
        let text = causes(error.to_string(), std::error::Error::source(error));
        // Some of it is what the server says.
        let text = text.replace(|c: char| c.is_control() && c != '\n', " ");
        let server = self.url.clone();
        if DENIALS.iter().any(|denial| text.contains(denial)) {
            return SourceError::Refused { server, text, advice: ADVICE };
        }
        SourceError::Server { action, server, text }
    }
}

fn configuration(spec: &Spec) -> String {
    let mut text = String::from(
        "[safe]\n directory = \"*\"\n[gc]\n auto = 0\n[maintenance]\n auto = false\n[pack]\n threads = 1\n\
         [protocol]\n version = 2\n",
    );
    text += "[http]\n version = HTTP/1.1\n followRedirects = false\n proxy = \"\"\n lowSpeedLimit = 1\n lowSpeedTime = 60\n";
    text += "[credential]\n helper = \"\"\n";
    if let (Some(Place::Web { origin, .. }), Some(_)) = (spec.place(), &spec.token) {
        text += &format!("[credential {}]\n helper = {}\n", quoted(&origin), quoted(HELPER));
    }
    text
}

/// A value in git's configuration.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn in_shell(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
