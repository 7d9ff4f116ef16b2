//! A directory with a repository, its keys and a tree to back up, and the program that works in it.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const DEADLINE: Duration = Duration::from_mins(1);

/// A place with a repository, its keys and a tree to back up.
pub struct World {
    pub home: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let world = Self { home: tempfile::tempdir().unwrap() };
        let files = world.path("tree/sub");
        fs::create_dir_all(&files).unwrap();
        fs::write(world.path("tree/a"), "first").unwrap();
        fs::write(world.path("tree/sub/b"), vec![7; 300_000]).unwrap();
        fs::hard_link(world.path("tree/a"), world.path("tree/sub/link")).unwrap();
        std::os::unix::fs::symlink("a", world.path("tree/sym")).unwrap();
        world
    }

    pub fn with_repository() -> Self {
        let world = Self::new();
        world
            .run(&["init", "--kit", "kit.txt", "--writer-key-out", "writer.key", "--keeper-key-out", "keeper.key"])
            .expect(0);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn document(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A `Source` whose program is a shell script.
    pub fn script(&self, script: &str) {
        let script = serde_json::to_string(script).unwrap();
        self.document(
            "source.yaml",
            &format!(
                "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: dump}}\n\
                 spec:\n  command:\n    argv: [sh, -c, {script}]\n    output: dump.sql\n"
            ),
        );
    }

    #[expect(clippy::disallowed_methods, reason = "the tests start the program itself")]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LIFEBOAT_REPOSITORY", format!("file://{}", self.path("repository").display()))
            .env("XDG_STATE_HOME", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.command(arguments).spawn().unwrap())
    }

    pub fn as_writer(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["--writer-key", "writer.key"], arguments].concat())
    }

    pub fn as_owner(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["--identity", "kit.txt"], arguments].concat())
    }

    pub fn backup(&self) -> Ran {
        self.as_writer(&["backup", "--files", "tree", "--name", "docs", "--json"])
    }

    /// Starts a backup of the script that [`Self::script`] made and waits until the script has written `started`.
    pub fn begin_slow_backup(&self) -> (Child, rustix::process::Pid) {
        let arguments = ["--writer-key", "writer.key", "--config", "source.yaml", "backup", "dump"];
        let child = self.command(&arguments).spawn().unwrap();
        let until = Instant::now() + DEADLINE;
        let pid = loop {
            if let Ok(pid) = fs::read_to_string(self.path("started")) {
                break pid.trim().parse().unwrap();
            }
            assert!(Instant::now() < until, "the script did not begin");
            std::thread::sleep(Duration::from_millis(5));
        };
        (child, rustix::process::Pid::from_raw(pid).unwrap())
    }

    pub fn manifests(&self, source: &str) -> Vec<PathBuf> {
        let directory = self.path("repository").join(source).join("snapshots");
        let mut all: Vec<_> = fs::read_dir(directory).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        // Newest first.
        all.sort();
        all
    }
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why} in {:?} ({})", self.out, self.err))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "standard output: {}\nstandard error: {}", self.out, self.err);
        self
    }
}

pub const SLOW: &str = "head -c 3000000 /dev/urandom; echo $$ >now; mv now started; exec sleep 50";

pub fn finish(mut child: Child) -> Ran {
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut pipe: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        })
    };
    let until = Instant::now() + DEADLINE;
    let (out, err) = (read(Box::new(out)), read(Box::new(err)));
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the program did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ran { code: status.code().unwrap_or(-1), out: out.join().unwrap(), err: err.join().unwrap() }
}

#[expect(clippy::disallowed_methods, reason = "tools that are not Lifeboat judge its work")]
pub fn tool(program: &str, arguments: &[&str], directory: &Path) -> Output {
    Command::new(program).args(arguments).current_dir(directory).output().unwrap()
}
