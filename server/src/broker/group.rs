//! Group commit: one transaction does the work of all callers in flight on this replica, so that the log's head row is
//! locked, and the disk waited for, once for all of them. Whoever comes while a commit is under way is in the next, which
//! begins once half as many wait as the last one served, or nobody more comes. A caller alone waits for nobody.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::oneshot, task::yield_now, time::Instant};

use crate::{
    config,
    error::Error,
    store::{Committed, Isolation, Store, Tx},
};

/// Nobody more may have come of so much giving way: with one turn alone a caller would often be missed who is being decided on
/// another thread at that time.
const GIVES_WAY: u32 = 2;

/// What is done for several callers in one transaction.
pub(crate) trait GroupWork: Send + Sync + 'static {
    /// What a caller submits.
    type Item: Send + Sync;
    /// What a caller gets, once it is durable.
    type Outcome: Send;
    /// The transaction's name, for metrics.
    const NAME: &'static str;

    /// Does the work of all of them and commits. Each succeeds or fails alone, in their order; an `Err` of the whole says
    /// that nothing was done, or that this is not known.
    fn commit(
        &self,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Result<Self::Outcome, Error>>, Error>> + Send;
}

/// Where callers submit.
pub(crate) struct Group<W: GroupWork>(Arc<Server<W>>);

struct Server<W: GroupWork> {
    work: W,
    config: config::Audit,
    queue: Mutex<Queue<W>>,
}

struct Queue<W: GroupWork> {
    waiting: VecDeque<Waiting<W>>,
    is_served: bool,
}

struct Waiting<W: GroupWork> {
    item: W::Item,
    reply: Reply<W>,
}

type Reply<W> = oneshot::Sender<Result<<W as GroupWork>::Outcome, Error>>;

impl<W: GroupWork> Default for Queue<W> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), is_served: false }
    }
}

impl<W: GroupWork> Group<W> {
    /// Of a server that has just started.
    pub(crate) fn new(work: W, config: config::Audit) -> Self {
        Self(Arc::new(Server { work, config, queue: Mutex::default() }))
    }

    /// Commits the caller's work together with that of others. It is durable when this returns `Ok`.
    ///
    /// # Errors
    /// Those of the work: then it is not done. Those of Postgres: then it may be.
    pub(super) async fn submit(&self, item: W::Item) -> Result<W::Outcome, Error> {
        let (reply, outcome) = oneshot::channel();
        let is_served = {
            let mut queue = self.0.queue();
            queue.waiting.push_back(Waiting { item, reply });
            std::mem::replace(&mut queue.is_served, true)
        };
        if !is_served {
            // In a task of its own: a caller who goes away does not end what others wait for.
            tokio::spawn(Arc::clone(&self.0).serve());
        }
        outcome.await.map_err(|_| Error::Corrupt("a commit shared with others stopped short".into()))?
    }
}

impl<W: GroupWork> Server<W> {
    fn queue(&self) -> MutexGuard<'_, Queue<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits until nobody waits any more.
    async fn serve(self: Arc<Self>) {
        let _serving = Serving(&self);
        let mut served = 0;
        loop {
            self.gather(served).await;
            let Some(batch) = self.next_batch() else { break };
            served = batch.len();
            #[allow(clippy::cast_precision_loss, reason = "some hundred")]
            metrics::histogram!("keyfold_group_size", "name" => W::NAME).record(batch.len() as f64);
            self.commit(batch).await;
        }
    }

    /// Until half as many wait as were `served` last, gives way to all that is ready to run, for as long as more callers come
    /// of it: a commit costs about the same for all of them as for the first. Where nothing is ready this takes no time. Half are
    /// enough: the others are answered and come again while Postgres has these.
    async fn gather(&self, served: usize) {
        let until = Instant::now() + self.config.group_wait();
        let (mut waiting, mut turns_without_more) = (self.queue().waiting.len(), 0);
        while 2 * waiting < served && turns_without_more < GIVES_WAY && Instant::now() < until {
            yield_now().await;
            let now_waiting = self.queue().waiting.len();
            turns_without_more = if now_waiting > waiting { 0 } else { turns_without_more + 1 };
            waiting = now_waiting;
        }
    }

    /// Those who wait, up to a bound. When nobody does, this is served no longer.
    fn next_batch(&self) -> Option<Vec<Waiting<W>>> {
        let mut queue = self.queue();
        let count = queue.waiting.len().min(self.config.group_entries_max);
        queue.is_served = count > 0;
        (count > 0).then(|| queue.waiting.drain(..count).collect())
    }

    async fn commit(&self, batch: Vec<Waiting<W>>) {
        let (items, mut replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|waiting| (waiting.item, waiting.reply)).unzip();
        let outcomes = match self.work.commit(&items).await {
            Ok(outcomes) => outcomes,
            Err(error) if items.len() > 1 && error.is_of_its_work() => self.commit_each(&items).await,
            Err(error) => {
                if error.is_database_silent() {
                    // Who came meanwhile has waited for nothing already, and is not to wait as long once more.
                    replies.extend(self.queue().waiting.drain(..).map(|waiting| waiting.reply));
                }
                replies.iter().map(|_| Err(error.clone())).collect()
            }
        };
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // For whoever went away it is done all the same.
            let _ = reply.send(outcome);
        }
    }

    /// Commits each alone, so that one does not keep the others from theirs; until it is something else that fails.
    async fn commit_each(&self, items: &[W::Item]) -> Vec<Result<W::Outcome, Error>> {
        let mut outcomes = Vec::with_capacity(items.len());
        for item in items.chunks(1) {
            match self.work.commit(item).await {
                Ok(done) => outcomes.extend(done),
                Err(error) if error.is_of_its_work() => outcomes.push(Err(error)),
                Err(error) => {
                    outcomes.resize_with(items.len(), || Err(error.clone()));
                    break;
                }
            }
        }
        outcomes
    }
}

/// Whether all who were to be served in a transaction are.
pub(super) enum Attempt<T> {
    Whole(Committed<T>),
    /// What these rest on has fallen, which is known only after something was written for them.
    Without(Vec<usize>),
}

/// Runs `attempt` in a transaction, and anew without those that turn out to have to be left out.
pub(super) async fn commit_without_fallen<T, W>(
    store: &Store,
    name: &'static str,
    isolation: Isolation,
    attempt: impl Fn(Tx, HashSet<usize>) -> W,
) -> Result<T, Error>
where
    W: Future<Output = Result<Attempt<T>, Error>>,
{
    let fallen = Mutex::new(HashSet::new());
    let so_far = || fallen.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let known = so_far().len();
        let run = |tx| {
            let attempt = attempt(tx, so_far().clone());
            async move {
                match attempt.await? {
                    Attempt::Whole(committed) => Ok(committed),
                    Attempt::Without(places) => {
                        so_far().extend(places);
                        Err(Error::Busy)
                    }
                }
            }
        };
        match store.tx(name, isolation, run).await {
            Err(Error::Busy) if so_far().len() > known => {}
            done => return done,
        }
    }
}

/// Lets the next caller begin anew when what serves them panics.
struct Serving<'a, W: GroupWork>(&'a Server<W>);

impl<W: GroupWork> Drop for Serving<'_, W> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.queue() = Queue::default();
        }
    }
}
