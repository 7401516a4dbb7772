//! Agents in event loops: a descriptor that says when there is something to do, and a loop for tokio.
//!
//! ```text
//!   poll until Idle ──► park: arm everybody, look once more ──► true: wait for event_fd ──► poll …
//!         ▲                                                └──► false: somebody has something ──┐
//!         └─────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use super::Agent;
use crate::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Ends an agent's sleep from another thread, where that has brought it something to do. Clones wake the same agent.
#[derive(Debug, Clone)]
pub struct AgentWaker {
    event: Arc<OwnedFd>,
}

impl AgentWaker {
    /// Has [`Agent::wait`] return, or the next one if none is under way. One system call.
    pub fn wake(&self) {
        // It fails only where it was written 2^64 times and not read: then it wakes already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl Agent {
    /// What other threads wake this agent by.
    pub fn waker(&self) -> AgentWaker {
        AgentWaker { event: Arc::clone(&self.deferral.event) }
    }

    /// A descriptor that becomes readable when there is something to do, for epoll and the like. Wait for it only after
    /// [`Agent::park`] has said `true`; don't read it.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// Gets ready to sleep: asks every client to ring from now on, and looks once more. Says whether nobody has anything; if
    /// not, call [`Agent::poll`] again.
    pub fn park(&mut self) -> Result<bool, Error> {
        self.check_fork()?;
        self.hear();
        if !self.clients.cool_down() {
            return Ok(false);
        }
        self.idle = 0;
        let sleeps = self.look(Duration::ZERO)? == 0;
        if sleeps {
            self.set_timer()?;
        }
        Ok(sleeps)
    }

    /// [`Agent::run`] as a future on tokio: serves until `stop` is ready or a successor is, then closes in order. Handlers run
    /// in this task; what takes long answers through [`Answer::defer`](super::Answer::defer) from a task of its own.
    ///
    /// ```no_run
    /// # async fn serve(mut agent: podshm::Agent) -> Result<(), podshm::Error> {
    /// struct Slow;
    /// impl podshm::Handler for Slow {
    ///     fn call(&mut self, request: podshm::Request<'_>, answer: &mut podshm::Answer<'_>) {
    ///         let (later, question) = (answer.defer(), request.bytes.to_vec());
    ///         tokio::spawn(async move { later.reply(question) });
    ///     }
    /// }
    /// agent.run_async(&mut Slow, std::future::pending()).await
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub async fn run_async(
        &mut self,
        handler: &mut impl super::Handler,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        use std::task::Poll;
        use tokio::io::Interest;
        use tokio::io::unix::AsyncFd;

        let event = self.poll.try_clone().map_err(Error::system("duplicating the agent's epoll"))?;
        // Deprecated because a type may give another descriptor at each call; an OwnedFd doesn't.
        #[allow(deprecated)]
        let event = AsyncFd::with_interest(event, Interest::READABLE)
            .map_err(Error::system("giving the agent's epoll to the runtime"))?;
        let mut stop = std::pin::pin!(stop);
        loop {
            // Rounds with work are bounded, so that other tasks of this thread get their turn and `stop` is seen.
            for _ in 0..64 {
                match self.poll(handler)? {
                    super::Progress::Handled(_) => {}
                    super::Progress::Idle if self.spins() => std::hint::spin_loop(),
                    super::Progress::Idle => break,
                    super::Progress::CloseAsked => return self.close(Vec::new()),
                }
            }
            let began = self.sleep_begins();
            let sleeps = !self.spins() && self.park()?;
            let mut yielded = false;
            let stopped = std::future::poll_fn(|context| {
                if stop.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Ok(true));
                }
                if sleeps {
                    // Cleared before the next park looks: what comes after that look makes it ready again.
                    return event.poll_read_ready(context).map_ok(|mut ready| {
                        ready.clear_ready();
                        false
                    });
                }
                if std::mem::replace(&mut yielded, true) {
                    return Poll::Ready(Ok(false));
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await
            .map_err(Error::system("waiting for the agent's epoll"))?;
            if sleeps {
                self.sleep_ends(began);
            }
            if stopped {
                return self.close(Vec::new());
            }
        }
    }
}
