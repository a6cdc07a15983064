//! Turns of requests. So many are worked on at once as keep the server busy; the others wait, and the network addresses
//! take turns, so that one with many requests keeps nobody waiting who has few. Waiting is for bursts: once all places have
//! been taken for longer than a burst lasts, who waits is soon told to try again, rather than served late after a queue that
//! never ends.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{config::Limits, error::Error};

/// Requests worked on at once for each processor, unless the configuration says otherwise: enough that the processors have
/// work while others wait for a commit.
const WORKING_PER_PROCESSOR: usize = 16;
/// How long a request may wait where there is no burst, at least. Otherwise it may wait for as long as requests take at
/// present, so that its time at most doubles.
const WAIT_MIN: Duration = Duration::from_millis(5);
/// How long a request keeps its place. One that takes longer waits for somebody else (an issuer, an API server, a lock, a
/// turn of a key), and others can be worked on meanwhile.
const WORK_MAX: Duration = Duration::from_millis(100);
/// The time that requests take is smoothed over about so many.
const SMOOTHED_OVER: u32 = 32;
/// Whether places are free is judged by about so many who came last: a pause of the disk makes no overload.
const FULL_OVER: f32 = 64.0;

/// Whose turn it is.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Server>);

struct Server {
    working_max: usize,
    /// Those of one network address among them.
    own_max: usize,
    burst: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who is worked on, and since when; the oldest first.
    working: BTreeMap<u64, (IpAddr, Instant)>,
    next_id: u64,
    /// Addresses of which something is worked on or waits.
    addresses: HashMap<IpAddr, Own>,
    /// Those of which something waits, the next first.
    order: VecDeque<IpAddr>,
    /// All places are taken.
    full: Full,
    /// How long requests take at present.
    work: Duration,
}

/// What one address has.
#[derive(Default)]
struct Own {
    working: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
    /// All places that it may have are taken.
    full: Full,
}

/// A time in which most of those who come find no free place.
#[derive(Default)]
struct Full {
    /// The share of those who came last that had to wait, smoothed.
    waiting: f32,
    since: Option<Instant>,
}

/// A place among the requests that are worked on, given back when dropped.
#[must_use]
pub(crate) struct Turn {
    server: Arc<Server>,
    id: u64,
}

/// Places that were just given, to be handed over once the state is no longer locked.
type Given = Vec<(oneshot::Sender<Turn>, Turn)>;

impl Turns {
    /// Within `limits`.
    pub(crate) fn new(limits: &Limits) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let working_max = match limits.working_requests {
            0 => processors * WORKING_PER_PROCESSOR,
            max => max,
        };
        // Of these an address may have the same part as of all requests in work.
        let own_max = (working_max * limits.requests_per_peer).div_ceil(limits.concurrent_requests.max(1));
        Self(Arc::new(Server {
            working_max,
            own_max: own_max.clamp(1, working_max),
            burst: Duration::from_millis(limits.wait_millis),
            state: Mutex::default(),
        }))
    }

    /// Waits for a turn of `address`.
    ///
    /// # Errors
    /// `Overloaded`, or `CallerOverloaded` when the address has as many as it may: the wait would be too long.
    pub(crate) async fn of(&self, address: IpAddr) -> Result<Turn, Error> {
        let (mut turn, until) = self.0.join(address, Instant::now());
        loop {
            let late = self.0.next_late();
            match timeout_at(until.min(late), &mut turn).await {
                Ok(turn) => return turn.map_err(|_| Error::Overloaded),
                Err(_) if late < until => self.0.give_back_the_late(),
                // Both may have happened at one time.
                Err(_) => return turn.try_recv().map_err(|_| self.0.too_long(address)),
            }
        }
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the turn comes, and until when to wait for it.
    fn join(self: &Arc<Self>, address: IpAddr, now: Instant) -> (oneshot::Receiver<Turn>, Instant) {
        let (sender, turn) = oneshot::channel();
        let (given, until) = {
            let mut state = self.state();
            state.join(address, sender);
            let given = state.give(self, now);
            (given, now + state.patience(self, address, now))
        };
        hand_over(given);
        (turn, until)
    }

    /// When somebody will have had a place for too long.
    fn next_late(&self) -> Instant {
        let oldest = self.state().working.first_key_value().map(|(_, (_, since))| *since);
        oldest.unwrap_or_else(Instant::now) + WORK_MAX
    }

    fn give_back_the_late(self: &Arc<Self>) {
        let given = {
            let (mut state, now) = (self.state(), Instant::now());
            while let Some((&id, (_, since))) = state.working.first_key_value()
                && *since + WORK_MAX <= now
            {
                state.end(id, now);
            }
            state.give(self, now)
        };
        hand_over(given);
    }

    fn too_long(&self, address: IpAddr) -> Error {
        let own = self.state().addresses.get(&address).map_or(0, |own| own.working);
        if own >= self.own_max {
            return Error::CallerOverloaded { caller: "the network address", max: self.own_max };
        }
        Error::Overloaded
    }
}

impl State {
    fn join(&mut self, address: IpAddr, waiting: oneshot::Sender<Turn>) {
        let own = self.addresses.entry(address).or_default();
        if own.waiting.is_empty() {
            self.order.push_back(address);
        }
        own.forget_who_left();
        own.waiting.push_back(waiting);
    }

    /// Gives free places to those who wait, one of an address after one of the next.
    fn give(&mut self, server: &Arc<Server>, now: Instant) -> Given {
        let (mut given, mut passed_over) = (Vec::new(), 0);
        while self.working.len() < server.working_max && passed_over < self.order.len() {
            let Some(address) = self.order.pop_front() else { break };
            let own = self.addresses.entry(address).or_default();
            own.forget_who_left();
            if own.working < server.own_max
                && let Some(next) = own.waiting.pop_front()
            {
                own.working += 1;
                let id = self.next_id;
                self.next_id += 1;
                self.working.insert(id, (address, now));
                given.push((next, Turn { server: Arc::clone(server), id }));
                passed_over = 0;
            } else if !own.waiting.is_empty() {
                passed_over += 1;
            }
            if own.waiting.is_empty() {
                self.forget_idle(address);
            } else {
                self.order.push_back(address);
            }
        }
        given
    }

    /// How long one of `address` may wait from now on. Whoever finds the places just taken comes with a burst.
    fn patience(&mut self, server: &Server, address: IpAddr, now: Instant) -> Duration {
        let all_taken = self.working.len() >= server.working_max;
        let Some(own) = self.addresses.get_mut(&address) else { return Duration::ZERO };
        let waits = !own.waiting.is_empty();
        let all_full_for = self.full.lasts(waits && all_taken, now);
        let own_full_for = own.full.lasts(waits && !all_taken, now);
        let burst_left = server.burst.saturating_sub(all_full_for.max(own_full_for));
        burst_left.max(self.work).max(WAIT_MIN)
    }

    fn end(&mut self, id: u64, now: Instant) {
        let Some((address, since)) = self.working.remove(&id) else { return };
        self.work = (self.work * (SMOOTHED_OVER - 1) + (now - since)) / SMOOTHED_OVER;
        if let Some(own) = self.addresses.get_mut(&address) {
            own.working -= 1;
        }
        self.forget_idle(address);
    }

    fn forget_idle(&mut self, address: IpAddr) {
        if self.addresses.get(&address).is_some_and(|own| own.working == 0 && own.waiting.is_empty()) {
            self.addresses.remove(&address);
        }
    }
}

impl Full {
    /// Somebody comes, and has to wait or not. For how long has it been so that most have to?
    fn lasts(&mut self, waits: bool, now: Instant) -> Duration {
        self.waiting += (f32::from(u8::from(waits)) - self.waiting) / FULL_OVER;
        if self.waiting < 0.5 {
            self.since = None;
            return Duration::ZERO;
        }
        now - *self.since.get_or_insert(now)
    }
}

impl Own {
    /// Those who have waited for too long, or hung up.
    fn forget_who_left(&mut self) {
        while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiting.pop_front();
        }
    }
}

fn hand_over(given: Given) {
    for (waiting, turn) in given {
        // Who has left meanwhile gives it back.
        let _ = waiting.send(turn);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let given = {
            let (mut state, now) = (self.server.state(), Instant::now());
            state.end(self.id, now);
            state.give(&self.server, now)
        };
        hand_over(given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(working_requests: usize, requests_per_peer: usize) -> Turns {
        let limits = Limits {
            working_requests,
            requests_per_peer,
            concurrent_requests: working_requests,
            wait_millis: 200,
            ..Limits::default()
        };
        Turns::new(&limits)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// One that waits until it is told otherwise, and tells `order` its name when its turn comes.
    fn waits(
        turns: &Turns,
        last: u8,
        name: &'static str,
        order: &Arc<Mutex<Vec<&'static str>>>,
    ) -> tokio::task::JoinHandle<Result<(), Error>> {
        let (turns, order) = (turns.clone(), Arc::clone(order));
        tokio::spawn(async move {
            let _turn = turns.of(address(last)).await?;
            order.lock().unwrap().push(name);
            Ok(())
        })
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_take_turns_however_many_requests_one_of_them_has() {
        let (turns, order) = (turns(1, 1), Arc::default());
        let first = turns.of(address(1)).await.unwrap();
        let all = [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1"), (2, "b2")];
        let mut waiting = Vec::new();
        for (last, name) in all {
            waiting.push(waits(&turns, last, name, &order));
            tokio::task::yield_now().await;
        }
        drop(first);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert!(turns.0.state().addresses.is_empty(), "nothing is kept of who has left");
    }

    #[tokio::test(start_paused = true)]
    async fn attack_16_one_address_takes_no_more_than_its_part_while_others_find_a_place_at_once() {
        let turns = turns(4, 2);
        let held = [turns.of(address(1)).await.unwrap(), turns.of(address(1)).await.unwrap()];
        let third = turns.clone();
        let third = tokio::spawn(async move { third.of(address(1)).await.map(drop) });
        tokio::task::yield_now().await;
        let start = Instant::now();
        let other = turns.of(address(2)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(!third.is_finished());
        drop((held, other));
        third.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_worked_off_and_an_overload_that_lasts_is_told_soon_to_try_again() {
        let turns = turns(1, 1);
        let come = |last: u8| {
            let turns = turns.clone();
            async move {
                let start = Instant::now();
                (turns.of(address(last)).await, start.elapsed())
            }
        };
        // Four come where one can be served, again and again.
        let (mut held, mut waiting) = (turns.of(address(1)).await.unwrap(), tokio::task::JoinSet::new());
        let mut refused = Vec::new();
        for round in 0..60 {
            (2..6).for_each(|last| drop(waiting.spawn(come(last))));
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(held);
            held = loop {
                match waiting.join_next().await.map(Result::unwrap) {
                    Some((Ok(turn), _)) => break turn,
                    Some((Err(error), waited)) => refused.push((round, error, waited)),
                    None => break turns.of(address(1)).await.unwrap(),
                }
            };
        }
        let (first, last) = (refused.first().unwrap(), refused.last().unwrap());
        assert!(first.0 > 15 && first.2 > Duration::from_millis(100), "a burst waits: {first:?}");
        assert!(last.2 < Duration::from_millis(20), "who comes later is told soon: {last:?}");
        assert!(refused.iter().any(|(_, error, _)| matches!(error, Error::Overloaded)));
        // Over: the next burst may wait again.
        waiting.shutdown().await;
        drop(held);
        for _ in 0..64 {
            drop(turns.of(address(7)).await.unwrap());
        }
        let held = turns.of(address(1)).await.unwrap();
        let next = tokio::spawn(come(2));
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(held);
        drop(next.await.unwrap().0.expect("a burst waits"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_long_keeps_nobody_from_being_worked_on() {
        let turns = turns(1, 1);
        let long = turns.of(address(1)).await.unwrap();
        let next = turns.of(address(2)).await.expect("the place comes back by itself");
        drop(long);
        assert_eq!(turns.0.state().working.len(), 1, "and is given back once");
        drop(next);
        assert!(turns.0.state().working.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_up_while_waiting_takes_no_place() {
        let (turns, order) = (turns(1, 1), Arc::default());
        let held = turns.of(address(1)).await.unwrap();
        let gone = waits(&turns, 2, "gone", &order);
        let there = waits(&turns, 2, "there", &order);
        tokio::task::yield_now().await;
        gone.abort();
        tokio::task::yield_now().await;
        drop(held);
        there.await.unwrap().unwrap();
        assert_eq!(*order.lock().unwrap(), ["there"]);
    }
}
