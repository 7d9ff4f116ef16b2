//! Real MariaDB servers, in temporary directories, killed when dropped.

use crate::support::{command, free_port, kill_group};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const PASSWORD: &str = "correct-horse-battery";

pub struct Server {
    pub home: TempDir,
    pub port: u16,
    child: Child,
}

impl Server {
    pub fn start(settings: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self::install(&home, settings);
        Self::open(home, settings)
    }

    /// Makes a data directory, `data`.
    fn install(home: &TempDir, settings: &[&str]) {
        let mut install = command("mariadb-install-db");
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        install.arg(format!("--datadir={}", home.path().join("data").display()));
        // A server that starts removes the temporary tables of others in the same directory.
        install.arg(format!("--tmpdir={}", home.path().display()));
        if rustix::process::geteuid().is_root() {
            install.arg("--user=root");
        }
        // The pages' size counts from here on.
        install.args(settings.iter().filter(|setting| setting.starts_with("--innodb-page-size")));
        let made = install.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Starts from the directory `data` that is there.
    pub fn open(home: TempDir, settings: &[&str]) -> Self {
        let port = free_port();
        let mut daemon = command("/usr/sbin/mariadbd");
        daemon.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve"]);
        daemon.arg(format!("--port={port}")).arg(format!("--socket={}", home.path().join("socket").display()));
        daemon.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"]).args(settings);
        if rustix::process::geteuid().is_root() {
            daemon.arg("--user=root");
        }
        let log = fs::File::create(home.path().join("log")).unwrap();
        let data = home.path().join("data");
        daemon.current_dir(home.path()).arg(format!("--datadir={}", data.display()));
        daemon.arg(format!("--tmpdir={}", home.path().display()));
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let server = Self { port, child: daemon.spawn().unwrap(), home };
        let deadline = Instant::now() + Duration::from_mins(2);
        while server.try_sql("SELECT 1").is_err() {
            let log = fs::read_to_string(server.home.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "MariaDB did not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    pub fn try_sql(&self, text: &str) -> Result<String, String> {
        let mut client = command("mariadb");
        client.arg("--no-defaults").arg(format!("--socket={}", self.home.path().join("socket").display()));
        client.args(["--user=root", "--batch", "--skip-column-names", "--execute", text]);
        let output = client.output().unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap().trim().to_owned());
        if output.status.success() { Ok(out) } else { Err(err) }
    }

    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        self.try_sql(text).unwrap()
    }

    /// An account for backups, and tables, a view, a routine, a trigger and an event.
    pub fn fill(&self) {
        self.sql(&format!("CREATE USER backup@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"));
        self.sql("GRANT ALL ON *.* TO backup@'127.0.0.1' WITH GRANT OPTION");
        self.sql(
            "CREATE DATABASE shop CHARACTER SET utf8mb4; USE shop; \
             CREATE TABLE goods (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(80), raw VARBINARY(40)); \
             CREATE TABLE seen (n INT); \
             INSERT INTO goods (name, raw) SELECT CONCAT('ware ☂ ', seq), UNHEX(SHA1(seq)) FROM seq_1_to_20000; \
             CREATE VIEW few AS SELECT * FROM goods WHERE id <= 10; \
             CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC RETURN 2 * n; \
             CREATE TRIGGER note AFTER INSERT ON goods FOR EACH ROW INSERT INTO seen VALUES (NEW.id); \
             CREATE EVENT later ON SCHEDULE AT '2037-01-01 00:00:00' DO DELETE FROM seen",
        );
    }

    /// Of everything in the tables.
    pub fn checksums(&self) -> String {
        self.sql("CHECKSUM TABLE shop.goods, shop.seen")
    }

    pub fn kill(&mut self) {
        kill_group(&mut self.child);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
