//! Each system against its real server: captured, brought back, and judged by the server.

mod alertmanager;
mod command;
mod etcd;
mod files;
mod files_edges;
mod git;
mod kubernetes;
mod kubernetes_fence;
mod kubernetes_rewrite;
mod mariadb;
mod mariadb_backup;
mod monitoring_tls;
mod platform_plan;
mod postgresql;
mod postgresql_dump;
mod probes;
mod prometheus;
mod redis;
mod sqlite;
mod store;
mod volume;
