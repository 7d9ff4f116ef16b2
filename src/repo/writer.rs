//! Writing one snapshot: begin on the newest good one, take what the source captures, commit.
//!
//! Order is a property of the type: [`SnapshotWriter::commit`] consumes the writer, packs are durable before the manifest
//! is written, and the manifest is created only if its number is free. Dropping the writer instead leaves packs that
//! nothing names, which a sweep removes later.

use crate::entry::{Entry, Facts, Input, Layout, Problem, Sink, Stopped};
use crate::id::{PackId, Sequence};
use crate::repo::assemble::{Assembled, Assembler, Problems, Window};
use crate::repo::epoch::{self, Access, Epoch};
use crate::repo::error::{RepoError, Result};
use crate::repo::known::Known;
use crate::repo::lineage::{Lineage, Newest, Selector, Snapshot};
use crate::repo::live;
use crate::repo::manifest::{self, Catalogue, Header, PackRef, Parent, Private, State};
use crate::repo::pack;
use crate::repo::packer::Packer;
use crate::repo::pipeline::{Closed, Done, Job, Progress, Shared, Stored, Worker};
use crate::repo::root::{self, FORMAT};
use crate::store::{PutOptions, StoreErrorKind};
use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Entries that are handed to the assembler at a time.
const BATCH: u64 = 64;

/// How a snapshot is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// zstd's level.
    pub level: i32,
    /// Threads that read, hash and compress.
    pub threads: usize,
    /// A run that takes longer may not commit: what it builds on might have been swept by then.
    pub run_limit: Duration,
    /// Under Object Lock: how long from now a snapshot must be kept at least.
    pub retain: Option<Duration>,
}

/// What the run knows of a capture when it is complete.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Kind of the source.
    pub kind: String,
    pub started: Timestamp,
    pub facts: Facts,
    /// Why the snapshot goes to quarantine; empty if it does not.
    pub reasons: Vec<String>,
    /// Correlates with the run's log lines.
    pub run: String,
}

/// A snapshot that now exists.
#[derive(Clone, Debug)]
pub struct Committed {
    pub sequence: Sequence,
    pub state: State,
    pub catalogue: Catalogue,
    /// What the catalogue counts, or the first of it.
    pub problems: Vec<Problem>,
    pub packs: usize,
}

/// A snapshot being written.
pub struct SnapshotWriter {
    lineage: Arc<Lineage>,
    epoch: Arc<Epoch>,
    options: Options,
    base: Option<Snapshot>,
    sealed_base: Option<Sequence>,
    /// The snapshot whose packs this one uses.
    reused: Option<Sequence>,
    shared: Arc<Shared>,
    window: Arc<Window>,
    queues: Option<Queues>,
    threads: Vec<JoinHandle<()>>,
    assembler: Option<JoinHandle<Option<Assembled>>>,
    problems: Problems,
    /// Entries that are done already, on their way to the assembler.
    ready: Vec<Done>,
    next: u64,
    /// The wall clock is asked once; from then on only the steady one counts.
    began: Timestamp,
    clock: Instant,
}

struct Queues {
    jobs: Sender<Job>,
    closed: Sender<Closed>,
    done: Sender<Vec<Done>>,
}

impl Lineage {
    /// Begins a snapshot, on the newest good one if there is one. The lineage must have been opened with the writer key.
    ///
    /// # Errors
    /// `WrongKey`, a rotated key, a store's; an unreadable base is an error and not a silent full backup.
    pub async fn begin(self: &Arc<Self>, options: Options, now: Timestamp) -> Result<SnapshotWriter> {
        let clock = Instant::now();
        let Access::Writer(key) = &self.access else {
            return Err(RepoError::WrongKey {
                what: "key",
                object: format!("{} for writing (a writer key does)", self.source),
            });
        };
        let generation = self.root.accept_writer(key)?;
        let newest = self.newest().await?;
        let of_newest = match &newest.snapshot {
            Some(snapshot) => self.epoch(snapshot.manifest.header.epoch).await?,
            None => None,
        };
        // Another than the first one may be a thief's.
        let first = |epoch: &Arc<Epoch>| epoch.generation == generation && epoch.number == 1;
        let epoch = if let Some(epoch) = of_newest.filter(first) {
            epoch
        } else {
            let from = newest.next();
            self.remember(epoch::current(self.store.as_ref(), &self.root, &self.source, key, from).await?)
        };
        let (base, sealed_base) = match newest.snapshot {
            Some(snapshot) if snapshot.manifest.header.epoch == epoch.number => (Some(snapshot), None),
            other => (None, other.map(|snapshot| snapshot.sequence())),
        };
        let stored = Box::pin(self.stored(base.as_ref(), newest.tip.map(|(tip, _)| tip), epoch.number)).await?;
        let reused = stored.as_ref().map(Snapshot::sequence);
        let known = match stored {
            None => Known::nothing(),
            Some(stored) => {
                let new_bytes = stored.catalogue.as_ref().map_or(0, |c| c.new_bytes);
                let refresh = live::to_refresh(&stored.manifest.header.packs, new_bytes);
                let lost = self.lost(&stored).await?;
                Box::pin(Known::load(self.clone(), stored, refresh, &lost)).await?
            }
        };
        let retain_until = options.retain.and_then(|d| now.checked_add(d).ok());
        let put = PutOptions { retain_until };
        let packer = Packer::new(self.clone(), epoch.clone(), put, known.packs().len() as u32);
        let workers = options.threads.max(1);
        let shared = Arc::new(Shared::new(epoch.clone(), known, packer, options.level, workers)?);
        let mut writer = SnapshotWriter {
            lineage: self.clone(),
            epoch,
            options,
            base,
            sealed_base,
            reused,
            shared,
            window: Arc::default(),
            queues: None,
            threads: Vec::new(),
            assembler: None,
            problems: Problems::default(),
            ready: Vec::new(),
            next: 0,
            began: now,
            clock,
        };
        writer.start(workers, now)?;
        Ok(writer)
    }

    /// The snapshot whose contents are not stored again: the base, or the newest, once two in quarantine have followed it, so
    /// that a database that was rebuilt is not sent at every run until somebody has looked at it. One run alone may have gone
    /// astray; and what comes back when a source that holds much less is mended is in the base.
    async fn stored(&self, base: Option<&Snapshot>, tip: Option<Sequence>, epoch: u32) -> Result<Option<Snapshot>> {
        let bytes = |snapshot: &Snapshot| snapshot.catalogue.as_ref().map_or(0, |catalogue| catalogue.bytes);
        if let (Some(base), Some(tip)) = (base, tip)
            && base.sequence().0 + 1 < tip.0
        {
            let (newest, _) = self.find(&Selector::Number(tip)).await?;
            if newest.manifest.header.epoch == epoch && bytes(&newest).saturating_mul(2) >= bytes(base) {
                return Ok(Some(newest));
            }
        }
        Ok(base.cloned())
    }

    /// The packs of a snapshot that are not there, or not whole: what is in them is stored afresh, if the source still has it.
    async fn lost(&self, snapshot: &Snapshot) -> Result<Vec<bool>> {
        let packs = &snapshot.manifest.header.packs;
        let lacking: HashSet<String> = self.lacking(packs.iter().collect()).await?.into_iter().collect();
        let is_lost = |reference: &PackRef| lacking.contains(&pack::object(&self.source, reference.pack));
        let lost: Vec<bool> = packs.iter().map(is_lost).collect();
        let packs = lost.iter().filter(|lost| **lost).count();
        if packs > 0 {
            tracing::warn!(
                source = self.source.as_str(),
                packs,
                "packs that the last snapshot needs are lost: what the source still has of them is stored again; see `lifeboat verify`"
            );
        }
        Ok(lost)
    }
}

/// All of a capture, of which a snapshot can be made.
pub struct Finished {
    writer: SnapshotWriter,
    assembled: Assembled,
}

impl Finished {
    /// The snapshot this one builds on; what the regression guard compares with.
    #[must_use]
    pub fn base(&self) -> Option<&Snapshot> {
        self.writer.base.as_ref()
    }

    /// Plaintext bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.assembled.bytes
    }

    /// Entries that the source named and that could not be captured.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.assembled.left_out
    }

    /// Makes the snapshot exist.
    ///
    /// # Errors
    /// `PastRunLimit`, `Overtaken`, `Swept`, `Busy`, a store's; nothing was committed then.
    pub async fn commit(self, summary: Summary) -> Result<Committed> {
        self.writer.write(self.assembled, summary).await
    }
}

impl SnapshotWriter {
    fn pass_on(&mut self) -> Result<(), Stopped> {
        let batch = std::mem::take(&mut self.ready);
        match &self.queues {
            Some(queues) if !batch.is_empty() => queues.done.send(batch).map_err(|_| Stopped),
            _ => Ok(()),
        }
    }

    fn start(&mut self, workers: usize, now: Timestamp) -> Result<()> {
        let spawn = |name: String, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name).spawn(run);
            thread.map_err(|why| RepoError::Refused(format!("start a thread: {why}")))
        };
        let (jobs, job) = bounded::<Job>(256);
        let (closed, frame) = bounded::<Closed>(workers);
        let (done, entry) = bounded::<Vec<Done>>(256);
        for slot in 0..workers {
            let worker = Worker::new(self.shared.clone(), slot, done.clone(), frame.clone())?;
            let job = job.clone();
            self.threads.push(spawn(format!("worker-{slot}"), Box::new(move || worker.run(&job)))?);
        }
        // Time stamps are coarser than nanoseconds: what changed in the last seconds may change again unseen.
        let racy_after = now.as_nanosecond() - 2_000_000_000;
        let racy_after = i64::try_from(racy_after).unwrap_or(i64::MAX);
        let assembler = Assembler::new(self.shared.clone(), self.window.clone(), racy_after)?;
        let thread = std::thread::Builder::new().name("assembler".into()).spawn(move || assembler.run(&entry));
        self.assembler = Some(thread.map_err(|why| RepoError::Refused(format!("start a thread: {why}")))?);
        self.queues = Some(Queues { jobs, closed, done });
        Ok(())
    }

    /// Counters for a progress bar.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.shared.progress.clone()
    }

    /// The newest good snapshot, if an earlier writer key sealed it: it can neither be built on nor compared with.
    #[must_use]
    pub fn sealed_base(&self) -> Option<Sequence> {
        self.sealed_base
    }

    /// Ends the run from elsewhere, soon: whoever captures is told so, and nothing can be committed any more.
    pub fn stopper(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || {
            shared.fail(RepoError::Stopped);
            shared.packer.stop();
        }
    }

    /// Gives the run up, and says what failed first.
    pub async fn abandon(mut self) -> RepoError {
        if !self.shared.is_stopped() {
            self.shared.fail(RepoError::Stopped);
        }
        self.shared.packer.stop();
        match tokio::task::spawn_blocking(move || self.join().err()).await {
            Ok(error) => error.unwrap_or(RepoError::Stopped),
            Err(why) => RepoError::Refused(format!("the run's threads failed: {why}")),
        }
    }

    /// Makes a snapshot of all that was captured.
    ///
    /// # Errors
    /// As [`SnapshotWriter::finish`] and [`Finished::commit`].
    pub async fn commit(self, summary: Summary) -> Result<Committed> {
        self.finish().await?.commit(summary).await
    }

    /// Waits for all that was captured.
    ///
    /// # Errors
    /// The run's first failure, `EmptyCapture`.
    pub async fn finish(mut self) -> Result<Finished> {
        let joined = tokio::task::spawn_blocking(move || {
            let assembled = self.join();
            (self, assembled)
        });
        let (mut writer, assembled) =
            joined.await.map_err(|why| RepoError::Refused(format!("the run's threads failed: {why}")))?;
        let mut assembled = assembled?;
        if assembled.entries == 0 {
            return Err(RepoError::EmptyCapture);
        }
        assembled.problems.append(std::mem::take(&mut writer.problems));
        Ok(Finished { writer, assembled })
    }

    /// Ends the threads. An error if anything failed.
    fn join(&mut self) -> Result<Assembled> {
        let _ = self.pass_on(); // an error means that the run has failed, which is asked below
        self.queues = None;
        let mut crashed = false;
        for thread in self.threads.drain(..) {
            crashed |= thread.join().is_err();
        }
        let assembled = self.assembler.take().and_then(|a| a.join().map_err(|_| crashed = true).ok()).flatten();
        let upload = self.shared.packer.abandon();
        let shared = &self.shared;
        if let Some(error) = upload.or_else(|| shared.known.check(|| shared.is_stopped()).err()) {
            self.shared.fail(error);
        }
        if crashed {
            return Err(RepoError::Refused(
                "a thread of the run crashed (a defect of Lifeboat); nothing was committed".into(),
            ));
        }
        match (self.shared.take_error(), assembled) {
            (Some(error), _) => Err(error),
            (None, Some(assembled)) => Ok(assembled),
            (None, None) => Err(RepoError::Stopped),
        }
    }

    async fn write(self, assembled: Assembled, summary: Summary) -> Result<Committed> {
        let Assembled { mut packs, segments, entries, bytes, problems, left_out: _ } = assembled;
        self.check_packs(&packs).await?;
        let (retain_until, keys_day) = self.retain(&mut packs).await?;
        let state = match (summary.reasons.is_empty(), problems.count == 0) {
            (false, _) => State::Quarantined,
            (true, false) => State::Incomplete,
            (true, true) => State::Good,
        };
        let started_ms = summary.started.as_millisecond();
        let catalogue = Catalogue {
            kind: summary.kind,
            started_ms,
            recovery_point_ms: summary.facts.recovery_point_ms.unwrap_or(started_ms),
            facts: summary.facts,
            entries,
            bytes,
            new_bytes: self.shared.progress.new_bytes.load(Ordering::Relaxed),
            stored_bytes: self.shared.packer.sealed_bytes(),
            depth: 0,
            segments,
            reasons: summary.reasons,
            run: summary.run,
            agent: concat!("lifeboat ", env!("CARGO_PKG_VERSION")).into(),
            problems: problems.count,
        };
        let private = Private { problems: problems.told() };
        let mut header = Header {
            format: FORMAT,
            repository: self.lineage.root.id,
            source: self.lineage.source.to_string(),
            epoch: self.epoch.number,
            sequence: Sequence(0),
            parent: None,
            time_ms: 0,
            state,
            packs,
            keys_lock_day: keys_day,
        };
        let sequence = self.put_manifest(&mut header, &catalogue, &private, retain_until).await?;
        Ok(Committed { sequence, state, catalogue, problems: private.problems, packs: header.packs.len() })
    }

    /// Locks every pack, and the objects that hold the keys, as long as the snapshot itself. Gives the manifest's own
    /// date and the day that the key objects' locks last to.
    async fn retain(&self, packs: &mut [PackRef]) -> Result<(Option<Timestamp>, Option<u32>)> {
        let (store, source) = (&self.lineage.store, &self.lineage.source);
        let (Some(keep), true) = (self.options.retain, store.features().lock) else { return Ok((None, None)) };
        let now = self.began.as_second() + self.clock.elapsed().as_secs().cast_signed();
        let (day, until) = lock_until(now, keep);
        let is_stale = |locked: Option<u32>| locked.is_none_or(|d| d < day - 1);
        let stale = packs.iter().filter(|p| is_stale(p.lock_day));
        let mut objects: Vec<String> = stale.map(|p| pack::object(source, p.pack)).collect();
        let mut keys_day = self.base.as_ref().and_then(|base| base.manifest.header.keys_lock_day);
        if is_stale(keys_day) {
            objects.extend(root::objects(store.as_ref()).await?);
            objects.extend(epoch::objects(store.as_ref(), source).await?);
            keys_day = Some(day);
        }
        futures_util::stream::iter(objects.into_iter().map(Ok::<_, RepoError>))
            .try_for_each_concurrent(8, |object| async move { Ok(store.retain(&object, until).await?) })
            .await?;
        for pack in packs.iter_mut().filter(|p| is_stale(p.lock_day)) {
            pack.lock_day = Some(day);
        }
        Ok((Some(until), keys_day))
    }

    /// A host that slept may wake up when what its run stored, or what that builds on, has been swept; its clock may not know.
    async fn check_packs(&self, packs: &[PackRef]) -> Result<()> {
        let (lineage, known) = (&self.lineage, self.shared.known.packs());
        // What a snapshot that is still there needs is there too.
        let base_stands = match self.reused {
            None => true,
            Some(reused) => match lineage.store.head(&manifest::object(&lineage.source, reused)).await {
                Err(error) if error.kind == StoreErrorKind::NotFound => false,
                other => other.map(|_| true)?,
            },
        };
        let old: HashSet<PackId> = known.iter().map(|pack| pack.pack).collect();
        let unsure = packs.iter().filter(|pack| !base_stands || !old.contains(&pack.pack)).collect();
        let lacking = lineage.lacking(unsure).await?;
        lacking.into_iter().next().map_or(Ok(()), |object| Err(RepoError::Swept { object }))
    }

    /// Another run may have committed while this one captured: what shows an earlier moment must not become the newest.
    fn check_moment(&self, newest: &Newest, catalogue: &Catalogue, state: State) -> Result<()> {
        /// What is a little older is as good, and clocks differ.
        const OLDER_MS: i64 = 60_000;
        let began_on = self.base.as_ref().map(Snapshot::sequence).or(self.sealed_base);
        let Some(newer) = newest.snapshot.as_ref().filter(|newest| Some(newest.sequence()) > began_on) else {
            return Ok(());
        };
        let is_later = newer
            .catalogue
            .as_ref()
            .is_some_and(|newer| newer.recovery_point_ms.saturating_sub(OLDER_MS) > catalogue.recovery_point_ms);
        // One that is whole is worth more than one that is not.
        let is_as_good = newer.state() == State::Good || state == State::Incomplete;
        if is_later && is_as_good && state != State::Quarantined {
            return Err(RepoError::Overtaken { source_name: self.lineage.source.clone(), by: newer.sequence() });
        }
        Ok(())
    }

    async fn put_manifest(
        &self,
        header: &mut Header,
        catalogue: &Catalogue,
        private: &Private,
        retain_until: Option<Timestamp>,
    ) -> Result<Sequence> {
        const ATTEMPTS: usize = 8;
        let lineage = &self.lineage;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // A listing may lag behind.
                tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
            }
            let newest = lineage.newest().await?;
            let taken = self.clock.elapsed();
            if taken > self.options.run_limit {
                return Err(RepoError::PastRunLimit { limit_s: self.options.run_limit.as_secs() });
            }
            if self.shared.is_stopped() {
                return Err(RepoError::Stopped);
            }
            self.check_moment(&newest, catalogue, header.state)?;
            header.sequence = newest.next();
            if header.sequence.0 > Sequence::MAX {
                return Err(RepoError::Refused(format!("{}: the snapshot numbers are used up", lineage.source)));
            }
            header.parent = newest.tip.map(|(sequence, digest)| Parent { sequence, digest });
            let elapsed_ms = i64::try_from(taken.as_millis()).unwrap_or(0);
            header.time_ms = self.began.as_millisecond().saturating_add(elapsed_ms);
            let bytes = manifest::write(header, catalogue, private, &lineage.source, &self.epoch)?;
            let object = manifest::object(&lineage.source, header.sequence);
            match lineage.store.put(&object, Bytes::from(bytes), PutOptions { retain_until }).await {
                Ok(()) => return Ok(header.sequence),
                // Another writer came first: theirs becomes the parent.
                Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(RepoError::Busy(lineage.source.clone()))
    }
}

/// The day, counted from the Unix epoch, to which what is needed for `keep` from `now` (Unix seconds) is locked, and the
/// moment that it begins. Rounded up, so that an object is extended once a day however often it is named.
pub(crate) fn lock_until(now: i64, keep: Duration) -> (u32, Timestamp) {
    const DAY: i64 = 86_400;
    let needed = now + i64::try_from(keep.as_secs()).unwrap_or(DAY);
    let day = u32::try_from(needed / DAY + 2).unwrap_or(u32::MAX);
    (day, Timestamp::from_second(i64::from(day) * DAY).unwrap_or(Timestamp::MAX))
}

impl Sink for SnapshotWriter {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        let index = self.next;
        self.next += 1;
        // What the window waits for must not wait here.
        if self.ready.first().is_some_and(|first| first.index + BATCH <= index) {
            self.pass_on()?;
        }
        let shared = &self.shared;
        self.window.wait(index, || shared.is_stopped());
        let Some(queues) = self.queues.as_ref().filter(|_| !shared.is_stopped()) else { return Err(Stopped) };
        shared.progress.entries.fetch_add(1, Ordering::Relaxed);
        let name = self.epoch.writer_keys().map_err(|_| Stopped)?.path_name(&entry.path);
        let Some(input) = input else {
            self.ready.push(Done { index, name, entry: Some((entry, Stored::Nothing, None)), problem: None });
            return Ok(());
        };
        let hinted = match (input.fingerprint, input.layout) {
            (Some(_), Layout::Content) => shared.known.hint(name, || shared.is_stopped()).map_err(|error| {
                shared.fail(error);
                Stopped
            })?,
            _ => None,
        };
        if let (Some(fingerprint), Some(hinted)) = (input.fingerprint, hinted)
            && hinted.fingerprint == fingerprint
        {
            shared.progress.bytes.fetch_add(entry.size, Ordering::Relaxed);
            let entry = Some((entry, Stored::Chunks(hinted.stretches), Some(fingerprint)));
            self.ready.push(Done { index, name, entry, problem: None });
            return Ok(());
        }
        queues.jobs.send(Job { index, name, entry, input, closed: queues.closed.clone() }).map_err(|_| Stopped)
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.add(problem);
    }
}

impl Drop for SnapshotWriter {
    /// Given up: the threads end, unfinished packs vanish. After `commit` there is nothing left to do.
    fn drop(&mut self) {
        if self.queues.is_some() || !self.threads.is_empty() {
            self.shared.fail(RepoError::Stopped);
            self.queues = None;
        }
    }
}
