//! Real etcd clusters on loopback.
#![expect(clippy::disallowed_methods, reason = "the tests start their servers themselves")]

use crate::support::{free_port, output, tool};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Cluster {
    pub directory: TempDir,
    pub endpoints: Vec<String>,
    members: Vec<Child>,
    tls: bool,
}

/// Makes `ca.pem`, `server.pem`, `client.pem`, `other-ca.pem` and their keys.
pub fn certificates(directory: &Path) {
    let openssl = |arguments: &str| {
        output(Command::new("openssl").args(arguments.split(' ')).current_dir(directory));
    };
    for ca in ["ca", "other-ca"] {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"
        ));
    }
    std::fs::write(
        directory.join("server.ext"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n",
    )
    .unwrap();
    std::fs::write(directory.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for name in ["server", "client"] {
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O={name} -keyout {name}.key -out {name}.csr"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.pem"
        ));
    }
}

impl Cluster {
    pub fn start(size: usize, tls: bool) -> Self {
        let directory = TempDir::new().unwrap();
        if tls {
            certificates(directory.path());
        }
        let ports: Vec<_> = (0..2 * size).map(|_| free_port()).collect();
        let scheme = if tls { "https" } else { "http" };
        let client = |index: usize| format!("{scheme}://127.0.0.1:{}", ports[2 * index]);
        let peer = |index: usize| format!("http://127.0.0.1:{}", ports[2 * index + 1]);
        let all: Vec<_> = (0..size).map(|index| format!("m{index}={}", peer(index))).collect();
        let program = tool("etcd");
        let members = (0..size)
            .map(|index| {
                let log = std::fs::File::create(directory.path().join(format!("m{index}.log"))).unwrap();
                let mut command = Command::new(&program);
                command.current_dir(directory.path()).args(["--name", &format!("m{index}"), "--data-dir"]);
                command.arg(format!("m{index}.data")).args(["--initial-cluster", &all.join(",")]);
                command.args(["--listen-peer-urls", &peer(index), "--initial-advertise-peer-urls", &peer(index)]);
                command.args(["--listen-client-urls", &client(index), "--advertise-client-urls", &client(index)]);
                if tls {
                    command.args(["--cert-file", "server.pem", "--key-file", "server.key"]);
                    command.args(["--trusted-ca-file", "ca.pem", "--client-cert-auth"]);
                }
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
            })
            .collect();
        let cluster = Self { endpoints: (0..size).map(client).collect(), directory, members, tls };
        cluster.wait();
        cluster
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut command = self.ctl_command();
        command.args(["endpoint", "health", "--command-timeout", "2s"]);
        while !command.output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "etcd did not start in {}", self.directory.path().display());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn ctl_command(&self) -> Command {
        let mut command = Command::new(tool("etcdctl"));
        command.current_dir(self.directory.path()).args(["--endpoints", &self.endpoints.join(",")]);
        if self.tls {
            command.args(["--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key"]);
        }
        command
    }

    pub fn ctl(&self, arguments: &[&str]) -> String {
        output(self.ctl_command().args(arguments))
    }

    pub fn stop(&mut self, index: usize) {
        let _ = self.members[index].kill();
        let _ = self.members[index].wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.stop(index);
        }
    }
}
