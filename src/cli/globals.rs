//! Options that every command takes.

use std::path::PathBuf;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Documents: a file, or a directory of *.yaml files; repeatable
    #[arg(long, global = true, value_name = "FILE|DIR", env = "LIFEBOAT_CONFIG", value_delimiter = ':')]
    pub config: Vec<PathBuf>,
    /// A Repository document's name, or a URL: file:///PATH, s3://BUCKET/PREFIX
    #[arg(short, long, global = true, value_name = "NAME|URL", env = "LIFEBOAT_REPOSITORY")]
    pub repository: Option<String>,
    /// The way to the clusters of documents that name no kubeconfig: those mean the pod's own service account.
    /// Several files, separated by `:`, are merged
    #[arg(long, global = true, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// The recovery identity, or the recovery kit; opens everything
    #[arg(long, global = true, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub identity: Option<PathBuf>,
    /// The writer key: backs up, and reads times and sizes
    #[arg(long, global = true, value_name = "FILE", env = "LIFEBOAT_WRITER_KEY_FILE")]
    pub writer_key: Option<PathBuf>,
    /// The keeper key: prunes
    #[arg(long, global = true, value_name = "FILE", env = "LIFEBOAT_KEEPER_KEY_FILE")]
    pub keeper_key: Option<PathBuf>,
    /// Another S3 server than Amazon's: https://HOST[:PORT]
    #[arg(long, global = true, value_name = "URL", env = "LIFEBOAT_S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,
    /// The region of the bucket
    #[arg(long, global = true, value_name = "NAME")]
    pub s3_region: Option<String>,
    /// Put the bucket into the path of the URL, not into the host name
    #[arg(long, global = true)]
    pub s3_path_style: bool,
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Form of the log lines on standard error
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Log more; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
}
