//! A directory with configuration, keys and data of its own, and the program that works in it.

use crate::support::picture::{Picture, assert_same, picture};
use crate::support::{ACCESS_KEY, SECRET_KEY, command};
use lifeboat::store::s3::{Credentials, LockMode, Settings};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_mins(2);

pub struct World {
    pub home: tempfile::TempDir,
    credentials: [String; 3],
}

/// What the program did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "standard output: {}\nstandard error: {}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why} in {:?} ({})", self.out, self.err))
    }

    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "{text:?} is not in: {}", self.err);
        self
    }
}

/// A snapshot just made.
pub struct Made {
    pub number: u64,
    pub new_bytes: u64,
    pub stored_bytes: u64,
}

impl World {
    /// With a repository in a directory.
    pub fn local() -> Self {
        let world = Self::without_repository();
        world.document("repository.yaml", &Self::directory(&world.path("repository")));
        world.init();
        world
    }

    pub fn directory(path: &Path) -> String {
        let url = format!("file://{}", path.display());
        format!("apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: main}}\nspec:\n  url: {url}\n")
    }

    /// With a repository in a bucket that is reached through `port`; locked for `days` if it can be.
    pub fn bucket(settings: &Settings, days: u32) -> Self {
        let world = Self::in_bucket(settings, days);
        world.init();
        world
    }

    /// The bucket holds a repository already, or is to hold none.
    pub fn in_bucket(settings: &Settings, days: u32) -> Self {
        let mut world = Self::without_repository();
        let Credentials::Static { access_key, secret_key, session_token } = &settings.credentials else {
            panic!("the tests give credentials")
        };
        world.credentials =
            [access_key, secret_key, session_token.as_ref().unwrap_or(&String::new())].map(Clone::clone);
        world.document("repository.yaml", &Self::bucket_document("main", settings, days));
        world
    }

    /// A Repository document, whose credentials are those of the world.
    pub fn bucket_document(name: &str, settings: &Settings, days: u32) -> String {
        let Credentials::Static { session_token, .. } = &settings.credentials else {
            panic!("the tests give credentials")
        };
        let token = session_token.as_ref().map_or("", |_| ", sessionToken: {env: TEST_TOKEN}");
        let lock = match settings.lock {
            None => String::new(),
            Some(LockMode::Governance) => format!("    objectLock: {{mode: governance, minimumDays: {days}}}\n"),
            Some(LockMode::Compliance) => format!("    objectLock: {{mode: compliance, minimumDays: {days}}}\n"),
        };
        let Settings { bucket, prefix, endpoint, .. } = settings;
        let endpoint = endpoint.as_deref().unwrap();
        format!(
            "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: {name}}}\nspec:\n  \
             url: s3://{bucket}/{prefix}\n  s3:\n    endpoint: {endpoint}\n    region: us-east-1\n    pathStyle: true\n    \
             partSize: 5MiB\n    \
             credentials: {{accessKeyId: {{env: TEST_KEY}}, secretAccessKey: {{env: TEST_SECRET}}{token}}}\n{lock}"
        )
    }

    pub fn without_repository() -> Self {
        let world =
            Self { home: tempfile::tempdir().unwrap(), credentials: [ACCESS_KEY, SECRET_KEY, ""].map(str::to_owned) };
        fs::create_dir_all(world.path("config")).unwrap();
        fs::create_dir(world.path("tree")).unwrap();
        world
    }

    pub fn init(&self) {
        let keys = ["--writer-key-out", "writer.key", "--keeper-key-out", "keeper.key"];
        self.run(&[&["init", "--kit", "kit.txt"], &keys[..]].concat()).expect(0);
    }

    /// Takes the keys of another world.
    pub fn take_keys(&self, other: &Self, names: &[&str]) {
        for name in names {
            fs::copy(other.path(name), self.path(name)).unwrap();
        }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn document(&self, name: &str, text: &str) {
        fs::write(self.path("config").join(name), text).unwrap();
    }

    /// A schedule of `docs`, which is `tree`.
    pub fn schedule(&self, max_duration: &str, retention: &str) {
        let (tree, repository) = (self.path("tree"), "repository: main, tier: standard, cron: '*/10 * * * *'");
        let text = format!(
            "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: docs}}\nspec: {{files: {{path: {}}}}}\n---\n\
             apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {{name: often}}\n\
             spec: {{{repository}, maxDuration: {max_duration}, sources: [docs], retention: {retention}}}\n",
            tree.display()
        );
        self.document("schedule.yaml", &text);
    }

    /// Writes a file below `tree`.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path("tree").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = command(env!("CARGO_BIN_EXE_lifeboat"));
        let [key, secret, token] = &self.credentials;
        command.args(arguments).current_dir(self.home.path()).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("LIFEBOAT_CONFIG", self.path("config")).env("XDG_STATE_HOME", self.path("state"));
        command.env("TEST_KEY", key).env("TEST_SECRET", secret).env("TEST_TOKEN", token);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.program(arguments).spawn().unwrap())
    }

    pub fn as_writer(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["--writer-key", "writer.key"], arguments].concat())
    }

    pub fn as_owner(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["--identity", "kit.txt"], arguments].concat())
    }

    /// The arguments of a backup of `tree`.
    pub const BACKUP: &[&str] =
        &["--writer-key", "writer.key", "backup", "--files", "tree", "--name", "docs", "--json"];

    /// The same once `schedule` has documented it: a document's name is nobody else's.
    pub const SCHEDULED: &[&str] = &["--writer-key", "writer.key", "backup", "docs", "--json"];

    #[track_caller]
    pub fn backup(&self) -> Made {
        made(&self.run(Self::BACKUP).expect(0))
    }

    /// Numbers of the snapshots that count, oldest first. That none is unsound is checked.
    #[track_caller]
    pub fn numbers(&self, source: &str) -> Vec<u64> {
        let listed = self.as_writer(&["snapshots", source, "--json"]).expect(0).json();
        let numbers = listed["snapshots"].as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap());
        numbers.rev().collect()
    }

    /// Restores a snapshot of `docs` into a new directory and looks at it.
    #[track_caller]
    pub fn restored(&self, reference: &str) -> Picture {
        let to = self.path("restored");
        self.as_owner(&["restore", "snapshot", reference, "--to", "restored"]).expect(0);
        let found = picture(&to);
        fs::remove_dir_all(to).unwrap();
        found
    }

    #[track_caller]
    pub fn assert_restores(&self, number: u64, expected: &Picture) {
        assert_same(&self.restored(&format!("docs@{number}")), expected, &format!("snapshot {number}"));
    }

    /// Every byte is opened and checked.
    #[track_caller]
    pub fn assert_sound(&self) {
        self.as_owner(&["verify", "--read-data"]).expect(0);
    }

    /// Objects of a repository in a directory, by their keys.
    pub fn objects(&self, below: &str) -> Vec<String> {
        let mut found: Vec<_> = match fs::read_dir(self.path("repository").join(below)) {
            Ok(entries) => entries.map(|e| format!("{below}/{}", e.unwrap().file_name().display())).collect(),
            Err(_) => Vec::new(),
        };
        found.sort();
        found
    }

    /// Changes an object of a repository in a directory behind the program's back.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path("repository").join(key);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::remove_file(&path).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[track_caller]
pub fn made(ran: &Ran) -> Made {
    let report = &ran.json()["backups"][0];
    assert_eq!(report["state"], "good", "{report}");
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"));
    Made { number: number("number"), new_bytes: number("newBytes"), stored_bytes: number("storedBytes") }
}

/// Waits for a program and takes what it says.
pub fn finish(mut child: Child) -> Ran {
    fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (out, err) = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
    let until = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the program did not end: {}", err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ran { code: status.code().unwrap_or(-1), out: out.join().unwrap(), err: err.join().unwrap() }
}

/// Kills a program without warning.
pub fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
