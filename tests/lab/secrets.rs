//! Vault in the cluster, with integrated storage: it holds the passwords of an application's database, and knows the identity
//! that backs up by its service account.

use crate::cluster::{Cluster, wait};
use crate::support::{command, tool};
use crate::{in_tree, output};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const IMAGE: &str = "lifeboat.lab/vault:1";
const PLUGIN: &str = "vault-plugin-auth-kubernetes";
const CONFIGURATION: &str = r#"
storage "raft" {
  path = "/vault/data"
  node_id = "vault-0"
}
listener "tcp" {
  address = "0.0.0.0:8200"
  tls_cert_file = "/etc/vault/tls/tls.crt"
  tls_key_file = "/etc/vault/tls/tls.key"
}
api_addr = "https://vault.vault.svc:8200"
cluster_addr = "https://127.0.0.1:8201"
plugin_directory = "/vault/plugins"
disable_mlock = true
"#;

/// What backs up may read snapshots, and nothing else.
const POLICY: &str = r#"policy=path "sys/storage/raft/snapshot" { capabilities = ["read"] }"#;

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
        load_image(cluster, files);
        certificate(files, &["vault.vault.svc"]);
        cluster.apply(&manifest(files));
        let vault = Self { cluster, files: files.to_owned() };
        let (keys, token) = vault.open();
        for (number, key) in (1..).zip(keys) {
            fs::write(files.join(format!("unseal-key-{number}")), key).unwrap();
        }
        fs::write(files.join("token-of-the-captured-vault"), token).unwrap();
        wait(Duration::from_mins(1), "an active Vault", || {
            vault.try_ask(&["secrets", "enable", "-path=secret", "-version=2", "kv"]).ok()
        });
        vault.admit(files);
        // A new engine is not ready at once.
        wait(Duration::from_mins(1), "the canary", || vault.try_ask(&["kv", "put", CANARY, "it=sings"]).ok());
        vault
    }

    /// Initialises and unseals it, and logs in. Gives its unseal keys and its token.
    fn open(&self) -> ([String; 2], String) {
        let made = wait(Duration::from_mins(2), "Vault", || {
            self.try_ask(&["operator", "init", "-key-shares=3", "-key-threshold=2", "-format=json"]).ok()
        });
        let made: Value = serde_json::from_str(&made).unwrap();
        let keys = [0, 1].map(|number| made["unseal_keys_b64"][number].as_str().unwrap().to_owned());
        for key in &keys {
            self.ask(&["operator", "unseal", key]);
        }
        let token = made["root_token"].as_str().unwrap().to_owned();
        self.ask(&["login", "-no-print", &token]);
        (keys, token)
    }

    /// Garbage in the place of its databases: its keys do not open it any more.
    pub fn corrupt(&self) {
        let uid = self.cluster.get(&["-n", "vault", "pod", "vault-0", "-o", "jsonpath={.metadata.uid}"]);
        let data = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/data");
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
        self.cluster.kubectl(&["-n", "vault", "delete", "pod", "vault-0", "--timeout=60s"]);
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

    /// Who backs up logs in by its service account.
    fn admit(&self, files: &Path) {
        let sum = output(command("sha256sum").arg(tool("vault")));
        self.ask(&["plugin", "register", &format!("-sha256={}", &sum[..64]), "auth", PLUGIN]);
        self.ask(&["auth", "enable", "-path=kubernetes", PLUGIN]);
        self.ask(&["write", "auth/kubernetes/config", "kubernetes_host=https://kubernetes.default.svc"]);
        self.ask(&["write", "sys/policies/acl/lifeboat-backup", POLICY]);
        let bound = ["bound_service_account_names=lifeboat-backup", "bound_service_account_namespaces=lifeboat"];
        let role = ["write", "auth/kubernetes/role/lifeboat-backup", "policies=lifeboat-backup"];
        self.ask(&[&role[..], &bound].concat());
        self.cluster.kubectl(&["apply", "-k", &in_tree("../../deploy/base")]);
        let token = ["-n", "lifeboat", "create", "token", "lifeboat-backup", "--duration=1h"];
        fs::write(files.join("account"), self.cluster.kubectl(&token)).unwrap();
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

/// The program, also under its plugin's name, and nothing else.
fn load_image(cluster: &Cluster, files: &Path) {
    let root = files.join("image");
    fs::create_dir_all(root.join("vault/plugins")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::copy(tool("vault"), root.join("vault/vault")).unwrap();
    fs::hard_link(root.join("vault/vault"), root.join("vault/plugins").join(PLUGIN)).unwrap();
    let archive = files.join("vault.tar");
    output(command(in_tree("image")).arg(&archive).arg(IMAGE).arg(&root));
    cluster.lab("load", &[archive.to_str().unwrap()]);
    fs::remove_dir_all(root).unwrap();
    fs::remove_file(archive).unwrap();
}

fn manifest(files: &Path) -> Value {
    let named = |name: &str| json!({ "name": name, "namespace": "vault" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "vault" } },
        certificate_secret(files, "vault", "vault-tls"),
        { "apiVersion": "v1", "kind": "ConfigMap", "metadata": named("vault"), "data": { "vault.hcl": CONFIGURATION } },
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": named("vault") },
        // It asks the cluster whose a token is.
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "vault" },
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator" },
          "subjects": [{ "kind": "ServiceAccount", "name": "vault", "namespace": "vault" }] },
        { "apiVersion": "v1", "kind": "Service", "metadata": named("vault"),
          "spec": { "selector": { "app": "vault" }, "ports": [{ "port": 8200 }], "publishNotReadyAddresses": true } },
        { "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": named("vault"), "spec": {
            "serviceName": "vault", "selector": { "matchLabels": { "app": "vault" } }, "template": {
                "metadata": { "labels": { "app": "vault" } },
                "spec": {
                    "serviceAccountName": "vault", "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "vault", "image": IMAGE, "imagePullPolicy": "Never",
                        "command": ["/vault/vault", "server", "-config=/etc/vault/configuration/vault.hcl", "-log-level=warn"],
                        "env": [
                            { "name": "VAULT_ADDR", "value": "https://127.0.0.1:8200" },
                            { "name": "VAULT_CACERT", "value": "/etc/vault/tls/ca.crt" },
                            { "name": "HOME", "value": "/tmp" },
                        ],
                        "volumeMounts": [
                            { "name": "configuration", "mountPath": "/etc/vault/configuration" },
                            { "name": "tls", "mountPath": "/etc/vault/tls" },
                            { "name": "data", "mountPath": "/vault/data" },
                        ] }],
                    "volumes": [
                        { "name": "configuration", "configMap": { "name": "vault" } },
                        { "name": "tls", "secret": { "secretName": "vault-tls" } },
                        { "name": "data", "emptyDir": {} },
                    ],
                },
            } } },
    ] })
}
