//! A real Kubernetes control plane on loopback: etcd, API server, controller manager; no nodes.
#![expect(clippy::disallowed_methods, reason = "the tests start their servers themselves")]

use crate::support::{free_ports, output, tool};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Server {
    pub directory: TempDir,
    /// By name, each under a shell that ends it when this process ends or lets go of it.
    components: Vec<(&'static str, Child)>,
}

/// `ca.pem`, `server.pem` and `server.key`, `accounts.key` and `accounts.pub`.
fn certificates(directory: &Path) {
    let openssl = |arguments: &str| {
        output(Command::new("openssl").args(arguments.split(' ')).current_dir(directory));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=ca -keyout ca.key -out ca.pem"));
    std::fs::write(directory.join("server.ext"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n").unwrap();
    openssl(&format!("req {key} -subj /CN=server -keyout server.key -out server.csr"));
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem",
    );
    openssl("genrsa -out accounts.key 2048");
    openssl("rsa -in accounts.key -pubout -out accounts.pub");
}

impl Server {
    pub fn start() -> Self {
        let directory = TempDir::new().unwrap();
        certificates(directory.path());
        let servers = tool("kubernetes").canonicalize().unwrap();
        let kubectl = servers.with_file_name("kubectl");
        let programs = ["etcd", "kube-apiserver", "kube-controller-manager"].map(|name| (name, &servers));
        for (name, binary) in programs.into_iter().chain([("kubectl", &kubectl)]) {
            std::os::unix::fs::symlink(binary, directory.path().join(name)).unwrap();
        }
        // Token, user, uid, groups.
        let users = "admin-token,admin,1,system:masters\nsmall-token,small,2\n";
        std::fs::write(directory.path().join("tokens.csv"), users).unwrap();
        let [client, peer, port, controllers] = free_ports();
        let mut server = Self { directory, components: Vec::new() };
        server.kubeconfig("admin", port);
        server.kubeconfig("small", port);
        server.kubeconfig("wrong", port);
        server.run(
            "etcd",
            &format!(
                "--data-dir data --unsafe-no-fsync --listen-client-urls http://127.0.0.1:{client} \
                 --advertise-client-urls http://127.0.0.1:{client} --listen-peer-urls http://127.0.0.1:{peer}"
            ),
        );
        server.run(
            "kube-apiserver",
            &format!(
                "--etcd-servers http://127.0.0.1:{client} --bind-address 127.0.0.1 --secure-port {port} \
                 --endpoint-reconciler-type none --service-cluster-ip-range 10.209.0.0/16 \
                 --tls-cert-file server.pem --tls-private-key-file server.key --token-auth-file tokens.csv \
                 --authorization-mode RBAC --service-account-issuer https://lifeboat.test \
                 --service-account-key-file accounts.pub --service-account-signing-key-file accounts.key"
            ),
        );
        server.until("the API server is ready", || server.try_kubectl(&["get", "--raw", "/readyz"], "").is_ok());
        server.run(
            "kube-controller-manager",
            &format!(
                "--kubeconfig admin.conf --leader-elect=false --bind-address 127.0.0.1 --secure-port {controllers} \
                 --root-ca-file ca.pem --service-account-private-key-file accounts.key --pvclaimbinder-sync-period 1s \
                 --kube-api-qps 200 --kube-api-burst 400 --namespace-sync-period 1s"
            ),
        );
        server.until("the default service account is there", || {
            server.try_kubectl(&["get", "serviceaccount", "default"], "").is_ok()
        });
        server
    }

    /// Starts the program of that name in the server's directory.
    pub fn run(&mut self, name: &'static str, arguments: &str) {
        let log = std::fs::File::create(self.directory.path().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", r#""$@" </dev/null & cat >/dev/null; kill -KILL $!"#, "-"]);
        command.arg(format!("./{name}")).args(arguments.split_whitespace()).current_dir(self.directory.path());
        let child = command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.components.push((name, child));
    }

    pub fn kill(&mut self, name: &str) {
        let index = self.components.iter().position(|(component, _)| *component == name).unwrap();
        let (_, mut child) = self.components.remove(index);
        drop(child.stdin.take());
        let _ = child.wait();
    }

    /// `<user>.conf`.
    fn kubeconfig(&self, user: &str, port: u16) {
        let path = self.directory.path().join(format!("{user}.conf"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{token: {user}-token}}}}]\n"
        );
        std::fs::write(path, text).unwrap();
    }

    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while !done() {
            assert!(Instant::now() < deadline, "{what}: not in time, in {}", self.directory.path().display());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(self.directory.path().join("kubectl"));
        command.current_dir(self.directory.path()).args(["--kubeconfig", "admin.conf"]).args(arguments);
        command.env("HOME", self.directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // it may not read
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, "").unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// Waits until custom objects of this definition can be made. (`kubectl wait` fails on one that has no status yet.)
    pub fn until_established(&self, definition: &str) {
        let definition = format!("crd/{definition}");
        self.until("the definition is established", || {
            self.try_kubectl(&["wait", "--for=condition=Established", &definition], "").is_ok()
        });
    }

    pub fn apply(&self, manifest: &str) {
        let done = self.try_kubectl(&["apply", "--server-side", "-f", "-"], manifest);
        done.unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (_, child) in self.components.iter_mut().rev() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
