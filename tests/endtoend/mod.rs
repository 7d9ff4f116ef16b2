//! Scenarios. Each judges what is read back, not what a command said of itself.

mod agent;
mod argocd;
mod clock;
mod etcd;
mod halfway;
mod init;
mod kill;
mod kit;
mod kubernetes;
mod network;
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
