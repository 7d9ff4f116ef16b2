//! Makes the benches' data. The same arguments make the same bytes (etcd: the same keys and values).
//!
//! ```text
//! generate tree DIR MIB            a mixed tree: text, sources, records, media, large files, duplicates
//! generate small DIR COUNT         many small files
//! generate etcd ENDPOINT KEYS ROUND    round 0 puts every key; each later one rewrites 1 % of them; both compact
//! ```
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Small numbers more often than large ones.
    fn skewed(&mut self, bound: u64) -> u64 {
        let a = self.below(bound);
        let b = self.below(bound);
        a * b / bound
    }

    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Source,
    Records,
    Media,
}

fn words() -> Vec<String> {
    let mut random = Random(1);
    let syllables =
        ["ka", "ro", "ti", "men", "sol", "ver", "da", "lin", "po", "gra", "est", "un", "be", "cor", "fi", "al"];
    let mut word = || (0..random.between(1, 5)).map(|_| syllables[random.below(16) as usize]).collect::<String>();
    (0..8192).map(|_| word()).collect()
}

fn fill(kind: Kind, size: usize, seed: u64, words: &[String]) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = Vec::with_capacity(size + 256);
    let mut line = random.below(1 << 30);
    while out.len() < size {
        match kind {
            Kind::Media => out.extend_from_slice(&random.next().to_le_bytes()),
            Kind::Records => {
                line += random.below(16);
                out.extend_from_slice(&line.to_le_bytes());
                out.extend_from_slice(&random.skewed(1 << 20).to_le_bytes());
                out.extend_from_slice(&random.next().to_le_bytes()[..6]);
                out.extend_from_slice(&[0; 10]);
            }
            Kind::Text => {
                line += random.below(2000);
                out.extend_from_slice(
                    format!("2026-01-01T{:02}:{:02}:{:02} ", line / 3600 % 24, line / 60 % 60, line % 60).as_bytes(),
                );
                for _ in 0..random.between(6, 18) {
                    out.extend_from_slice(words[random.skewed(8192) as usize].as_bytes());
                    out.push(b' ');
                }
                out.extend_from_slice(format!("id={:08x}\n", random.next() as u32).as_bytes());
            }
            Kind::Source => {
                let indent = random.below(4) as usize * 4;
                out.extend(std::iter::repeat_n(b' ', indent));
                for _ in 0..random.between(2, 7) {
                    out.extend_from_slice(words[random.skewed(2048) as usize].as_bytes());
                    out.extend_from_slice(
                        ["(", ") {", " = ", ".", ", ", ";", "::", "->"][random.below(8) as usize].as_bytes(),
                    );
                }
                out.push(b'\n');
            }
        }
    }
    out.truncate(size);
    out
}

struct Job {
    path: PathBuf,
    kind: Kind,
    size: u64,
    seed: u64,
}

/// Writes the jobs' files on all processors.
fn write(jobs: &[Job]) {
    let words = words();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    std::fs::write(&job.path, fill(job.kind, job.size as usize, job.seed, &words)).unwrap();
                }
            });
        }
    });
    println!("{} files, {} bytes", jobs.len(), jobs.iter().map(|j| j.size).sum::<u64>());
}

fn tree(root: &Path, mib: u64) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    // Share of the whole in percent, and from … to which size.
    let shares = [
        (Kind::Source, 15, 2 * KIB, 48 * KIB),
        (Kind::Text, 20, 64 * KIB, 1024 * KIB),
        (Kind::Text, 5, 16 * MIB, 96 * MIB),
        (Kind::Records, 15, 256 * KIB, 8 * MIB),
        (Kind::Media, 20, 512 * KIB, 6 * MIB),
        (Kind::Media, 15, 48 * MIB, 256 * MIB),
    ];
    let mut random = Random(42);
    let mut jobs: Vec<Job> = Vec::new();
    for (group, (kind, share, from, to)) in shares.into_iter().enumerate() {
        let mut left = mib * MIB * share / 100;
        while left > 0 {
            let size = random.between(from, to).min(left);
            left -= size;
            let directory = root.join(format!("{group}/{:03}", jobs.len() / 64));
            std::fs::create_dir_all(&directory).unwrap();
            jobs.push(Job { path: directory.join(format!("{}", jobs.len())), kind, size, seed: random.next() });
        }
    }
    // The remaining tenth: whole files again, under other names.
    let mut left = mib * MIB / 10;
    let (originals, directory) = (jobs.len() as u64, root.join("copies"));
    std::fs::create_dir_all(&directory).unwrap();
    while left > 0 {
        let of = &jobs[random.below(originals) as usize];
        let (kind, size, seed) = (of.kind, of.size.min(left), of.seed);
        left -= size;
        jobs.push(Job { path: directory.join(format!("{}", jobs.len())), kind, size, seed });
    }
    write(&jobs);
}

fn small(root: &Path, count: u64) {
    let mut random = Random(43);
    let job = |number: u64| {
        let directory = root.join(format!("{:02}/{:03}", number / 10_000, number / 100));
        std::fs::create_dir_all(&directory).unwrap();
        let size = 200 + random.skewed(16_000);
        Job { path: directory.join(format!("{number}.yaml")), kind: Kind::Source, size, seed: random.next() }
    };
    write(&(0..count).map(job).collect::<Vec<_>>());
}

/// One kilobyte that looks like an object of an API server.
fn value(number: u64, round: u64, words: &[String]) -> Vec<u8> {
    let mut random = Random(number << 20 | round);
    let mut text = format!(
        "{{\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"object-{number}\",\"uid\":\"{:016x}\",\"resourceVersion\":\"{round}\"}},\"data\":{{",
        random.next()
    );
    while text.len() < 1000 {
        let word = |random: &mut Random| words[random.skewed(256) as usize].clone();
        let (key, one, two) = (word(&mut random), word(&mut random), word(&mut random));
        write!(text, "\"{key}\":\"{one}-{two}\",").unwrap();
    }
    text.truncate(1000);
    text.into_bytes()
}

async fn etcd(endpoint: &str, keys: u64, round: u64) -> Result<(), etcd_client::Error> {
    use etcd_client::{Client, CompactionOptions, Txn, TxnOp};
    let numbers: Vec<u64> = if round == 0 {
        (0..keys).collect()
    } else {
        let mut random = Random(round);
        (0..keys / 100).map(|_| random.below(keys)).collect()
    };
    let words = std::sync::Arc::new(words());
    let client = Client::connect([endpoint], None).await?;
    let mut writers = tokio::task::JoinSet::new();
    for part in numbers.chunks(numbers.len().div_ceil(8).max(1)) {
        let (part, words, mut client) = (part.to_vec(), words.clone(), client.clone());
        writers.spawn(async move {
            for batch in part.chunks(100) {
                // A transaction may name a key once only.
                let mut batch = batch.to_vec();
                batch.sort_unstable();
                batch.dedup();
                let put = |n: &u64| {
                    TxnOp::put(format!("/registry/configmaps/ns-{}/object-{n}", n % 50), value(*n, round, &words), None)
                };
                client.txn(Txn::new().and_then(batch.iter().map(put).collect::<Vec<_>>())).await?;
            }
            Ok::<_, etcd_client::Error>(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap()?;
    }
    let mut client = client.clone();
    let revision = client.get("none", None).await?.header().map_or(0, etcd_client::ResponseHeader::revision);
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
    println!("{} keys written, revision {revision}", numbers.len());
    Ok(())
}

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match arguments[..] {
        ["tree", root, mib] => tree(Path::new(root), number(mib)),
        ["small", root, count] => small(Path::new(root), number(count)),
        ["etcd", endpoint, keys, round] => {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(etcd(endpoint, number(keys), number(round))).expect("etcd");
        }
        _ => {
            eprintln!("usage: generate tree DIR MIB | small DIR COUNT | etcd ENDPOINT KEYS ROUND");
            std::process::exit(2);
        }
    }
}
