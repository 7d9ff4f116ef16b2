//! What must be done with the files of a backup before a server starts from them.

use super::PROGRAM;
use crate::exec::{self, ExecError, causes};
use crate::source::{Context, Preparation, SourceError};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

const SETTINGS: &str = "backup-my.cnf";

/// Applies the log that was written while the files were copied.
pub struct Prepare;

impl Preparation for Prepare {
    fn check(&self, context: &Context, version: &str) -> Result<(), SourceError> {
        fits(context, version, "the snapshot is of")
    }

    fn run(&self, context: &Context, directory: &Path) -> Result<String, SourceError> {
        let failed = |text: String| SourceError::System {
            attempt: format!("prepare the backup in {}", directory.display()),
            text,
            need: "no server may start from it as it is".into(),
        };
        let before = owners(directory).map_err(|error| failed(error.to_string()))?;
        // As the server was set, which is told beside its files; nothing else may be writable.
        let settings = directory.join(SETTINGS);
        let text = fs::read_to_string(&settings).map_err(|error| failed(format!("read {SETTINGS}: {error}")))?;
        if let Some(odd) = odd_setting(&text) {
            return Err(failed(format!(
                "{SETTINGS} holds {odd:?}, which could lead out of the directory or load programs: if it is right, prepare it by hand"
            )));
        }
        let settings = format!("--defaults-file={}", settings.display());
        let [target, room] = ["target-dir", "tmpdir"].map(|name| format!("--{name}={}", directory.display()));
        let done = program(context, &[&settings, "--prepare", &target, &room]).run(1 << 20);
        if let Err(error) = done {
            context.go_on()?;
            return Err(failed(match error {
                ExecError::Exit { program, status, stderr } => {
                    format!("{program} {status}: {}", super::telling(&stderr))
                }
                other => told(&other),
            }));
        }
        finish(directory, &before).map_err(|error| failed(error.to_string()))?;
        Ok("mariadb-backup has applied InnoDB's log: a server can start from the files".to_owned())
    }
}

type Owners = BTreeMap<PathBuf, (u32, u32)>;

/// The first line of a backup's settings that the program does not need: whoever makes a false snapshot could have it load a
/// library, or write elsewhere.
fn odd_setting(text: &str) -> Option<&str> {
    // What mariadb-backup writes. It reads lines of more than 4 KiB in pieces, and takes quotes and escapes away.
    const NAMES: [&str; 8] = [
        "innodb_checksum_algorithm",
        "innodb_data_file_path",
        "innodb_log_file_size",
        "innodb_page_size",
        "innodb_undo_directory",
        "innodb_undo_tablespaces",
        "innodb_compression_level",
        "innodb_buffer_pool_filename",
    ];
    let is_plain = |line: &str| {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let (name, value) = (name.trim(), value.trim());
        let stays = value == "./" || value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:;-".contains(&byte));
        let short = line.len() < 1000 && line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        short
            && (line.is_empty()
                || line.starts_with('#')
                || line == "[mysqld]"
                || NAMES.contains(&name) && stays && !value.contains(".."))
    };
    text.split('\n').find(|line| !is_plain(line))
}

/// Of all that is below.
fn owners(directory: &Path) -> io::Result<Owners> {
    let (mut found, mut left) = (Owners::new(), vec![directory.to_owned()]);
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next)? {
            let (path, is) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            if is.is_dir() {
                left.push(path.clone());
            } else if !is.is_file() {
                // It would be written through, and no backup has one.
                return Err(io::Error::other(format!("{} is no file", path.display())));
            }
            found.insert(path, (is.uid(), is.gid()));
        }
    }
    Ok(found)
}

/// Gives what the program has made to whom the directory belongs, and makes all of it durable.
fn finish(directory: &Path, before: &Owners) -> io::Result<()> {
    let like = fs::metadata(directory)?;
    for (path, is) in owners(directory)? {
        let (uid, gid) = *before.get(&path).unwrap_or(&(like.uid(), like.gid()));
        if is != (uid, gid) {
            lchown(path, Some(uid), Some(gid))?;
        }
    }
    let directory = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(directory)?)
}

fn program(context: &Context, words: &[&str]) -> exec::Command {
    let cancel = context.cancel.clone();
    exec::Command {
        program: PROGRAM.into(),
        inherits: exec::Inherits::Little,
        arguments: words.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        deadline: context.deadline,
        stop: Box::new(move || cancel.is_cancelled()),
    }
}

fn told(error: &ExecError) -> String {
    causes(error.to_string(), std::error::Error::source(error))
}

/// Whether the program here is of the release that `version` is of; a backup of one release is none to another.
pub(super) fn fits(context: &Context, version: &str, whose: &str) -> Result<(), SourceError> {
    let failed = |text: String| SourceError::Program { program: PROGRAM.into(), text };
    let said = program(context, &["--version"]).run_for_stderr().map_err(|error| failed(told(&error)))?;
    let own = said.split_once("MariaDB server ").map_or(said.trim(), |(_, rest)| rest.trim());
    match (release(version), release(own)) {
        (Some(one), Some(other)) if one == other => Ok(()),
        (wanted, _) => {
            let own = own.split(' ').next().unwrap_or_default();
            let wanted = wanted.map_or_else(|| "that release".to_owned(), |(major, minor)| format!("{major}.{minor}"));
            Err(failed(format!(
                "{whose} MariaDB {version}, and the program here is of {own}; install that of {wanted}"
            )))
        }
    }
}

/// `10.11.6-MariaDB` is of 10.11.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{odd_setting, release};

    #[test]
    fn settings_load_nothing_and_stay_in_the_directory() {
        let plain = "# This MySQL options file was generated by innobackupex.\n\n[mysqld]\ninnodb_checksum_algorithm=full_crc32\n\
            innodb_data_file_path=ibdata1:12M:autoextend\ninnodb_undo_directory=./\ninnodb_page_size = 16384\n\n";
        assert_eq!(odd_setting(plain), None);
        for odd in [
            "plugin-load=x.so",
            "plugin_dir=.",
            "!include /etc/x",
            "[mariadb-backup]",
            "innodb_undo_directory=/etc",
            "innodb_data_file_path=../x:12M",
            "innodb_data_file_path=a:1M;b:/etc/x",
            "tmpdir=/",
            "innodb-data-home-dir=x",
            "innodb_undo_directory=\"/etc/x\"",
            "innodb_undo_directory='/etc/x'",
            "innodb_undo_directory=\\/etc",
            "# a comment\rplugin_load=x",
            "#\0",
            " plugin_load=x",
        ] {
            assert_eq!(odd_setting(&format!("{plain}{odd}\n")), Some(odd));
        }
        let long = format!("#{}plugin_load=x", "a".repeat(4093));
        assert_eq!(odd_setting(&format!("{plain}{long}\n")), Some(&*long));
    }

    #[test]
    fn a_release_has_two_numbers() {
        assert_eq!(release("10.11.19-MariaDB-0+deb12u1-log"), Some((10, 11)));
        assert_eq!(release("11.4.2-MariaDB debian-linux-gnu (x86_64)"), Some((11, 4)));
        assert_eq!(release("?"), None);
    }
}
