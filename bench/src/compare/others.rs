//! What is no load by many callers: lists, start-up, and the turn of a key.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use serde_json::{Value, json};

use super::{
    broker::Broker,
    cell::{Cell, Plan},
    load::{self, Outcome, Pace},
    sample::{Sample, ratio, summary},
    stored::KEYSPACE,
    workload::{Caller, Column, Feed, Request, Side, Source, nodes},
};
use crate::rotation;

/// A server that has not answered after this long never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a server that starts is asked.
const POLL: Duration = Duration::from_millis(2);
/// Pods that ask while the key turns.
pub(super) const CALLERS: usize = 32;
/// The share that they take of the most that they can get: the turn has room beside them.
const SHARE: f64 = 0.5;
const RING_TOKENS: usize = 2000;

/// Lists by one caller, as fast as they are answered.
///
/// # Panics
/// When an answer is wrong.
pub(super) async fn list(cell: &Cell, plan: &Plan, columns: &[&Column]) -> Value {
    let Cell { workload, stored, .. } = *cell;
    let mut samples = vec![Vec::new(); columns.len()];
    let tokens = plan.mint.tokens(1, 1).await;
    for _ in 0..plan.pairs {
        for (column, samples) in columns.iter().zip(&mut samples) {
            let mut callers = column.callers(1).await;
            let source = Arc::new(Source { workload, stored, feed: Feed::ring(&tokens) });
            let outcome =
                load::run(&mut callers, &source, Pace::Closed, tokio::time::sleep(plan.phase)).await;
            samples.push(Sample::from([
                ("ops", outcome.per_second()),
                ("p50_ms", outcome.quantile(0.5)),
                ("p99_ms", outcome.quantile(0.99)),
                ("rss_mb", column.meter().rss_mb()),
            ]));
        }
    }
    entry(cell, columns, &samples)
}

/// Stops each server and starts it again, until it gives the first right answer.
///
/// # Panics
/// When it gives none within a minute.
pub(super) async fn start_up(cell: &Cell, plan: &Plan, columns: &[&Column]) -> Value {
    let mut samples = vec![Vec::new(); columns.len()];
    for pair in 0..plan.pairs {
        for (column, samples) in columns.iter().zip(&mut samples) {
            let secret = Rng::with_seed(pair as u64).u32(..cell.stored);
            let ready = match &column.side {
                Side::Keyfold(broker) => start_broker(broker, column, secret).await,
                Side::Peer(peer, _) => {
                    peer.stop().await;
                    let start = Instant::now();
                    peer.launch().await;
                    first_answer(start, column, None, secret).await
                }
            };
            let rss_mb = column.meter().rss_mb();
            samples.push(Sample::from([("ready_ms", ready.as_secs_f64() * 1000.0), ("rss_mb", rss_mb)]));
        }
    }
    entry(cell, columns, &samples)
}

async fn start_broker(broker: &Broker, column: &Column, secret: u32) -> Duration {
    // Its connection comes back by itself, and its token is made before the clock runs.
    let caller = column.callers(1).await.pop();
    broker.stop().await;
    let start = Instant::now();
    let ((), ready) = tokio::join!(broker.launch(), first_answer(start, column, caller, secret));
    ready
}

async fn first_answer(start: Instant, column: &Column, mut kept: Option<Caller>, secret: u32) -> Duration {
    loop {
        let answer = match &mut kept {
            Some(caller) => caller.send(&Request::Read(secret)).await,
            None => match column.try_callers(1).await {
                Ok(mut callers) => callers[0].send(&Request::Read(secret)).await,
                Err(failure) => Err(failure.into()),
            },
        };
        match answer {
            Ok(()) => return start.elapsed(),
            Err(failure) if start.elapsed() > PATIENCE => panic!("{}: {failure}", column.key),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Keyfold alone, for the peer encrypts nothing anew when its key turns: pods' starts at a fixed rate, in quiet and while
/// every data key is rewrapped. The ratio is quiet to turning.
///
/// # Panics
/// When an answer is wrong.
pub(super) async fn issue_during_rewrap(cell: &Cell, plan: &Plan, column: &Column) -> Value {
    let Cell { workload, callers: count, stored } = *cell;
    let Side::Keyfold(broker) = &column.side else { unreachable!("the first column is Keyfold's") };
    let operator = broker.administrator().await;
    let mut callers = column.callers(count).await;
    let tokens = plan.mint.tokens(RING_TOKENS, nodes(count)).await;
    let source = Arc::new(Source { workload, stored, feed: Feed::ring(&tokens) });
    let quiet = || tokio::time::sleep(plan.phase);
    let most = load::run(&mut callers, &source, Pace::Closed, quiet()).await.per_second();
    let pace = Pace::Open(most * SHARE);
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for _ in 0..plan.pairs {
        before.push(times(&load::run(&mut callers, &source, pace, quiet()).await));
        let start = Instant::now();
        let mut moved = 0;
        let turn = async { moved = rotation::rotate(&operator, KEYSPACE).await };
        let mut sample = times(&load::run(&mut callers, &source, pace, turn).await);
        sample.insert("rewrapped_per_second", moved as f64 / start.elapsed().as_secs_f64());
        during.push(sample);
    }
    json!({
        "name": workload.name(), "callers": count, "stored": stored, "open_rate": (most * SHARE).round(),
        "keyfold": summary(&during), "keyfold_quiet": summary(&before), "ratio_quiet": ratio(&during, &before),
    })
}

fn times(outcome: &Outcome) -> Sample {
    Sample::from([("p50_ms", outcome.quantile(0.5)), ("p99_ms", outcome.quantile(0.99))])
}

fn entry(cell: &Cell, columns: &[&Column], samples: &[Vec<Sample>]) -> Value {
    let mut entry = json!({"name": cell.workload.name(), "callers": cell.callers, "stored": cell.stored});
    for (column, theirs) in columns.iter().zip(samples) {
        entry[column.key] = summary(theirs);
        if let Side::Peer(..) = column.side {
            entry[column.key.replace("peer", "ratio")] = ratio(&samples[0], theirs);
        }
    }
    entry
}
