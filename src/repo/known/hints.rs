//! Hints of the base snapshot in little memory: a few bytes per file, and the lists that the walk is at.
//!
//! All lists are read once, in order, from the beginning of the run, and the paths of each are noted. As many are kept as there
//! is room for, first those that the walk comes to next; others are read again when their turn comes. Files are mostly asked
//! for in the order in which the base has them; whoever asks out of order is told from all lists.

use super::Hinted;
use crate::entry::Fingerprint;
use crate::id::PackId;
use crate::repo::error::{RepoError, Result};
use crate::repo::frame::{Place, Stretch};
use crate::repo::manifest::Ref;
use crate::repo::reader::Reader;
use crate::repo::segment::{self, decode};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Memory for lists, bytes.
const ROOM: usize = 32 << 20;
/// How often whoever waits asks whether to go on.
const TICK: Duration = Duration::from_millis(50);
/// So many hints behind the last one found are looked at first, since files vanish.
const FEW: usize = 16;

/// The first files' hints are known before the last ones': whoever asks waits for what it needs.
pub(super) struct Hints {
    lists: Option<Lists>,
    state: Mutex<State>,
    more: Condvar,
}

/// Where the lists are.
struct Lists {
    runtime: Handle,
    reader: Arc<Reader>,
    places: Vec<Ref>,
    /// Packs that may be used, and where they are among the base's.
    packs: HashMap<PackId, u32>,
}

struct List {
    hints: Vec<Hint>,
    stretches: Vec<(Place, u32)>,
}

struct Hint {
    path: u64,
    fingerprint: Fingerprint,
    /// Of the list's stretches.
    range: (u32, u32),
}

#[derive(Default)]
struct State {
    /// Lists that were read.
    read: usize,
    /// Their paths.
    noted: Vec<Box<[u32]>>,
    /// (path, list), sorted. Made of `noted`, which is empty then, when somebody asks out of order.
    index: Option<Vec<(u32, u32)>>,
    kept: BTreeMap<usize, Arc<List>>,
    kept_bytes: usize,
    /// A list, and the place in it behind the last hint that was found.
    cursor: (usize, usize),
    /// All are read, or why there will be no more.
    ended: Option<Result<()>>,
}

/// Enough of a path's hash to find its list.
fn short(path: u64) -> u32 {
    (path >> 32) as u32
}

impl Hints {
    /// There are none.
    pub fn none() -> Arc<Self> {
        let state = State { ended: Some(Ok(())), ..State::default() };
        Arc::new(Self { lists: None, state: Mutex::new(state), more: Condvar::new() })
    }

    /// Begins to read the lists at `places`. Hints that name other packs than `packs` are passed over.
    pub fn load(reader: Arc<Reader>, places: Vec<Ref>, packs: HashMap<PackId, u32>) -> Arc<Self> {
        let runtime = Handle::current();
        let lists = Some(Lists { runtime: runtime.clone(), reader, places, packs });
        let this = Arc::new(Self { lists, state: Mutex::default(), more: Condvar::new() });
        let hints = this.clone();
        runtime.spawn(async move {
            let how = hints.read_all().await;
            hints.lock().ended = Some(how);
            hints.more.notify_all();
        });
        this
    }

    async fn read_all(&self) -> Result<()> {
        let Some(lists) = &self.lists else { return Ok(()) };
        let mut read = futures_util::stream::iter(lists.places.clone()).map(|place| lists.read(place)).buffered(8);
        while let Some(list) = read.try_next().await? {
            self.lock().take(list);
            self.more.notify_all();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `enough`, or until there is nothing more to come. The first who asks learns why.
    fn wait(&self, enough: impl Fn(&State) -> bool, give_up: &impl Fn() -> bool) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        loop {
            match &state.ended {
                _ if enough(&state) => return Ok(state),
                Some(Ok(())) => return Ok(state),
                Some(Err(_)) => {
                    return Err(match state.ended.replace(Err(RepoError::Stopped)) {
                        Some(Err(why)) => why,
                        _ => RepoError::Stopped,
                    });
                }
                None if give_up() => return Err(RepoError::Stopped),
                // The time-out only lets a failed run be noticed.
                None => {
                    let wait = self.more.wait_timeout(state, TICK);
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Waits until all lists have been read, whether anybody needed them or not. Blocks.
    pub fn check(&self, give_up: impl Fn() -> bool) -> Result<()> {
        self.wait(|_| false, &give_up).map(drop)
    }

    /// What the base says of the file with this path. Blocks while that is not known, unless `give_up` says so. One may ask
    /// at a time.
    pub fn find(&self, path: u64, give_up: impl Fn() -> bool) -> Result<Option<Hinted>> {
        let (number, from) = self.lock().cursor;
        for (number, from) in [(number, from), (number + 1, 0)] {
            let Some(list) = self.list(number, &give_up)? else { break };
            if let Some(ahead) = list.hints.iter().skip(from).take(FEW).position(|hint| hint.path == path) {
                return Ok(self.found(&list, number, from + ahead));
            }
            if from + FEW <= list.hints.len() {
                break;
            }
        }
        let mut all = self.wait(|_| false, &give_up)?;
        let numbers = all.lists_with(path);
        drop(all);
        for number in numbers {
            let Some(list) = self.list(number, &give_up)? else { break };
            if let Some(at) = list.hints.iter().position(|hint| hint.path == path) {
                return Ok(self.found(&list, number, at));
            }
        }
        Ok(None)
    }

    fn found(&self, list: &List, number: usize, at: usize) -> Option<Hinted> {
        self.lock().cursor = (number, at + 1);
        list.hinted(at)
    }

    /// A list by its number; `None` if there are not so many.
    fn list(&self, number: usize, give_up: &impl Fn() -> bool) -> Result<Option<Arc<List>>> {
        let state = self.wait(|state| state.read > number, give_up)?;
        if state.read <= number {
            return Ok(None);
        }
        if let Some(list) = state.kept.get(&number) {
            return Ok(Some(list.clone()));
        }
        drop(state);
        let Some((lists, place)) = self.lists.as_ref().and_then(|lists| Some((lists, *lists.places.get(number)?)))
        else {
            return Ok(None);
        };
        let read = lists.runtime.block_on(async {
            let mut read = std::pin::pin!(lists.read(place));
            loop {
                tokio::select! {
                    read = &mut read => return read,
                    () = tokio::time::sleep(TICK) => if give_up() { return Err(RepoError::Stopped) },
                }
            }
        });
        let list = Arc::new(read?);
        self.lock().keep(number, list.clone(), true);
        Ok(Some(list))
    }
}

impl State {
    fn take(&mut self, list: List) {
        let number = self.read;
        self.read += 1;
        self.noted.push(list.hints.iter().map(|hint| short(hint.path)).collect());
        self.keep(number, Arc::new(list), false);
    }

    /// Keeps a list, in the place of those that the walk is past; if it is needed now, of any.
    fn keep(&mut self, number: usize, list: Arc<List>, now: bool) {
        while self.kept_bytes + list.bytes() > ROOM {
            let past = self.kept.first_key_value().map(|(first, _)| *first).filter(|first| *first < self.cursor.0);
            let furthest = self.kept.last_key_value().map(|(furthest, _)| *furthest).filter(|_| now);
            let Some(gone) = past.or(furthest).and_then(|number| self.kept.remove(&number)) else { break };
            self.kept_bytes -= gone.bytes();
        }
        if now || self.kept_bytes + list.bytes() <= ROOM {
            self.kept_bytes += list.bytes();
            self.kept.insert(number, list);
        }
    }

    /// The lists that may have a path; all must have been read.
    fn lists_with(&mut self, path: u64) -> Vec<usize> {
        let noted = &mut self.noted;
        let index = self.index.get_or_insert_with(|| {
            let mut index = Vec::with_capacity(noted.iter().map(|paths| paths.len()).sum());
            for (number, paths) in (0..).zip(std::mem::take(noted)) {
                index.extend(paths.iter().map(|path| (*path, number)));
            }
            index.sort_unstable();
            index
        });
        let from = index.partition_point(|(noted, _)| *noted < short(path));
        index[from..]
            .iter()
            .take_while(|(noted, _)| *noted == short(path))
            .map(|(_, number)| *number as usize)
            .collect()
    }
}

impl List {
    fn bytes(&self) -> usize {
        size_of_val(&*self.hints) + size_of_val(&*self.stretches)
    }

    fn hinted(&self, at: usize) -> Option<Hinted> {
        let Hint { fingerprint, range: (start, end), .. } = *self.hints.get(at)?;
        let places = self.stretches.get(start as usize..end as usize)?;
        let total: u64 = places.iter().map(|p| u64::from(p.1)).sum();
        // Which of several runs holds how many bytes is not known here; it only guides what to store afresh.
        let share = |count: u32| (u128::from(fingerprint.size) * u128::from(count) / u128::from(total.max(1))) as u64;
        let stretches = places.iter().map(|&(first, count)| Stretch { first, count, bytes: share(count) }).collect();
        Some(Hinted { fingerprint, stretches })
    }
}

impl Lists {
    async fn read(&self, place: Ref) -> Result<List> {
        let stored: segment::Hints = decode("a hint list", &self.reader.chunk(place).await?)?;
        let packs: Vec<Option<u32>> = stored.packs.iter().map(|pack| self.packs.get(pack).copied()).collect();
        let (mut hints, mut stretches) = (Vec::with_capacity(stored.hints.len()), Vec::new());
        for hint in &stored.hints {
            let start = stretches.len();
            for run in &hint.runs {
                if let Some(pack) = packs.get(run.pack as usize).copied().flatten() {
                    stretches.push((Place::old(pack, run.first), run.count));
                }
            }
            if stretches.len() - start == hint.runs.len() {
                let range = (start as u32, stretches.len() as u32);
                hints.push(Hint { path: hint.path, fingerprint: hint.fingerprint(), range });
            } else {
                stretches.truncate(start);
            }
        }
        hints.shrink_to_fit();
        stretches.shrink_to_fit();
        Ok(List { hints, stretches })
    }
}
