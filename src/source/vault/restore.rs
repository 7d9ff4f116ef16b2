//! Sending a snapshot back to a Vault, fresh or in use.
//!
//! Order: everything that can be found out beforehand is (the server unsealed, the right to restore, whether the captured
//! Vault's unseal method is at hand); the snapshot is sent; the server is unsealed with the captured Vault's keys; then it
//! is asked what it holds. A server that is sealed may have been left so by a restore that was broken off: it is unsealed with
//! those keys first. If they open it, it is the captured one, and the document's token of that opens it where the fresh one's
//! does not any more.

use super::client::{Client, Health, SNAPSHOT, SNAPSHOT_FORCE, Seal};
use super::{SEAL, SHARES, Snapshot, Spec, THRESHOLD};
use crate::entry::{Facts, Problem, Supply};
use crate::secret::SecretRef;
use crate::source::target::{Action, Applied, Change, Options, Plan, Target};
use crate::source::{Context, Native as _, Say, SourceError, http};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a server may take to come up again with what was restored.
const SETTLE: Duration = Duration::from_mins(3);
const TICK: Duration = Duration::from_millis(500);
/// So many leases are looked at, and so many of the orphaned are named.
const MAX_LEASES: usize = 1_000;
const NAMED_LEASES: usize = 20;
pub(super) const SHAMIR: &str = "shamir";

/// What is needed of the *captured* Vault to use what was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restore {
    /// Its unseal keys, at least as many as its threshold. Where a KMS or another Vault unseals, all of it comes back without
    /// them, and single secrets need its recovery keys here.
    #[serde(default)]
    pub unseal_keys: Vec<SecretRef>,
    /// A file with the `seal` block of its configuration, for single secrets where a KMS or another Vault unseals.
    pub seal_configuration: Option<PathBuf>,
    /// A token of it, for the checks afterwards; without one, `auth` is tried.
    pub token: Option<SecretRef>,
    /// A path of it whose data must be readable afterwards (`secret/data/canary`).
    pub canary: Option<String>,
}

impl Restore {
    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if let Some(file) = &mut self.seal_configuration {
            *file = directory.join(&*file);
        }
        if self.canary.as_deref().is_some_and(|path| path.is_empty() || path.starts_with('/')) {
            say("restore.canary", "expected an API path such as secret/data/canary");
        }
    }
}

pub struct Restoring {
    spec: Spec,
    options: Options,
    /// Made by the plan.
    ready: Option<Ready>,
}

struct Ready {
    client: Client,
    keys: Vec<Zeroizing<String>>,
    sealed: bool,
    foreign: bool,
    orphans: Vec<String>,
}

impl Restoring {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options, ready: None }
    }
}

pub(super) fn detail<'a>(facts: &'a Facts, name: &str) -> &'a str {
    facts.details.get(name).map_or("", String::as_str)
}

/// The unseal keys that the document names, if they are as many as the captured Vault asks for to open `what`.
pub(super) fn unseal_keys(
    spec: &Spec,
    client: &Client,
    facts: &Facts,
    attempt: &str,
    what: &str,
) -> Result<Vec<Zeroizing<String>>, SourceError> {
    let keys = spec.restore.unseal_keys.iter().map(SecretRef::read).collect::<Result<Vec<_>, _>>()?;
    let threshold = detail(facts, THRESHOLD).parse::<usize>().unwrap_or(1);
    if keys.len() >= threshold {
        return Ok(keys);
    }
    let (shares, named) = (detail(facts, SHARES), keys.len());
    let text = format!(
        "{what} opens with {threshold} of the captured Vault's {shares} unseal keys, and the document names {named}"
    );
    Err(client.error(attempt, text, "name them in restore.unsealKeys of the Source document"))
}

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let facts = supply.facts();
        let mut client = Client::new(&self.spec)?;
        let health = client.health(context)?;
        if let (true, true, Some(captured)) = (health.initialized, health.sealed, &facts.system)
            && !self.spec.restore.unseal_keys.is_empty()
            // One that something else unseals is not opened by keys.
            && let seal = client.seal(context)?
            && seal.kind == SHAMIR
        {
            let keys = self.keys(&client, facts, &seal, true)?;
            let about = "it is sealed: it would be unsealed with the captured Vault's keys first, which open it if a restore into \
                         it was broken off";
            self.ready = Some(Ready { client, keys, sealed: true, foreign: false, orphans: Vec::new() });
            let changes = vec![Change { what: format!("all data of the Vault {captured}"), action: Action::Replace }];
            return Ok(Plan { target: captured.clone(), about: vec![about.into()], changes });
        }
        health.must_be_unsealed(&client)?;
        let captured = facts.system.is_some() && facts.system == health.cluster_id;
        self.enter(context, &mut client, &health, captured)?;
        let target = health.cluster_id.clone().unwrap_or_else(|| client.address().to_owned());
        let foreign = facts.system.as_ref() != Some(&target);
        if foreign && !self.options.foreign {
            let captured = facts.system.as_deref().unwrap_or("unknown");
            let text = format!("it is cluster {target}, and the snapshot is of cluster {captured}");
            let need = "if this Vault is to become that one (a fresh server, a standby site), add --foreign";
            return Err(client.error("restore into", text, need));
        }
        let seal = client.seal(context)?;
        let keys = self.keys(&client, facts, &seal, foreign)?;
        let moment = facts.recovery_point_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let captured = moment.map(|moment| moment.to_string()).unwrap_or_default();
        let orphans = if foreign { Ok(Vec::new()) } else { leases_since(context, &client, facts)? };
        let about = vec![
            format!("{} at {}, cluster {target}", health.describe(), client.address()),
            format!(
                "the snapshot: Vault {}, raft index {}, {captured}",
                detail(facts, "version"),
                detail(facts, "index")
            ),
            match keys.len() {
                0 => format!("it unseals by itself ({})", seal.kind),
                number => format!("{number} unseal keys of the captured Vault are at hand"),
            },
            match &orphans {
                Ok(orphans) => format!("{} younger than the snapshot will be orphaned", count(orphans.len())),
                Err(why) => format!("leases younger than the snapshot cannot be listed: {why}"),
            },
        ];
        self.ready = Some(Ready { client, keys, sealed: false, foreign, orphans: orphans.unwrap_or_default() });
        let changes = vec![Change { what: format!("all data of the Vault {target}"), action: Action::Replace }];
        Ok(Plan { target, about, changes })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        if let Some(Ready { client, keys, sealed: true, .. }) = &self.ready {
            settle(context, client, keys)?;
            let now = self.plan(context, supply)?.target;
            if now != plan.target {
                return Err(SourceError::System {
                    attempt: "restore a Vault".into(),
                    text: format!("it is cluster {now}, and not {} as its keys seemed to say", plan.target),
                    need: "look at it, and begin again".into(),
                });
            }
        }
        let ready = self.ready.take();
        let Some(Ready { mut client, keys, foreign, orphans, .. }) = ready else {
            return Err(SourceError::System {
                attempt: "restore a Vault".into(),
                text: "it was not planned".into(),
                need: String::new(),
            });
        };
        send(context, &client, supply, foreign)?;
        let health = settle(context, &client, &keys)?;
        let mut applied = Applied { changes: plan.changes.clone(), ..Applied::default() };
        applied.checked.push(format!("{}, cluster {}", health.describe(), health.cluster_id.unwrap_or_default()));
        self.examine(context, &mut client, &mut applied)?;
        if !orphans.is_empty() {
            let named: Vec<_> = orphans.iter().take(NAMED_LEASES).map(String::as_str).collect();
            let more = orphans.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            applied.to_do.push(format!(
                "revoke at their systems the credentials of leases that this Vault knows no more: {}{more}",
                named.join(", ")
            ));
        }
        Ok(applied)
    }
}

fn count(leases: usize) -> String {
    match leases {
        1 => "1 lease".into(),
        MAX_LEASES.. => format!("{MAX_LEASES} or more leases"),
        other => format!("{other} leases"),
    }
}

impl Restoring {
    /// Logs in, and sees that it may restore.
    fn enter(
        &self,
        context: &Context,
        client: &mut Client,
        health: &Health,
        captured: bool,
    ) -> Result<(), SourceError> {
        let entered = client.log_in(context, &self.spec.auth);
        let entered = entered.and_then(|()| client.follow_leader(context, &self.spec, health));
        match (entered.and_then(|()| client.must_be_allowed(context, "update")), &self.spec.restore.token) {
            (Err(SourceError::Cancelled), _) => Err(SourceError::Cancelled),
            (Err(_), Some(token)) if captured => {
                client.use_token(token.read()?);
                client.follow_leader(context, &self.spec, health)?;
                client.must_be_allowed(context, "update")
            }
            (entered, _) => entered,
        }
    }

    /// The keys that will open what is restored; none where something else unseals.
    fn keys(
        &self,
        client: &Client,
        facts: &Facts,
        seal: &Seal,
        foreign: bool,
    ) -> Result<Vec<Zeroizing<String>>, SourceError> {
        let captured = detail(facts, SEAL);
        if seal.kind != captured && !captured.is_empty() {
            let text = format!("it is sealed by {}, and the captured Vault was by {captured}", seal.kind);
            let need = "configure the target with the captured Vault's seal; otherwise it never unseals";
            return Err(client.error("restore into", text, need));
        }
        // A sealed Vault that unseals by itself has just shown that its KMS answers.
        if seal.kind != SHAMIR {
            return Ok(Vec::new());
        }
        // The same Vault stays unsealed: its keys did not change with its data, unless it was rekeyed since.
        if !foreign && self.spec.restore.unseal_keys.is_empty() {
            return Ok(Vec::new());
        }
        unseal_keys(&self.spec, client, facts, "restore into", "what is restored")
    }

    /// Asks the restored Vault what it holds.
    fn examine(&self, context: &Context, client: &mut Client, applied: &mut Applied) -> Result<(), SourceError> {
        let logged_in = match &self.spec.restore.token {
            Some(token) => token.read().map(|token| client.use_token(token)).map_err(SourceError::from),
            None => client.log_in(context, &self.spec.auth),
        };
        if let Err(error) = logged_in {
            applied.problems.push(problem(&error));
            applied.to_do.push("log in with a role of the captured Vault, and look at its engines".into());
            return Ok(());
        }
        match http::json(context, client.request(Method::GET, "sys/mounts"))? {
            Ok(mounts) => {
                let mounts = mounts["data"].as_object().or_else(|| mounts.as_object());
                let names: Vec<_> = mounts.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                applied.checked.push(format!("engines: {}", names.join(", ")));
            }
            Err(failure) if failure.is_denied() => {
                let text = "list the engines, with a token of the captured Vault (restore.token): this login may not";
                applied.to_do.push(text.into());
            }
            Err(failure) => applied.problems.push(problem(&client.failed("list the engines of", &failure, ""))),
        }
        if let Some(path) = &self.spec.restore.canary {
            match http::json(context, client.request(Method::GET, path))? {
                Ok(_) => applied.checked.push(format!("{path} is readable")),
                Err(failure) => {
                    applied.problems.push(problem(&client.failed(&format!("read {path} of"), &failure, "")));
                }
            }
        }
        Ok(())
    }
}

fn problem(error: &SourceError) -> Problem {
    Problem { path: Vec::new(), text: error.to_string() }
}

/// Uploads the snapshot. Whoever reads the repository and whoever sends work at the same time.
pub(super) fn send(context: &Context, client: &Client, supply: &dyn Supply, foreign: bool) -> Result<(), SourceError> {
    let (upload, body) = http::Upload::new();
    let path = if foreign { SNAPSHOT_FORCE } else { SNAPSHOT };
    let request = client.upload(path, body);
    let world = context.clone();
    let (written, answer) = std::thread::scope(|scope| {
        let sending = scope.spawn(move || http::send(&world, request));
        let mut out = io::BufWriter::with_capacity(256 << 10, upload);
        let written = Snapshot.write(supply, &mut out).and_then(|()| out.flush());
        let (upload, _) = out.into_parts();
        let written = match written {
            Ok(()) => upload.finish(),
            Err(error) => {
                upload.fail(&error);
                Err(error)
            }
        };
        (written, sending.join())
    });
    let answer = answer.map_err(|_| client.error("restore into", "sending the snapshot crashed", ""))??;
    match (answer, written) {
        // All was sent and no answer came: whether it was taken shows when the server is up again.
        (Err(http::Failure { status: None, text }), Ok(())) => {
            tracing::warn!(text, "the Vault took the snapshot and did not say what became of it");
            Ok(())
        }
        // The upload ends early when the server has answered: its answer says why.
        (Err(failure), Ok(())) => Err(client.failed("restore into", &failure, "nothing is changed unless it says so")),
        (Err(failure), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(client.failed("restore into", &failure, "nothing is changed unless it says so"))
        }
        (_, Err(source)) => Err(SourceError::Snapshot { what: "the Vault".into(), source }),
        (Ok(_), Ok(())) => Ok(()),
    }
}

/// Waits until the Vault is active with what was restored, unsealing it as often as it asks for that.
fn settle(context: &Context, client: &Client, keys: &[Zeroizing<String>]) -> Result<Health, SourceError> {
    let begun = std::time::Instant::now();
    let mut steady = 0;
    let mut last;
    loop {
        last = match client.health(context) {
            Ok(health) if health.sealed && !keys.is_empty() => {
                unseal(context, client, keys)?;
                steady = 0;
                "it is sealed".to_owned()
            }
            // Right after the restore it is active for a moment and then seals itself.
            Ok(health) if health.initialized && !health.sealed && !health.standby => {
                steady += 1;
                if steady >= 4 {
                    return Ok(health);
                }
                "it is not active yet".to_owned()
            }
            Ok(health) => {
                steady = 0;
                health.describe()
            }
            Err(stop @ (SourceError::Cancelled | SourceError::Deadline)) => return Err(stop),
            Err(error) => {
                steady = 0;
                error.to_string()
            }
        };
        if begun.elapsed() > SETTLE {
            let need = "the snapshot is restored: unseal it with the captured Vault's keys, and read its log";
            return Err(client.error("bring up", last, need));
        }
        context.sleep(TICK)?;
    }
}

fn unseal(context: &Context, client: &Client, keys: &[Zeroizing<String>]) -> Result<(), SourceError> {
    for key in keys {
        let request = client.request(Method::POST, "sys/unseal").json(&json!({"key": **key}));
        match http::json(context, request)? {
            Ok(answer) if answer["sealed"] == false => return Ok(()),
            // A server that is just restarting refuses; it is asked again.
            Ok(_) | Err(http::Failure { status: None, .. }) => {}
            Err(failure) => {
                let need = "what is restored opens with the captured Vault's keys only; a fresh Vault must be unsealed with its own before";
                return Err(client.failed("unseal", &failure, need));
            }
        }
    }
    Ok(())
}

/// Leases that the target has issued since the snapshot. The inner error: why they cannot be listed.
fn leases_since(context: &Context, client: &Client, facts: &Facts) -> Result<Result<Vec<String>, String>, SourceError> {
    let Some(moment) = facts.recovery_point_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) else {
        return Ok(Err("the snapshot's time is not known".into()));
    };
    let (mut prefixes, mut young, mut seen) = (vec![String::new()], Vec::new(), 0);
    let list = Method::from_bytes(b"LIST").unwrap_or(Method::GET);
    while let Some(prefix) = prefixes.pop() {
        let request = client.request(list.clone(), &format!("sys/leases/lookup/{prefix}"));
        let keys = match http::json(context, request)? {
            Ok(answer) => answer["data"]["keys"].as_array().cloned().unwrap_or_default(),
            Err(failure) if failure.status == Some(reqwest::StatusCode::NOT_FOUND) => continue,
            Err(failure) => return Ok(Err(failure.text)),
        };
        for key in keys.iter().filter_map(Value::as_str) {
            let lease = format!("{prefix}{key}");
            if key.ends_with('/') {
                prefixes.push(lease);
                continue;
            }
            seen += 1;
            if seen > MAX_LEASES {
                return Ok(Ok(young));
            }
            let request = client.request(Method::PUT, "sys/leases/lookup").json(&json!({"lease_id": lease}));
            let Ok(answer) = http::json(context, request)? else { continue };
            let issued = answer["data"]["issue_time"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
            if issued.is_none_or(|issued| issued >= moment) {
                young.push(lease);
            }
        }
    }
    Ok(Ok(young))
}
