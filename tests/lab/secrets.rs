//! Vault in the cluster, with integrated storage: it holds the passwords of an application's database, and knows the identity
//! that backs up by its service account.

use crate::cluster::Cluster;
use crate::support::command;
use crate::{in_tree, output};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

pub struct Vault<'a> {
    cluster: &'a Cluster,
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
    /// Initialised and unsealed. `files` keeps what reaches it: its authority, and the token of who backs up.
    pub fn install(cluster: &'a Cluster, files: &Path) -> Self {
        cluster.lab("platform/vault", &[]);
        fs::create_dir_all(files).unwrap();
        fs::copy(cluster.state().join("secrets/vault/ca.crt"), files.join("ca.crt")).unwrap();
        cluster.kubectl(&["apply", "-k", &in_tree("../../deploy/base")]);
        let token = ["-n", "lifeboat", "create", "token", "lifeboat-backup", "--duration=1h"];
        fs::write(files.join("account"), cluster.kubectl(&token)).unwrap();
        Self { cluster }
    }

    #[track_caller]
    fn ask(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", "vault", "exec", "vault-0", "--", "/vault/vault"], arguments].concat())
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
