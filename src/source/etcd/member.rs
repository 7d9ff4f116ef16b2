//! Which member to take the snapshot from.

use super::{REQUEST, told};
use crate::entry::Facts;
use crate::source::SourceError;
use etcd_client::{Client, ConnectOptions, GetOptions, StatusResponse};
use futures_util::future::join_all;
use std::cmp::Reverse;
use tokio::time::timeout;

/// A follower that has applied all but this many of the entries that any member has applied will do.
const LAG: u64 = 1000;

pub struct Member {
    pub endpoint: String,
    pub client: Client,
    id: u64,
    cluster: u64,
    status: StatusResponse,
}

/// What every endpoint said.
pub struct Survey {
    pub members: Vec<Member>,
    pub failures: Vec<String>,
}

pub async fn survey(endpoints: &[String], options: &ConnectOptions) -> Survey {
    let mut survey = Survey { members: Vec::new(), failures: Vec::new() };
    for answer in join_all(endpoints.iter().map(|endpoint| Member::reach(endpoint, options))).await {
        match answer {
            Ok(member) => survey.members.push(member),
            Err(failure) => survey.failures.push(failure),
        }
    }
    survey
}

impl Survey {
    /// The members worth asking, the best first.
    pub fn candidates(self) -> Result<Vec<Member>, SourceError> {
        let mut failures = self.failures;
        if let [first, rest @ ..] = self.members.as_slice()
            && let Some(other) = rest.iter().find(|member| member.cluster != first.cluster)
        {
            let what = format!("{} and {} are members of different clusters", first.endpoint, other.endpoint);
            return Err(SourceError::Spec { what });
        }
        let newest = self.members.iter().map(|member| member.status.raft_applied_index()).max().unwrap_or(0);
        let (mut fit, unfit): (Vec<_>, Vec<_>) =
            self.members.into_iter().partition(|member| member.defect(newest).is_none());
        if fit.is_empty() {
            failures.extend(
                unfit
                    .iter()
                    .filter_map(|member| member.defect(newest).map(|defect| format!("{}: {defect}", member.endpoint))),
            );
            return Err(SourceError::NoMember { failures });
        }
        fit.sort_by_key(|member| (member.is_leader(), Reverse(member.status.raft_applied_index())));
        Ok(fit)
    }
}

impl Member {
    async fn reach(endpoint: &str, options: &ConnectOptions) -> Result<Self, String> {
        let answer = timeout(REQUEST, async {
            let client = Client::connect([endpoint], Some(options.clone())).await?;
            let status = client.maintenance_client().status().await?;
            Ok::<_, etcd_client::Error>((client, status))
        });
        match answer.await {
            Ok(Ok((client, status))) => match status.header().map(|header| (header.member_id(), header.cluster_id())) {
                Some((id, cluster)) => Ok(Self { endpoint: endpoint.to_owned(), client, id, cluster, status }),
                None => Err(format!("{endpoint}: its status has no header; is this an etcd client port?")),
            },
            Ok(Err(error)) => Err(format!("{endpoint}: {}", told(&error))),
            Err(_) => Err(format!("{endpoint}: no answer within {} s", REQUEST.as_secs())),
        }
    }

    fn is_leader(&self) -> bool {
        self.status.leader() == self.id
    }

    /// What rules it out, given the highest index that any member has applied.
    fn defect(&self, newest: u64) -> Option<String> {
        let own = format!("memberID:{} ", self.id);
        if self.status.leader() == 0 {
            return Some("it has no leader; restore the quorum".to_owned());
        }
        if self.status.is_learner() {
            return Some("it is a learner".to_owned());
        }
        if let Some(alarm) = self.status.errors().iter().find(|alarm| alarm.contains("CORRUPT"))
            && (alarm.contains(&own) || !alarm.contains("memberID:"))
        {
            return Some(format!("it has raised an alarm ({alarm}); its data are not to be trusted"));
        }
        let behind = newest.saturating_sub(self.status.raft_applied_index());
        (behind > LAG).then(|| format!("it is {behind} log entries behind"))
    }

    pub fn describe(&self) -> String {
        format!(
            "{}: etcd {}, {}, member {:x}, database of {} bytes",
            self.endpoint,
            self.status.version(),
            if self.is_leader() { "leader" } else { "follower" },
            self.id,
            self.status.db_size(),
        )
    }

    /// What it says about itself now; the revision is that of this moment.
    pub async fn facts(&mut self) -> Result<Facts, String> {
        // Both may be forbidden to the user, and neither is worth failing for.
        let all_keys = GetOptions::new().with_all_keys().with_count_only().with_serializable();
        let count = timeout(REQUEST, self.client.kv_client().get("", Some(all_keys))).await;
        let objects = count.ok().and_then(Result::ok).and_then(|answer| u64::try_from(answer.count()).ok());
        let members = timeout(REQUEST, self.client.cluster_client().member_list()).await;
        let name = members.ok().and_then(Result::ok).and_then(|answer| {
            answer.members().iter().find(|member| member.id() == self.id).map(|member| member.name().to_owned())
        });
        let status = timeout(REQUEST, self.client.maintenance_client().status()).await;
        let status =
            status.map_err(|_| format!("no status within {} s", REQUEST.as_secs()))?.map_err(|error| told(&error))?;
        let revision = status.header().and_then(|header| u64::try_from(header.revision()).ok());
        let mut details = vec![
            ("endpoint", self.endpoint.clone()),
            ("member_id", format!("{:x}", self.id)),
            ("version", status.version().to_owned()),
            ("role", if self.is_leader() { "leader" } else { "follower" }.to_owned()),
            ("db_size", status.db_size().to_string()),
            ("raft_term", status.raft_term().to_string()),
            ("raft_index", status.raft_index().to_string()),
        ];
        details.extend(revision.map(|revision| ("revision_at_least", revision.to_string())));
        details.extend(name.map(|name| ("member_name", name)));
        self.status = status;
        Ok(Facts {
            system: Some(format!("{:x}", self.cluster)),
            position: revision,
            objects,
            recovery_point_ms: None,
            details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        })
    }
}
