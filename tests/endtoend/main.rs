//! The real program against real servers. Every scenario judges what is read back, not what a command said of itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/collect.rs"]
mod collect;
#[path = "../support/kubernetes.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;

mod agent;
mod argocd;
mod clock;
mod etcd;
mod halfway;
mod init;
mod kill;
mod kit;
mod kubernetes;
#[path = "../support/mariadb.rs"]
mod mariadb;
mod network;
mod picture;
mod pod;
mod recovery;
mod replica;
mod resumed;
mod rivals;
mod room;
mod stores;
mod terraform;
mod tree;
mod trust;
mod twice;
mod vault;
mod world;
