//! A Vault beside the live one, for the time that it takes to read something out of a snapshot.
//!
//! The program `vault` works on a new directory that nobody else may open, and is talked to over a socket in it. It is
//! started three times:
//! 1. as a fresh Vault, which takes the snapshot and then seals itself, since the snapshot's keys are not its own;
//! 2. in recovery mode, in which the captured Vault's seal opens the storage and nothing works yet. All that would
//!    reach out of here is taken from its tables: a Vault that wakes up with yesterday's data revokes the leases that ran
//!    out since, rotates passwords that are due, and writes to its audit devices, at the systems that the *live* Vault uses;
//! 3. as the captured Vault, with its key-value engines, and a root token that the unseal keys give.
//!
//! Where something else unseals (a KMS, another Vault), the second and third start have its `seal` block, and the recovery keys
//! stand in for unseal keys.
//!
//! Raft wants a port for its cluster, so there is one on loopback; it is not used. Values are never on the disk in the
//! clear. Whatever ends the run ends the program too, and removes the directory unless this process itself was killed.
//! Deliberately absent: namespaces.

use super::client::{Client, Health};
use super::restore::send;
use crate::entry::Supply;
use crate::exec::{self, ExecError, Running, causes};
use crate::secret;
use crate::source::http::{self, Failure};
use crate::source::{Context, SourceError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// How long one of its starts may take.
const SETTLE: Duration = Duration::from_mins(3);
const TICK: Duration = Duration::from_millis(100);
const PROGRAM: &str = "vault";
/// What stays of a captured Vault, by the table that it is in. None of it reaches out.
const ENGINES: &[&str] =
    &["cubbyhole", "generic", "identity", "kv", "ns_cubbyhole", "ns_identity", "ns_system", "system"];
const TABLES: [(&str, &[&str]); 6] = [
    ("core/mounts", ENGINES),
    ("core/local-mounts", ENGINES),
    ("core/auth", &["ns_token", "token"]),
    ("core/local-auth", &[]),
    ("core/audit", &[]),
    ("core/local-audit", &[]),
];
const WRONG_KEYS: &str =
    "name the captured Vault's unseal keys, as they were when the snapshot was taken, in restore.unsealKeys";
const WRONG_SEAL: &str = "the file of restore.sealConfiguration must lead to what unsealed the captured Vault, what that wants of the environment \
     must be there, and restore.unsealKeys must name the captured Vault's recovery keys";

/// What else a configuration may hold.
const BLOCKS: [&str; 9] = [
    "storage",
    "backend",
    "ha_storage",
    "ha_backend",
    "listener",
    "service_registration",
    "telemetry",
    "plugin_directory",
    "entropy",
];

/// What opens a snapshot.
pub(super) struct Opening {
    /// At least as many as the captured Vault asks for.
    pub keys: Vec<Zeroizing<String>>,
    /// The file with the `seal` block, where something else than the keys unseals it.
    pub seal: Option<PathBuf>,
}

/// The captured Vault at work, with a root token.
pub(super) struct Aside {
    /// Ends before its directory goes.
    server: Option<Running>,
    home: TempDir,
    pub client: Client,
    /// The program's.
    pub version: String,
}

impl Aside {
    /// Opens a snapshot whose Vault had the version `captured`.
    pub fn open(
        context: &Context,
        supply: &dyn Supply,
        captured: &str,
        opening: &Opening,
    ) -> Result<Self, SourceError> {
        let version = version(context)?;
        if number(&version) < number(captured) {
            return Err(broken(
                format!("the program {PROGRAM} is of version {version}, and the captured Vault was of {captured}"),
                "put one of that version or a later one on the PATH",
            ));
        }
        let home = exec::private_directory("lifeboat-vault-");
        let home = home.map_err(|error| {
            broken(format!("make a temporary directory: {error}"), "TMPDIR says where; it must hold the snapshot twice")
        })?;
        opening.seal.as_deref().map_or(Ok(()), only_a_seal)?;
        let client = Client::on_socket(&home.path().join("socket"), "the temporary Vault")?;
        let mut aside = Self { server: None, home, client, version };
        aside.configure()?;
        aside.start(context, vec![])?;
        aside.take(context, supply)?;
        let seal: Vec<_> = opening.seal.iter().map(|file| format!("-config={}", file.display())).collect();
        let opened = aside
            .start(context, [&seal[..], &["-recovery".to_owned()]].concat())
            .and_then(|()| aside.disarm(context, &opening.keys))
            .and_then(|()| aside.start(context, seal))
            .and_then(|()| aside.wake(context, opening));
        match opened {
            Err(SourceError::System { attempt, text, .. }) if opening.seal.is_some() => {
                Err(SourceError::System { attempt, text, need: WRONG_SEAL.into() })
            }
            opened => opened.map(|()| aside),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn configure(&self) -> Result<(), SourceError> {
        let text = json!({
            // With no other to wait for, it need not wait long to become active.
            "storage": {"raft": {"path": self.path("data"), "node_id": "lifeboat", "performance_multiplier": "1"}},
            "listener": [
                {"unix": {"address": self.path("socket")}},
                {"tcp": {"address": "127.0.0.1:0", "cluster_address": "127.0.0.1:0", "tls_disable": true}},
            ],
            "api_addr": "http://127.0.0.1", "cluster_addr": "https://127.0.0.1:0", "disable_mlock": true,
        });
        let write = || {
            std::fs::create_dir(self.path("data"))?;
            std::fs::write(self.path("vault.json"), text.to_string())
        };
        write().map_err(|error| broken(format!("write its configuration: {error}"), ""))
    }

    /// Starts the program, in place of the one that runs, and waits until it answers.
    fn start(&mut self, context: &Context, more: Vec<String>) -> Result<(), SourceError> {
        self.server = None;
        let _ = std::fs::remove_file(self.path("socket")); // the first time there is none
        let configuration = format!("-config={}", self.path("vault.json").display());
        let mut arguments = vec!["server".to_owned(), "-log-level=error".to_owned()];
        arguments.extend(more);
        // What is named last holds.
        arguments.push(configuration);
        let running = command(context, arguments, context.deadline).start_bound();
        self.server = Some(running.map_err(|error| failed(context, &error, ""))?);
        // In recovery mode it does not know this path; that it answers is enough.
        self.until(context, |client| {
            let asked = http::send(context, client.request(Method::GET, "sys/seal-status"))?;
            Ok(!matches!(asked, Err(Failure { status: None, .. })))
        })
    }

    /// Asks again and again, until it is so.
    fn until(
        &mut self,
        context: &Context,
        mut so: impl FnMut(&Client) -> Result<bool, SourceError>,
    ) -> Result<(), SourceError> {
        let begun = Instant::now();
        while !so(&self.client)? {
            let ended = self.server.as_mut().is_none_or(|server| server.has_ended().unwrap_or(true));
            if ended && let Some(mut server) = self.server.take() {
                context.go_on()?;
                let said = said(&mut server);
                return Err(match server.wait() {
                    Ok(()) => broken(format!("it ended at once{said}"), ""),
                    Err(error) => failed(context, &error, &said),
                });
            }
            if begun.elapsed() > SETTLE {
                return Err(broken(format!("it is not ready after {} s", SETTLE.as_secs()), ""));
            }
            context.sleep(TICK)?;
        }
        Ok(())
    }

    /// Fills it with the snapshot. It is sealed afterwards.
    fn take(&mut self, context: &Context, supply: &dyn Supply) -> Result<(), SourceError> {
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let made = self.put(context, "sys/init", &shares, "initialise")?;
        let text = |value: &Value| Zeroizing::new(value.as_str().unwrap_or_default().to_owned());
        let (key, token) = (text(&made["keys"][0]), text(&made["root_token"]));
        self.unseal(context, &[key])?;
        self.client.use_token(token);
        send(context, &self.client, supply, true)?;
        self.until(context, |client| is(context, client, |health| health.sealed))
    }

    /// Takes from the storage what would reach out.
    fn disarm(&mut self, context: &Context, keys: &[Zeroizing<String>]) -> Result<(), SourceError> {
        let token = self.token(context, "generate-recovery-token", keys)?;
        self.client.use_token(token);
        for (table, kept) in TABLES {
            self.strip(context, table, kept)?;
        }
        Ok(())
    }

    fn strip(&self, context: &Context, table: &str, kept: &[&str]) -> Result<(), SourceError> {
        let path = format!("sys/raw/{table}");
        let answer = match http::json(context, self.client.request(Method::GET, &path))? {
            Ok(answer) => answer,
            Err(Failure { status: Some(StatusCode::NOT_FOUND), .. }) if table != "core/mounts" => return Ok(()),
            Err(failure) => return Err(self.client.failed(&format!("read {table} in"), &failure, "")),
        };
        let mut rows: Value = answer["data"]["value"]
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
            .filter(|rows: &Value| rows.is_object())
            .ok_or_else(|| {
                let need = "nothing was started that could do harm; restore the whole snapshot into another Vault";
                broken(format!("{table} has a form that is not known"), need)
            })?;
        if let Some(entries) = rows["entries"].as_array_mut() {
            entries.retain(|entry| entry["type"].as_str().is_some_and(|kind| kept.contains(&kind)));
            self.put(context, &path, &json!({"value": rows.to_string()}), &format!("change {table} in"))?;
        }
        Ok(())
    }

    /// Makes it work.
    fn wake(&mut self, context: &Context, Opening { keys, seal }: &Opening) -> Result<(), SourceError> {
        self.client.use_token(Zeroizing::default());
        self.unseal(context, if seal.is_some() { &[] } else { keys })?;
        let token = self.token(context, "generate-root", keys)?;
        self.client.use_token(token);
        Ok(())
    }

    /// Waits only, without keys.
    fn unseal(&mut self, context: &Context, keys: &[Zeroizing<String>]) -> Result<(), SourceError> {
        for key in keys {
            let answer =
                http::json(context, self.client.request(Method::PUT, "sys/unseal").json(&json!({"key": **key})))?;
            let answer = answer.map_err(|failure| self.client.failed("unseal", &failure, WRONG_KEYS))?;
            if answer["sealed"] == false {
                break;
            }
        }
        self.until(context, |client| is(context, client, |health| !health.sealed && !health.standby))
    }

    /// A token that the unseal keys give (`sys/generate-root`, `sys/generate-recovery-token`): it comes combined with a
    /// one-time pad.
    fn token(
        &self,
        context: &Context,
        kind: &str,
        keys: &[Zeroizing<String>],
    ) -> Result<Zeroizing<String>, SourceError> {
        let begun = self.put(context, &format!("sys/{kind}/attempt"), &json!({}), "open the snapshot in")?;
        let pad = begun["otp"].as_str().unwrap_or_default().as_bytes();
        for key in keys {
            let body = json!({"key": **key, "nonce": begun["nonce"]});
            let request = self.client.request(Method::PUT, &format!("sys/{kind}/update")).json(&body);
            let answer = http::json(context, request)?;
            let answer = answer.map_err(|failure| self.client.failed("open the snapshot in", &failure, WRONG_KEYS))?;
            if answer["complete"] != true {
                continue;
            }
            let token = STANDARD_NO_PAD.decode(answer["encoded_token"].as_str().unwrap_or_default());
            let token: Vec<_> = token.unwrap_or_default().iter().zip(pad).map(|(a, b)| a ^ b).collect();
            return match String::from_utf8(token) {
                Ok(token) if !token.is_empty() => Ok(Zeroizing::new(token)),
                _ => Err(broken("it gave no token that can be read".into(), "")),
            };
        }
        Err(broken(format!("it asks for more than {} unseal keys", keys.len()), WRONG_KEYS))
    }

    fn put(&self, context: &Context, path: &str, body: &Value, attempt: &str) -> Result<Value, SourceError> {
        let answer = http::json(context, self.client.request(Method::PUT, path).json(body))?;
        answer.map_err(|failure| self.client.failed(attempt, &failure, ""))
    }
}

/// A whole configuration of the live Vault would have the temporary one open the live one's storage, or take its name.
fn only_a_seal(file: &Path) -> Result<(), SourceError> {
    let text = std::fs::read_to_string(file).map(Zeroizing::new);
    let text = text.map_err(|error| broken(format!("read {}: {error}", file.display()), WRONG_SEAL))?;
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    match words.into_iter().find(|word| BLOCKS.contains(word)) {
        None => Ok(()),
        Some(other) => {
            let text = format!("{} speaks of {other}, and only the seal block belongs into it", file.display());
            Err(broken(text, WRONG_SEAL))
        }
    }
}

/// Whether it is in that state by now. While it changes, it may not answer.
fn is(context: &Context, client: &Client, so: impl Fn(&Health) -> bool) -> Result<bool, SourceError> {
    match client.health(context) {
        Ok(health) => Ok(so(&health)),
        Err(stop @ (SourceError::Cancelled | SourceError::Deadline)) => Err(stop),
        Err(_) => Ok(false),
    }
}

fn command(context: &Context, arguments: Vec<String>, deadline: Instant) -> exec::Command {
    // What would overrule the configuration.
    let unset = ["VAULT_API_ADDR", "VAULT_CLUSTER_ADDR", "VAULT_RAFT_PATH", "VAULT_RAFT_NODE_ID", "VAULT_SEAL_TYPE"];
    let cancel = context.cancel.clone();
    exec::Command {
        program: PROGRAM.into(),
        inherits: exec::Inherits::AllBut(secret::named()),
        arguments,
        env: unset.map(|name| (name.to_owned(), Zeroizing::default())).into(),
        deadline,
        stop: Box::new(move || cancel.is_cancelled()),
    }
}

/// What the program says of itself: `Vault v1.19.0 (…), built …`.
fn version(context: &Context) -> Result<String, SourceError> {
    let deadline = context.deadline.min(Instant::now() + Duration::from_secs(30));
    let said = command(context, vec!["version".into()], deadline).run(64 << 10);
    let said = String::from_utf8_lossy(&said.map_err(|error| failed(context, &error, ""))?).into_owned();
    let version = said.split_whitespace().find_map(|word| word.strip_prefix('v'));
    let version = version.filter(|version| number(version).is_some());
    let unknown = || broken(format!("{PROGRAM} version says {:?}", said.trim()), "is it HashiCorp's Vault?");
    version.map(str::to_owned).ok_or_else(unknown)
}

/// `1.19.0+ent` → 1, 19, 0.
fn number(version: &str) -> Option<[u32; 3]> {
    let numbers = version.split(|c: char| !c.is_ascii_digit()).take(3);
    numbers.filter_map(|number| number.parse().ok()).collect::<Vec<u32>>().try_into().ok()
}

fn broken(text: String, need: &str) -> SourceError {
    SourceError::System { attempt: "open the snapshot in a temporary Vault".into(), text, need: need.to_owned() }
}

/// What is on its standard output, where it complains of its configuration.
fn said(server: &mut Running) -> String {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        all.extend_from_slice(&buffer[..length]);
    }
    match String::from_utf8_lossy(&all).trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

fn failed(context: &Context, error: &ExecError, said: &str) -> SourceError {
    if let Err(ended) = context.go_on() {
        return ended;
    }
    let text = causes(error.to_string(), std::error::Error::source(error)) + said;
    // Some of it is the program's.
    let text = text.replace(|c: char| c.is_control() && c != '\n', " ");
    let need = match error {
        ExecError::Start { .. } => "one path is read by Vault's own program: install the captured Vault's version",
        _ => "",
    };
    broken(text, need)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_all_that_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let seal = "# of vault-0\nseal \"awskms\" {\n  region = \"eu-central-1\"\n  kms_key_id = \"1\"\n}\n";
        std::fs::write(file.path(), seal).unwrap();
        only_a_seal(file.path()).unwrap();
        for more in
            ["storage \"raft\" { path = \"/opt/vault/data\" }", "{\"listener\": {}}", "seal \"pkcs11\" {} telemetry {}"]
        {
            std::fs::write(file.path(), format!("{seal}{more}")).unwrap();
            assert!(only_a_seal(file.path()).unwrap_err().to_string().contains("only the seal block"), "{more}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(number("1.9.10") < number("1.19.0"));
        assert_eq!(number("1.19.0+ent"), number("1.19.0"));
        assert_eq!(number("dev"), None);
    }
}
