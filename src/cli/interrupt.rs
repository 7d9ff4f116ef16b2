//! SIGINT and SIGTERM: the first asks for a clean end, the second ends the process at once.

use super::fault::{Exit, Failure};
use crate::source::Cancel;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A command that cleans up has this long for it.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Begins to listen.
    pub fn listen() -> Result<Self, Failure> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if tell.send_replace(true) {
                    std::process::exit(Exit::Interrupted as i32);
                }
            }
        });
        Ok(Self(told))
    }

    /// Waits until it is asked for.
    pub async fn requested(&self) {
        let mut told = self.0.clone();
        // The sender lives as long as the runtime.
        if told.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs what blocks; an interrupt asks it to end and waits for that.
    pub async fn blocking<T: Send + 'static>(
        &self,
        cancel: &Cancel,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let mut work = std::pin::pin!(tokio::task::spawn_blocking(work));
        Ok(tokio::select! {
            done = &mut work => done?,
            () = self.requested() => {
                cancel.cancel();
                work.await?
            }
        })
    }

    /// Waits until a command must be given up.
    pub async fn patience_ends(&self, command_cleans_up: bool) {
        self.requested().await;
        if command_cleans_up {
            tokio::time::sleep(PATIENCE).await;
        }
    }
}
