//! Real Vaults with integrated storage.

use super::{Server, command, free_port, start, tool};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::fs;

/// The root token and three unseal keys, or recovery keys, two of which open it.
pub struct Vault {
    pub server: Server,
    pub token: String,
    pub keys: Vec<String>,
}

/// One that is neither initialised nor unsealed.
pub fn vault() -> Server {
    vault_with("")
}

fn vault_with(more: &str) -> Server {
    start("vault", "v1/sys/health?uninitcode=200&sealedcode=200", |command, dir, port| {
        let text = format!(
            "storage \"raft\" {{\n  path = \"data\"\n  node_id = \"one\"\n  performance_multiplier = 1\n}}\n\
             listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  tls_disable = true\n}}\n\
             api_addr = \"http://127.0.0.1:{port}\"\ncluster_addr = \"https://127.0.0.1:{}\"\ndisable_mlock = true\n{more}",
            free_port()
        );
        fs::write(dir.join("vault.hcl"), text).unwrap();
        command.args(["server", "-config=vault.hcl", "-log-level=warn"]);
    })
}

impl Vault {
    /// Initialised and unsealed, with secrets at `secret/` and encryption as a service at `transit/`.
    pub async fn start() -> Self {
        let mut vault = Self { server: vault(), token: String::new(), keys: Vec::new() };
        vault.initialise("secret", "keys").await;
        for key in &vault.keys[..2] {
            vault.put("sys/unseal", json!({"key": key})).await;
        }
        vault.fill().await
    }

    /// The same, with that `seal` block.
    pub async fn start_with(seal: &str) -> Self {
        let mut vault = Self { server: vault_with(seal), token: String::new(), keys: Vec::new() };
        vault.initialise("recovery", "recovery_keys").await;
        vault.fill().await
    }

    async fn initialise(&mut self, kind: &str, keys: &str) {
        let shares = json!({format!("{kind}_shares"): 3, format!("{kind}_threshold"): 2});
        let made = self.put("sys/init", shares).await;
        self.token = made["root_token"].as_str().unwrap().into();
        self.keys = made[keys].as_array().unwrap().iter().map(|key| key.as_str().unwrap().into()).collect();
    }

    async fn fill(self) -> Self {
        let vault = self;
        // A leader needs a moment to become active.
        while vault.call(Method::GET, "sys/health", None).await.0 != StatusCode::OK {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        vault.put("sys/mounts/secret", json!({"type": "kv", "options": {"version": "2"}})).await;
        vault.put("sys/mounts/transit", json!({"type": "transit"})).await;
        // Mounting upgrades the secrets engine in the background.
        while vault.call(Method::POST, "secret/data/ready", Some(json!({"data": {"is": "yes"}}))).await.0
            != StatusCode::OK
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        vault
    }

    /// The `seal` block of a Vault that this one unseals, by a key of that name.
    pub async fn seal_for_another(&self, key: &str) -> String {
        self.put(&format!("transit/keys/{key}"), json!({})).await;
        format!(
            "seal \"transit\" {{\n  address = \"{}\"\n  token = \"{}\"\n  disable_renewal = \"true\"\n  key_name = \"{key}\"\n  \
             mount_path = \"transit/\"\n}}\n",
            self.server.url(),
            self.token
        )
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = reqwest::Client::new().request(method, format!("{}/v1/{path}", self.server.url()));
        if !self.token.is_empty() {
            request = request.header("X-Vault-Token", &self.token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub async fn put(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(Method::PUT, path, Some(body)).await;
        assert!(status.is_success(), "PUT {path}: {status} {answer}");
        answer
    }

    pub async fn write(&self, name: &str, value: &str) {
        self.put(&format!("secret/data/{name}"), json!({"data": {"value": value}})).await;
    }

    /// A secret's value, if there is one.
    pub async fn read(&self, name: &str) -> Option<String> {
        let (_, answer) = self.call(Method::GET, &format!("secret/data/{name}"), None).await;
        answer["data"]["data"]["value"].as_str().map(str::to_owned)
    }

    /// A token with a policy of its own.
    pub async fn token_that_may(&self, capability: &str) -> String {
        let policy = format!("path \"sys/storage/raft/snapshot\" {{ capabilities = [\"{capability}\"] }}");
        self.put(&format!("sys/policies/acl/{capability}"), json!({"policy": policy})).await;
        let made = self.put("auth/token/create", json!({"policies": [capability]})).await;
        made["auth"]["client_token"].as_str().unwrap().into()
    }

    /// Runs Vault's own command line on this server.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut vault = command(tool("vault"));
        vault.args(arguments).env("VAULT_ADDR", self.server.url()).env("VAULT_TOKEN", &self.token);
        let output = vault.current_dir(self.server.dir.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
