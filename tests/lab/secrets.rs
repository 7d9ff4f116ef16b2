//! Vault in the cluster, with integrated storage: it holds the passwords of an application's database, and knows the identity
//! that backs up by its service account.

use crate::cluster::{Cluster, wait};
use crate::support::command;
use crate::{in_tree, output};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What tells that it is the same again.
const CANARY: &str = "secret/lifeboat-canary";

pub struct Vault<'a> {
    cluster: &'a Cluster,
    /// Keys, tokens, its authority.
    files: PathBuf,
}

/// `ca.crt`, and a certificate of these names with its key, `tls.crt` and `tls.key`.
pub fn certificate(directory: &Path, names: &[&str]) {
    fs::create_dir_all(directory).unwrap();
    let all: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
    fs::write(directory.join("names"), format!("subjectAltName={},IP:127.0.0.1\n", all.join(","))).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for arguments in [
        format!("req -x509 {key} -days 2 -subj /CN=ca -keyout ca.key -out ca.crt"),
        format!("req {key} -subj /CN={} -keyout tls.key -out tls.csr", names[0]),
        "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out tls.crt".into(),
    ] {
        output(command("openssl").args(arguments.split(' ')).current_dir(directory));
    }
}

/// The Secret that [`certificate`] makes of a directory.
pub fn certificate_secret(directory: &Path, namespace: &str, name: &str) -> Value {
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let data = json!({ "tls.crt": read("tls.crt"), "tls.key": read("tls.key"), "ca.crt": read("ca.crt") });
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": namespace }, "stringData": data })
}

impl<'a> Vault<'a> {
    /// Initialised and unsealed. `files` keeps what reaches it, its authority and the token of who backs up; and what its
    /// holders keep.
    pub fn install(cluster: &'a Cluster, files: &Path) -> Self {
        cluster.lab("platform/vault", &[]);
        let vault = Self { cluster, files: files.to_owned() };
        fs::create_dir_all(files).unwrap();
        fs::copy(cluster.state().join("secrets/vault/ca.crt"), files.join("ca.crt")).unwrap();
        let kept = fs::read_to_string(cluster.state().join("safe/vault.json")).unwrap();
        let (keys, token) = opened_by(&kept);
        vault.ask(&["login", "-no-print", &token]);
        for (number, key) in (1..).zip(keys) {
            fs::write(files.join(format!("unseal-key-{number}")), key).unwrap();
        }
        fs::write(files.join("token-of-the-captured-vault"), token).unwrap();
        cluster.kubectl(&["apply", "-k", &in_tree("../../deploy/base")]);
        let token = ["-n", "lifeboat", "create", "token", "lifeboat-backup", "--duration=1h"];
        fs::write(files.join("account"), cluster.kubectl(&token)).unwrap();
        // A new engine is not ready at once.
        wait(Duration::from_mins(1), "the canary", || vault.try_ask(&["kv", "put", CANARY, "it=sings"]).ok());
        vault
    }

    /// One that is there. `files` has its holders' keys.
    pub fn at(cluster: &'a Cluster, files: &Path) -> Self {
        Self { cluster, files: files.to_owned() }
    }

    /// Initialises and unseals it, and logs in. Gives its unseal keys and its token.
    fn open(&self) -> ([String; 2], String) {
        let made = wait(Duration::from_mins(2), "Vault", || {
            self.try_ask(&["operator", "init", "-key-shares=3", "-key-threshold=2", "-format=json"]).ok()
        });
        let (keys, token) = opened_by(&made);
        for key in &keys {
            self.ask(&["operator", "unseal", key]);
        }
        self.ask(&["login", "-no-print", &token]);
        (keys, token)
    }

    /// Garbage in the place of its databases: its keys do not open it any more.
    pub fn corrupt(&self) {
        let data = self.volume();
        let garbage =
            "for file; do dd if=/dev/urandom of=$file bs=4k count=$(($(stat -c %s $file) / 4096)) conv=notrunc; done";
        let files = [format!("{data}/vault.db"), format!("{data}/raft/raft.db")];
        self.cluster.lab("node", &["sh", "-euc", garbage, "garbage", &files[0], &files[1]]);
        // It may fall over what it finds there.
        let _ = self.try_ask(&["operator", "seal"]);
        for key in ["unseal-key-1", "unseal-key-2"] {
            let _ = self.try_ask(&["operator", "unseal", &fs::read_to_string(self.files.join(key)).unwrap()]);
        }
        assert!(self.try_ask(&["kv", "get", CANARY]).is_err(), "garbage does not harm it");
    }

    /// An empty one in its place, initialised and unsealed with keys of its own.
    pub fn replace(&self) {
        let scale = |replicas: &str| self.cluster.kubectl(&["-n", "vault", "scale", "statefulset/vault", replicas]);
        scale("--replicas=0");
        self.cluster.kubectl(&["-n", "vault", "wait", "--for=delete", "pod/vault-0", "--timeout=60s"]);
        output(command("find").args([&self.volume(), "-mindepth", "1", "-delete"]));
        scale("--replicas=1");
        let (_, token) = self.open();
        fs::write(self.files.join("token-of-the-fresh-vault"), token).unwrap();
    }

    /// It is the captured one, by its holders' keys.
    pub fn sings(&self) {
        self.ask(&["login", "-no-print", &fs::read_to_string(self.files.join("token-of-the-captured-vault")).unwrap()]);
        assert_eq!(self.read(CANARY, "it"), "sings");
        self.ask(&["operator", "seal"]);
        for key in ["unseal-key-1", "unseal-key-2"] {
            self.ask(&["operator", "unseal", &fs::read_to_string(self.files.join(key)).unwrap()]);
        }
        wait(Duration::from_mins(1), "an active Vault", || self.try_ask(&["kv", "get", CANARY]).ok());
    }

    fn volume(&self) -> String {
        self.cluster.state().join("volumes/vault/data").display().to_string()
    }

    fn try_ask(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.try_kubectl(&[&["-n", "vault", "exec", "vault-0", "--", "/vault/vault"], arguments].concat())
    }

    #[track_caller]
    fn ask(&self, arguments: &[&str]) -> String {
        self.try_ask(arguments).unwrap_or_else(|error| panic!("vault {arguments:?}: {error}"))
    }

    pub fn write(&self, path: &str, values: &[(&str, &str)]) {
        let values: Vec<_> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        self.ask(&[&["kv", "put", path], &values[..]].concat());
    }

    pub fn read(&self, path: &str, name: &str) -> String {
        self.ask(&["kv", "get", &format!("-field={name}"), path]).trim().to_owned()
    }
}

/// Two unseal keys and the root token, of what `vault operator init` has said.
fn opened_by(said: &str) -> ([String; 2], String) {
    let said: Value = serde_json::from_str(said).unwrap();
    let keys = [0, 1].map(|number| said["unseal_keys_b64"][number].as_str().unwrap().to_owned());
    (keys, said["root_token"].as_str().unwrap().to_owned())
}
