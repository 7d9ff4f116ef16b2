//! The checks themselves.

use super::{Latency, Options, Outcome, Rival, Verdict, explain, must, must_be, must_fail, outcome};
use crate::store::{ObjectMeta, PutOptions, Result as StoreResult, Store, StoreErrorKind, Upload, list_all};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use jiff::{SignedDuration, Timestamp};
use std::time::Instant;

const LOCK_TIME: SignedDuration = SignedDuration::from_mins(2);
const SKEW_ALLOWED: SignedDuration = SignedDuration::from_mins(5);
const SAMPLES: usize = 8;

/// Bytes of which no two stretches are alike.
fn pattern(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

pub(super) struct Suite<'a> {
    pub store: &'a dyn Store,
    pub options: Options<'a>,
    pub place: String,
    pub begin: Instant,
}

const OPTIONS: PutOptions = PutOptions { retain_until: None };

impl Suite<'_> {
    pub fn checks(&self) -> Vec<(&'static str, BoxFuture<'_, Verdict>)> {
        vec![
            ("create only", self.create_only().boxed()),
            ("one of two writers wins", self.two_writers().boxed()),
            ("seen once written", self.seen_once_written().boxed()),
            ("what is absent is not found", self.absent().boxed()),
            ("exact ranges", self.ranges().boxed()),
            ("empty object", self.empty().boxed()),
            ("ordered listing", self.listing().boxed()),
            ("large upload", self.large_upload().boxed()),
            ("an upload given up leaves nothing", self.given_up().boxed()),
            ("delete", self.delete().boxed()),
        ]
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }

    async fn put(&self, key: &str, body: &Bytes) -> StoreResult<()> {
        self.store.put(key, body.clone(), OPTIONS).await
    }

    async fn upload(&self, key: &str, body: &Bytes, piece: usize) -> StoreResult<Box<dyn Upload>> {
        let mut upload = self.store.upload(key, OPTIONS).await?;
        for at in (0..body.len()).step_by(piece) {
            upload.write(body.slice(at..body.len().min(at + piece))).await?;
        }
        Ok(upload)
    }

    async fn holds(&self, key: &str, body: &Bytes) -> Verdict {
        must_be(must(self.store.get(key).await)? == *body, format!("{key} does not hold what was written"))
    }

    async fn create_only(&self) -> Verdict {
        let (key, first, second) = (self.key("once/put"), Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        must(self.put(&key, &first).await)?;
        must_fail(self.put(&key, &second).await, StoreErrorKind::AlreadyExists, "a second put")?;
        must_fail(self.put(&key, &first).await, StoreErrorKind::AlreadyExists, "a second put of the same")?;
        let upload = must(self.upload(&key, &second, 3).await)?;
        must_fail(upload.finish().await, StoreErrorKind::AlreadyExists, "an upload")?;
        self.holds(&key, &first).await?;
        let key = self.key("once/upload");
        must(must(self.upload(&key, &first, 2).await)?.finish().await)?;
        must_fail(self.put(&key, &second).await, StoreErrorKind::AlreadyExists, "a put after an upload")?;
        self.holds(&key, &first).await
    }

    async fn two_writers(&self) -> Verdict {
        for round in 0..4 {
            let key = self.key(&format!("race/{round}"));
            let bodies = [pattern(10_000), pattern(20_000)];
            let (a, b) = if round % 2 == 0 {
                futures_util::future::join(self.put(&key, &bodies[0]), self.put(&key, &bodies[1])).await
            } else {
                let uploads =
                    [must(self.upload(&key, &bodies[0], 999).await)?, must(self.upload(&key, &bodies[1], 999).await)?];
                let [a, b] = uploads;
                futures_util::future::join(a.finish(), b.finish()).await
            };
            let winner = match (a, b) {
                (Ok(()), Ok(())) => return Err("both of two writers were told that they had created the object".into()),
                (Ok(()), lost) => {
                    lost_race(lost)?;
                    0
                }
                (lost, Ok(())) => {
                    lost_race(lost)?;
                    1
                }
                (Err(a), Err(b)) => return Err(format!("neither writer won: {}; {}", explain(&a), explain(&b))),
            };
            self.holds(&key, &bodies[winner]).await?;
        }
        Ok(())
    }

    async fn seen_once_written(&self) -> Verdict {
        for n in 0..10 {
            let (key, body) = (self.key(&format!("seen/{n}")), pattern(100 + n));
            if n % 2 == 0 {
                must(self.put(&key, &body).await)?;
            } else {
                must(must(self.upload(&key, &body, 64).await)?.finish().await)?;
            }
            let listed = must(self.store.list(&self.key("seen/"), None, 100).await)?;
            must_be(listed.iter().any(|o| o.key == key), "a listing misses an object just written")?;
            must_be(listed.len() == n + 1, "a listing misses an object or shows one twice")?;
            let meta = must(self.store.head(&key).await)?;
            must_be(meta.size == body.len() as u64, "the size is wrong")?;
            must_be(listed.contains(&meta), "a listing and the object itself differ in size or time")?;
            self.holds(&key, &body).await?;
        }
        let roots = must(self.store.list_roots().await)?;
        must_be(roots.iter().any(|root| root == "_check"), "the roots miss one that holds objects")?;
        must_be(roots.is_sorted_by(|a, b| a < b), "the roots are not in order")
    }

    async fn absent(&self) -> Verdict {
        let key = self.key("absent/object");
        must_fail(self.store.get(&key).await, StoreErrorKind::NotFound, "get")?;
        must_fail(self.store.get_range(&key, 0, 1).await, StoreErrorKind::NotFound, "get a range")?;
        must_fail(self.store.head(&key).await, StoreErrorKind::NotFound, "head")?;
        must_be(must(self.store.list(&self.key("absent/"), None, 10).await)?.is_empty(), "a listing of nothing")
    }

    async fn ranges(&self) -> Verdict {
        let (key, body) = (self.key("ranges"), pattern(10_000));
        must(self.put(&key, &body).await)?;
        for (offset, length) in [(0, 1), (0, 10_000), (1, 9_999), (4_096, 4_096), (9_999, 1), (10_000, 0), (5, 0)] {
            let got = must(self.store.get_range(&key, offset, length).await)?;
            let expected = &body[offset as usize..(offset + length) as usize];
            must_be(got == expected, format!("{length} bytes from {offset} are not those written"))?;
        }
        for (offset, length) in
            [(0, 10_001), (9_999, 2), (10_000, 1), (20_000, 1), (10_001, 0), (u64::MAX, 2), (1, u64::MAX)]
        {
            let what = format!("{length} bytes from {offset} of 10000");
            must_fail(self.store.get_range(&key, offset, length).await, StoreErrorKind::Truncated, &what)?;
        }
        Ok(())
    }

    async fn empty(&self) -> Verdict {
        let empty = Bytes::new();
        must(self.put(&self.key("empty/put"), &empty).await)?;
        must(must(self.upload(&self.key("empty/upload"), &empty, 1).await)?.finish().await)?;
        for name in ["empty/put", "empty/upload"] {
            let key = self.key(name);
            self.holds(&key, &empty).await?;
            must_be(must(self.store.head(&key).await)?.size == 0, "an empty object has a size")?;
            must_fail(self.store.get_range(&key, 0, 1).await, StoreErrorKind::Truncated, "a byte of nothing")?;
        }
        Ok(())
    }

    async fn listing(&self) -> Verdict {
        // An order that differs from the one by path parts, and a prefix that is also the beginning of other names.
        let mut keys: Vec<String> = ["a/x", "a-b", "a.b", "a0", "ab/y/z", "b/1", "b/10", "b/2", "B/1"]
            .map(|name| self.key(&format!("list/{name}")))
            .into();
        for key in &keys {
            must(self.put(key, &Bytes::from_static(b"x")).await)?;
        }
        keys.sort();
        for prefix in ["list/", "list/a", "list/a/", "list/b/1", "list/c", "list/ab/y"] {
            let prefix = self.key(prefix);
            let below: Vec<&String> = keys.iter().filter(|key| key.starts_with(&prefix)).collect();
            let all = must(list_all(self.store, &prefix).await)?;
            must_be(all.iter().map(|o| &o.key).eq(below.iter().copied()), format!("the listing of {prefix} is wrong"))?;
            for limit in 1..=4 {
                let (mut paged, mut after) = (Vec::new(), None::<String>);
                loop {
                    let page = must(self.store.list(&prefix, after.as_deref(), limit).await)?;
                    paged.extend(page.iter().map(|o| o.key.clone()));
                    after = page.last().map(|o| o.key.clone());
                    must_be(page.len() <= limit && paged.len() <= below.len(), "a page is too long")?;
                    if page.len() < limit {
                        break;
                    }
                }
                must_be(paged.iter().eq(below.iter().copied()), format!("pages of {limit} of {prefix} are wrong"))?;
            }
        }
        // A place between two names, not a name.
        let after = must(self.store.list(&self.key("list/"), Some(&self.key("list/b")), 1).await)?;
        must_be(
            after.len() == 1 && after[0].key == self.key("list/b/1"),
            "a listing after a name that is absent is wrong",
        )
    }

    async fn large_upload(&self) -> Verdict {
        let (key, body) = (self.key("large/object"), pattern(self.options.large));
        must(must(self.upload(&key, &body, 300_007).await)?.finish().await)?;
        must_be(must(self.store.head(&key).await)?.size == body.len() as u64, "the size is wrong")?;
        let middle = body.len() / 2;
        let got = must(self.store.get_range(&key, middle as u64, (body.len() - middle) as u64).await)?;
        must_be(got == body.slice(middle..), "the second half is not what was written")?;
        let second = must(self.upload(&key, &body.slice(1..), 1 << 20).await)?;
        must_fail(second.finish().await, StoreErrorKind::AlreadyExists, "a second large upload")?;
        self.holds(&key, &body).await
    }

    async fn given_up(&self) -> Verdict {
        for (n, size) in [(0, 1000), (1, self.options.large)] {
            let key = self.key(&format!("given-up/{n}"));
            let body = pattern(size);
            must(self.upload(&key, &body, 1 << 20).await)?.abort().await;
            drop(must(self.upload(&key, &body, 1 << 20).await)?);
            must_fail(self.store.head(&key).await, StoreErrorKind::NotFound, "an upload that was given up")?;
            let small = Bytes::from_static(b"the name is still free");
            must(self.put(&key, &small).await)?;
            self.holds(&key, &small).await?;
        }
        Ok(())
    }

    async fn delete(&self) -> Verdict {
        let key = self.key("deleted");
        must(self.store.delete(&key).await)?;
        must(self.put(&key, &pattern(10)).await)?;
        must(self.store.get(&key).await)?;
        must(self.store.delete(&key).await)?;
        must_fail(self.store.get(&key).await, StoreErrorKind::NotFound, "reading what was deleted")?;
        must_fail(self.store.head(&key).await, StoreErrorKind::NotFound, "the size of what was deleted")?;
        must_be(must(self.store.list(&key, None, 10).await)?.is_empty(), "what was deleted is still listed")?;
        must(self.store.delete(&key).await)?;
        let again = pattern(20);
        must(self.put(&key, &again).await)?;
        self.holds(&key, &again).await
    }

    pub async fn versions(&self) -> Outcome {
        match (self.store.features().versions, self.options.rival) {
            (true, Some(rival)) => outcome(self.first_version(rival).boxed()).await,
            (true, None) => Outcome::NotSupported { why: "nothing can write past the store".into() },
            _ => Outcome::NotSupported { why: "the store keeps no versions".into() },
        }
    }

    async fn first_version(&self, rival: &dyn Rival) -> Verdict {
        let (forged, overwritten, hidden) = (Bytes::from_static(b"forged"), self.key("first/o"), self.key("first/h"));
        for key in [&overwritten, &hidden] {
            must(self.put(key, &pattern(5000)).await)?;
        }
        let before = must(self.store.list(&self.key("first/"), None, 10).await)?;
        must(rival.overwrite(&overwritten, forged.clone()).await)?;
        must(rival.hide(&hidden).await)?;
        must(rival.hide(&self.key("first/never-was")).await)?;
        for key in [&overwritten, &hidden] {
            self.holds(key, &pattern(5000)).await?;
            let got = must(self.store.get_range(key, 4000, 1000).await)?;
            must_be(got == pattern(5000).slice(4000..), format!("a range of {key} is not that of its first version"))?;
            must_fail(self.put(key, &forged).await, StoreErrorKind::AlreadyExists, "creating what was tampered with")?;
            let is = must(self.store.head(key).await)?;
            must_be(before.iter().any(|was| is_still(was, &is)), "an object's size has changed, or it seems older")?;
        }
        let after = must(self.store.list(&self.key("first/"), None, 10).await)?;
        let unchanged = before.len() == after.len() && before.iter().zip(&after).all(|(was, is)| is_still(was, is));
        must_be(unchanged, "an overwrite or a delete marker changed the listing")?;
        for key in [&overwritten, &hidden] {
            must(self.store.delete(key).await)?;
            must_fail(self.store.get(key).await, StoreErrorKind::NotFound, "reading what was deleted")?;
        }
        must_be(
            must(self.store.list(&self.key("first/"), None, 10).await)?.is_empty(),
            "a version outlived its deletion",
        )
    }

    pub async fn clock(&self, ahead: &mut Option<i64>) -> Verdict {
        let key = self.key("clock");
        must(self.put(&key, &Bytes::from_static(b"tick")).await)?;
        let ours = self.options.now + SignedDuration::try_from(self.begin.elapsed()).unwrap_or(SignedDuration::ZERO);
        let skew = must(self.store.head(&key).await)?.modified.duration_since(ours);
        *ahead = i64::try_from(skew.as_millis()).ok();
        must_be(skew.abs() <= SKEW_ALLOWED, format!("the store's clock differs by {skew:#}; retention goes by it"))
    }

    pub async fn latencies(&self, latencies: &mut Vec<Latency>) -> Verdict {
        let body = pattern(4096);
        let mut times = [("put", vec![]), ("get", vec![]), ("head", vec![]), ("list", vec![]), ("delete", vec![])];
        for n in 0..SAMPLES {
            let key = self.key(&format!("latency/{n}"));
            let [put, get, head, list, delete] = &mut times;
            timed(&mut put.1, self.put(&key, &body)).await?;
            timed(&mut get.1, self.store.get(&key)).await?;
            timed(&mut head.1, self.store.head(&key)).await?;
            timed(&mut list.1, self.store.list(&key, None, 10)).await?;
            timed(&mut delete.1, self.store.delete(&key)).await?;
        }
        for (operation, mut times) in times {
            times.sort_by(f64::total_cmp);
            let (median_ms, longest_ms) = (times[times.len() / 2], times[times.len() - 1]);
            latencies.push(Latency { operation, samples: times.len(), median_ms, longest_ms });
        }
        Ok(())
    }

    pub async fn lock(&self, locked_until: &mut Option<Timestamp>) -> Verdict {
        let (extended, created, body) = (self.key("locked/extended"), self.key("locked/created"), pattern(100));
        must(self.put(&extended, &body).await)?;
        let until = must(self.store.head(&extended).await)?.modified + LOCK_TIME;
        *locked_until = Some(until);
        must(self.store.retain(&extended, until).await)?;
        must(self.store.put(&created, body.clone(), PutOptions { retain_until: Some(until) }).await)?;
        for key in [&extended, &created] {
            must_fail(self.store.delete(key).await, StoreErrorKind::Locked, "deleting what is locked")?;
            must(self.store.retain(key, until - LOCK_TIME / 2).await)?;
            must_fail(self.store.delete(key).await, StoreErrorKind::Locked, "deleting after an attempt to shorten")?;
            must(self.store.retain(key, until).await)?;
            self.holds(key, &body).await?;
        }
        Ok(())
    }

    pub async fn clean_up(&self, left: &mut Vec<String>) -> Verdict {
        let mut failures = Vec::new();
        for object in must(list_all(self.store, &self.key("")).await)? {
            if let Err(e) = self.store.delete(&object.key).await {
                left.push(object.key);
                if e.kind != StoreErrorKind::Locked {
                    failures.push(explain(&e));
                }
            }
        }
        must_be(failures.is_empty(), failures.join("; "))
    }
}

async fn timed<T>(times: &mut Vec<f64>, operation: impl Future<Output = StoreResult<T>>) -> Verdict {
    let begin = Instant::now();
    must(operation.await)?;
    times.push(begin.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

/// A conflict, or a collision that the store asks to try again.
fn lost_race(result: StoreResult<()>) -> Verdict {
    match result {
        Err(e) if e.is_retryable() => Ok(()),
        other => must_fail(other, StoreErrorKind::AlreadyExists, "the slower of two writers"),
    }
}

/// Servers may take the moment at which a version was overwritten for its time. What seems younger is only swept later.
fn is_still(was: &ObjectMeta, is: &ObjectMeta) -> bool {
    (&was.key, was.size) == (&is.key, is.size) && was.modified <= is.modified
}
