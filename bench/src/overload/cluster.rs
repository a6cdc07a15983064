//! A server with the limits that it has by itself, filled with secrets, and nodes that ask it, each from an address of its own.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
    time::Duration,
};

use keyfold::dev::tokens::{Minter, SigningKey};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use crate::compare::{
    broker::Broker,
    load::{self, Outcome, Pace},
    meter::Meter,
    stand::for_each,
    tokens::{Mint, PodToken},
    workload::{Caller, Column, Feed, Request, Side, Source, Workload},
};

/// The pods' issuer. Nothing is asked there: the server is given its key.
const ISSUER: &str = "https://kubernetes.default.svc";
/// Nodes whose pods ask.
pub(crate) const NODES: usize = 64;
/// Pods of all nodes together. Each token is used again and again: signing one takes longer than checking forty.
const PODS: usize = 4096;

/// The server, and who asks it.
pub(crate) struct Cluster {
    pub(crate) broker: Arc<Broker>,
    pub(crate) mint: Arc<Mint>,
    stored: u32,
    tokens: Arc<Vec<PodToken>>,
}

impl Cluster {
    /// Starts Postgres and the server, declares everything and writes so many secrets. `settings` are top-level keys of the
    /// server's configuration.
    ///
    /// # Panics
    /// When a part does not start or refuses.
    pub(crate) async fn start(settings: &[(String, Value)], stored: u32) -> Self {
        let minter = Minter { issuer: ISSUER.into(), key: SigningKey::generate().expect("an RSA key") };
        let mint = Mint::new(minter);
        let settings = [&[("limits".to_owned(), json!({}))], settings].concat();
        // What this thread starts has the processors that it has then.
        run_on(Half::Served);
        let broker = Arc::new(Broker::start(Arc::clone(&mint), &settings).await);
        run_on(Half::Asking);
        let column = Column { key: "keyfold", side: Side::Keyfold(Arc::clone(&broker)) };
        for_each(&column, 0, stored, Request::Write).await;
        let tokens = mint.tokens(PODS, NODES).await;
        Self { broker, mint, stored, tokens }
    }

    /// Where its figures come from.
    pub(crate) fn meter(&self) -> Meter {
        self.broker.meter()
    }

    /// So many callers, on these nodes.
    pub(crate) async fn callers(&self, count: usize, nodes: Range<usize>) -> Vec<Caller> {
        self.broker.callers_at(count, nodes).await.into_iter().map(Caller::Keyfold).collect()
    }

    /// Requests of these nodes' pods, at most so many pods.
    pub(crate) fn requests(&self, workload: Workload, nodes: Range<usize>, pods_max: usize) -> Arc<Source> {
        let tokens = self.tokens.iter().filter(|token| nodes.contains(&token.node)).take(pods_max);
        let feed = Feed::ring(&Arc::new(tokens.cloned().collect()));
        Arc::new(Source { workload, stored: self.stored, feed })
    }
}

/// Lets them ask for so long.
///
/// # Panics
/// When an answer is wrong.
pub(crate) async fn ask(
    callers: &mut Vec<Caller>,
    source: &Arc<Source>,
    pace: Pace,
    time: Duration,
) -> Outcome {
    load::run_beyond(callers, source, pace, tokio::time::sleep(time)).await
}

/// Half of the processors: callers on the same ones as the server would be slower the more there are, and ask for less.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    /// Of server and Postgres.
    Served,
    /// Of this program.
    Asking,
}

/// Lets the calling thread run on one half alone, where there is more than one processor.
pub(crate) fn run_on(half: Half) {
    let processors = *PROCESSORS;
    let middle = processors.div_ceil(2);
    let (first, end) = match half {
        Half::Served => (0, middle),
        Half::Asking => (middle.min(processors - 1), processors),
    };
    let mut set = CpuSet::new();
    (first..end).for_each(|processor| set.set(processor));
    // Where that is not allowed, all share all.
    let _ = sched_setaffinity(None, &set);
}

/// As many as there were before any thread was bound to some.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
