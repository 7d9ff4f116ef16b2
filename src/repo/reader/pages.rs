//! Contents that are laid out in pages (`docs/format.md`, "Pages"): which pack holds which page, by the directories.

use super::frames::locate;
use super::{Emit, Item, Pages, ReadError, Reader};
use crate::repo::error::{RepoError, Result};
use crate::repo::pack::{PackIndex, PageRun};
use std::sync::Arc;

/// Pages whose places are looked up at a time.
const WINDOW: u64 = 4_096;

impl Reader {
    pub(super) fn read_pages(
        &self,
        item: &Item,
        pages: &Pages,
        part: (u64, u64),
        emit: &mut Emit<'_>,
    ) -> Result<(), ReadError> {
        self.runtime.block_on(pages.checked.get_or_try_init(|| self.check_pages(item, pages)))?;
        let size = u64::from(pages.size);
        let end = part.1.min(item.entry.size).div_ceil(size);
        let mut from = part.0 / size;
        while let Some(window) = self.runtime.block_on(self.next_window(pages.space, from, end))? {
            self.read_window(item, pages, window, emit)?;
            from = window.1;
        }
        Ok(())
    }

    /// The directories name every page of the file, and the right ones: a pack that is not listed must not become zeros.
    pub(super) async fn check_pages(&self, item: &Item, pages: &Pages) -> Result<()> {
        let keys = self.epoch.writer_keys()?;
        let end = item.entry.size.div_ceil(u64::from(pages.size.max(1)));
        let (mut digest, mut from) = (0u128, 0);
        while let Some(window) = self.next_window(pages.space, from, end).await? {
            for (_, index, run) in self.window(pages.space, window).await? {
                for i in 0..run.count {
                    let id = run.ordinal.and_then(|first| index.id(first + i));
                    digest = digest.wrapping_add(id.map_or(0, |id| keys.page_mark(run.first + u64::from(i), id)));
                }
            }
            from = window.1;
        }
        if digest == pages.digest {
            Ok(())
        } else {
            let name = String::from_utf8_lossy(&item.entry.path);
            let reason = format!("the packs it lists do not hold the pages of {name} that it should have");
            Err(RepoError::damaged(&self.snapshot.manifest.object, reason))
        }
    }

    /// The next pages before `end` that anything is said of: a file may be much larger than what it holds.
    async fn next_window(&self, space: u64, from: u64, end: u64) -> Result<Option<(u64, u64)>> {
        let mut next = end;
        for pack in 0..self.frames.packs() {
            next = next.min(self.index(pack).await?.next_page(space, from).unwrap_or(end));
        }
        Ok((next < end).then(|| (next, end.min(next + WINDOW))))
    }

    /// What holds each page of a window, in runs; pages that nothing holds are zeros.
    pub(super) async fn window(
        &self,
        space: u64,
        (from, to): (u64, u64),
    ) -> Result<Vec<(u32, Arc<PackIndex>, PageRun)>> {
        let mut taken = vec![false; (to - from) as usize];
        let mut found: Vec<(u32, Arc<PackIndex>, PageRun)> = Vec::new();
        // The last pack that has a page holds it.
        for pack in (0..self.frames.packs()).rev() {
            let index = self.index(pack).await?;
            for run in index.page_runs(space, from, to) {
                for i in 0..run.count {
                    let page = run.first + u64::from(i);
                    if std::mem::replace(&mut taken[(page - from) as usize], true) {
                        continue;
                    }
                    let ordinal = run.ordinal.map(|first| first + i);
                    match found.last_mut() {
                        Some((held, _, last))
                            if *held == pack
                                && last.end() == page
                                && last.ordinal.map(|o| o + last.count) == ordinal =>
                        {
                            last.count += 1;
                        }
                        _ => found.push((pack, index.clone(), PageRun { space, first: page, count: 1, ordinal })),
                    }
                }
            }
        }
        Ok(found)
    }

    fn read_window(
        &self,
        item: &Item,
        pages: &Pages,
        window: (u64, u64),
        emit: &mut Emit<'_>,
    ) -> Result<(), ReadError> {
        let size = u64::from(pages.size);
        let mut held = None;
        for (pack, index, run) in self.runtime.block_on(self.window(pages.space, window))? {
            let Some(first) = run.ordinal else { continue };
            for i in 0..run.count {
                let at = locate(&index, first + i)?;
                let open = self.runtime.block_on(self.frames.turn_to(&mut held, pack, at.frame))?;
                let bytes = &open[at.offset as usize..][..at.length as usize];
                self.frames.check(&index, at.id, bytes)?;
                let offset = (run.first + u64::from(i)) * size;
                if bytes.len() as u64 != size {
                    return Err(RepoError::damaged(&index.object, "a page has another size than its file's").into());
                }
                let length = size.min(item.entry.size - offset) as usize;
                emit(offset, &bytes[..length]).map_err(ReadError::Emit)?;
            }
        }
        Ok(())
    }
}
