//! Where a bucket is, how it is used, and the client for it.

use super::REQUEST_TIMEOUT;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_sdk_s3::config::retry::RetryConfig;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const STALLED: Duration = Duration::from_secs(30);

/// Where a bucket is and how it is used.
#[derive(Clone, Debug)]
pub struct Settings {
    pub bucket: String,
    /// Keys lie below it; empty, or without a slash at either end.
    pub prefix: String,
    /// The server's URL; none means Amazon's.
    pub endpoint: Option<String>,
    /// None means what the environment says, or `us-east-1`.
    pub region: Option<String>,
    /// The bucket in the path instead of the host name: most servers other than Amazon's want it.
    pub path_style: bool,
    pub credentials: Credentials,
    pub encryption: Encryption,
    /// The mode of retention dates; none leaves Object Lock alone.
    pub lock: Option<LockMode>,
    /// Uploads above this are sent in parts of this size, at least 5 MiB; several parts at once are kept in memory.
    pub part_size: usize,
}

impl Settings {
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: false,
            credentials: Credentials::Chain,
            encryption: Encryption::BucketDefault,
            lock: None,
            part_size: 8 << 20,
        }
    }
}

#[derive(Clone)]
pub enum Credentials {
    /// Environment, profile, web identity, container or instance, as the SDK finds them.
    Chain,
    Static {
        access_key: String,
        secret_key: String,
        session_token: Option<String>,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Chain => "Chain",
            Self::Static { .. } => "Static(…)",
        })
    }
}

/// How the server encrypts at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    #[default]
    BucketDefault,
    Aes256,
    Kms {
        key_id: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Identities with a special right may lift it.
    Governance,
    /// Nobody may lift it.
    Compliance,
}

/// A client for a bucket; it repeats nothing by itself.
pub async fn client(settings: &Settings) -> Client {
    let mut config = aws_sdk_s3::config::Builder::from(&account(settings).await);
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(
        config
            .force_path_style(settings.path_style)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALLED).build())
            .build(),
    )
}

/// Who asks, in which region and how long, for the clients of any service.
pub async fn account(settings: &Settings) -> SdkConfig {
    let found = match &settings.credentials {
        Credentials::Chain => aws_config::defaults(BehaviorVersion::latest()).load().await,
        Credentials::Static { access_key, secret_key, session_token } => {
            let token = session_token.clone();
            let credentials =
                aws_credential_types::Credentials::new(access_key, secret_key, token, None, "configuration");
            SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .credentials_provider(SharedCredentialsProvider::new(credentials))
                .build()
        }
    };
    let region = settings.region.clone().map(Region::new).or(found.region().cloned());
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .operation_timeout(REQUEST_TIMEOUT)
        .build();
    let region = region.unwrap_or_else(|| Region::from_static("us-east-1"));
    found.into_builder().region(region).timeout_config(timeouts).build()
}
