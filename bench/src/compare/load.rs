//! The load generator. Closed: each caller asks again when it is answered, which gives the most that the server does. Open:
//! requests fall due at a fixed rate whether the server keeps up or not, and a request's time counts from when it was due, so
//! a server that stands still for a while is charged with all who would have come meanwhile.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{sync::Semaphore, task::JoinHandle};
use tonic::Code;

use super::workload::{Caller, Failure, Source};

/// How requests come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    Closed,
    /// Requests a second.
    Open(f64),
}

/// What one phase gave.
pub(crate) struct Outcome {
    /// Times of all requests that were served, sorted.
    millis: Vec<f64>,
    seconds: f64,
    /// When each of them was due, in seconds from the start, with its time.
    pub(crate) served: Vec<(f64, f64)>,
    /// Times of those that the server had no time for, sorted, by its code.
    pub(crate) shed: BTreeMap<String, Vec<f64>>,
}

impl Outcome {
    /// Of requests that were all served.
    #[cfg(test)]
    pub(crate) fn of_served(served: Vec<(f64, f64)>, seconds: f64) -> Self {
        Self::new(served, BTreeMap::new(), seconds)
    }

    fn new(served: Vec<(f64, f64)>, mut shed: BTreeMap<String, Vec<f64>>, seconds: f64) -> Self {
        let mut millis: Vec<_> = served.iter().map(|(_, millis)| *millis).collect();
        millis.sort_unstable_by(f64::total_cmp);
        shed.values_mut().for_each(|millis| millis.sort_unstable_by(f64::total_cmp));
        Self { millis, seconds, served, shed }
    }

    /// Requests that were served.
    pub(crate) fn count(&self) -> usize {
        self.millis.len()
    }

    /// Requests a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.millis.len() as f64 / self.seconds
    }

    /// The time in milliseconds that this share of all requests does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        quantile(&self.millis, share)
    }

    /// Requests that the server had no time for.
    pub(crate) fn shed_count(&self) -> usize {
        self.shed.values().map(Vec::len).sum()
    }
}

/// The value that this share of them does not exceed; they are sorted.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Lets callers ask, or not.
struct Gate {
    start: Instant,
    interval: Option<Duration>,
    /// One for each request that is due and not taken yet.
    due: Semaphore,
    taken: AtomicUsize,
    /// Requests that have fallen due, once that is all.
    total: AtomicUsize,
    stop: AtomicBool,
}

impl Gate {
    fn new(interval: Option<Duration>) -> Self {
        Self {
            start: Instant::now(),
            interval,
            due: Semaphore::new(0),
            taken: AtomicUsize::new(0),
            total: AtomicUsize::new(usize::MAX),
            stop: AtomicBool::new(false),
        }
    }

    /// When the next request was due; nothing when there are no more.
    async fn pass(&self) -> Option<Instant> {
        let Some(interval) = self.interval else {
            return (!self.stop.load(Ordering::Relaxed)).then(Instant::now);
        };
        self.due.acquire().await.ok()?.forget();
        let at = self.taken.fetch_add(1, Ordering::AcqRel);
        (at < self.total.load(Ordering::Acquire)).then(|| self.start + interval.mul_f64(at as f64))
    }

    /// Makes requests due until it is stopped, then lets `callers` go. A thread of its own, since timers of the runtime
    /// count whole milliseconds.
    fn open(&self, interval: Duration, callers: usize) {
        // The kernel may add 50 µs to a sleep otherwise. Where it does not allow less, times are that much longer.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut made = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let due = (self.start.elapsed().as_secs_f64() / interval.as_secs_f64()) as usize + 1;
            self.due.add_permits(due.saturating_sub(made));
            made = made.max(due);
            let next = self.start + interval.mul_f64(made as f64);
            thread::sleep(next.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        }
        self.total.store(made, Ordering::Release);
        self.due.add_permits(callers);
    }
}

/// Lets the callers ask until `until` is ready, or there are no more requests; every request that fell due is sent and
/// waited for.
///
/// # Panics
/// When an answer is wrong, or the server has no time for one.
pub(crate) async fn run(
    callers: &mut Vec<Caller>,
    source: &Arc<Source>,
    pace: Pace,
    until: impl Future<Output = ()>,
) -> Outcome {
    let outcome = run_beyond(callers, source, pace, until).await;
    assert_eq!(outcome.shed_count(), 0, "the server has too much to do: {:?}", outcome.shed.keys());
    outcome
}

/// The same with more than the server may have time for.
///
/// # Panics
/// When an answer is wrong.
pub(crate) async fn run_beyond(
    callers: &mut Vec<Caller>,
    source: &Arc<Source>,
    pace: Pace,
    until: impl Future<Output = ()>,
) -> Outcome {
    let interval = match pace {
        Pace::Closed => None,
        Pace::Open(rate) => Some(Duration::from_secs_f64(1.0 / rate)),
    };
    let gate = Arc::new(Gate::new(interval));
    let count = callers.len();
    let tasks: Vec<_> = callers
        .drain(..)
        .zip(1..)
        .map(|(caller, seed)| {
            tokio::spawn(ask(caller, Rng::with_seed(seed), Arc::clone(source), Arc::clone(&gate)))
        })
        .collect();
    let dispatcher = interval.map(|interval| {
        let gate = Arc::clone(&gate);
        thread::spawn(move || gate.open(interval, count))
    });
    let stop = async {
        until.await;
        gate.stop.store(true, Ordering::Relaxed);
    };
    let (outcome, ()) = tokio::join!(finish(tasks, callers, gate.start), stop);
    if let Some(dispatcher) = dispatcher {
        dispatcher.join().expect("the dispatcher ends");
    }
    outcome
}

type Asked = Result<(Caller, Vec<Answer>), String>;

struct Answer {
    due: Instant,
    millis: f64,
    /// The server's code when it had no time.
    busy: Option<Code>,
}

async fn ask(mut caller: Caller, mut rng: Rng, source: Arc<Source>, gate: Arc<Gate>) -> Asked {
    let mut answers = Vec::new();
    while let Some(due) = gate.pass().await {
        let Some(request) = source.next(&mut rng) else { break };
        let busy = match caller.send(&request).await {
            Ok(()) => None,
            Err(Failure::Busy(code)) => Some(code),
            Err(Failure::Wrong(wrong)) => return Err(wrong),
        };
        answers.push(Answer { due, millis: due.elapsed().as_secs_f64() * 1000.0, busy });
    }
    Ok((caller, answers))
}

async fn finish(tasks: Vec<JoinHandle<Asked>>, callers: &mut Vec<Caller>, start: Instant) -> Outcome {
    let (mut served, mut shed) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
    for task in tasks {
        let (caller, answers) = match task.await.expect("a caller ends") {
            Ok(asked) => asked,
            Err(wrong) => panic!("an answer is wrong: {wrong}"),
        };
        callers.push(caller);
        for Answer { due, millis, busy } in answers {
            match busy {
                None => served.push(((due - start).as_secs_f64(), millis)),
                Some(code) => shed.entry(format!("{code:?}")).or_default().push(millis),
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Outcome::new(served, shed, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn requests_that_fell_due_while_nobody_asked_are_all_asked_and_count_from_when_they_were_due() {
        let interval = Duration::from_millis(1);
        let gate = Arc::new(Gate::new(Some(interval)));
        let dispatcher = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.open(interval, 1))
        };
        let first = gate.pass().await.expect("the first is due at once");
        assert_eq!(first, gate.start);
        // A server that stands still.
        tokio::time::sleep(20 * interval).await;
        gate.stop.store(true, Ordering::Relaxed);
        dispatcher.join().expect("the dispatcher ends");
        let mut due = vec![first];
        while let Some(next) = gate.pass().await {
            due.push(next);
        }
        assert_eq!(due.len(), gate.total.load(Ordering::Relaxed));
        assert!(due.len() > 1, "some fell due meanwhile");
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] == interval));
    }

    #[test]
    fn a_quantile_is_the_least_time_that_so_many_do_not_exceed() {
        let outcome = Outcome::of_served((1..=200).map(|at| (0.0, f64::from(at))).collect(), 10.0);
        assert_eq!([outcome.quantile(0.5), outcome.quantile(0.99)], [100.0, 198.0]);
        assert_eq!(outcome.per_second(), 20.0);
    }
}
