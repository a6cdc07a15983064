//! How many connections there may be: of all peers, and of one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::config::Limits;

/// The places that connections take.
#[derive(Clone)]
pub struct Places {
    all_max: usize,
    peer_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// One taken place, given back when dropped.
pub struct Place {
    peer: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    /// As many as `limits` says.
    pub fn new(limits: &Limits) -> Self {
        Self { all_max: limits.connections, peer_max: limits.connections_per_peer, taken: Arc::default() }
    }

    /// A place for a connection of `peer`, unless it or all peers together have as many as they may.
    pub fn take(&self, peer: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let by_peer = taken.by_peer.get(&peer).copied().unwrap_or_default();
        if taken.all >= self.all_max || by_peer >= self.peer_max {
            return None;
        }
        taken.all += 1;
        taken.by_peer.insert(peer, by_peer + 1);
        Some(Place { peer, taken: Arc::clone(&self.taken) })
    }
}

impl Place {
    /// Whose it is.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(count) = taken.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_every_place() {
        let limits = Limits { connections: 3, connections_per_peer: 2, ..Limits::default() };
        let places = Places::new(&limits);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let taken: Vec<_> = (0..3).filter_map(|_| places.take(one)).collect();
        assert_eq!(taken.len(), 2);
        let third = places.take(other).unwrap();
        assert!(places.take(other).is_none(), "all are taken");
        drop(taken);
        drop(third);
        assert!(places.take(one).is_some());
        assert!(places.taken.lock().unwrap().by_peer.is_empty(), "nothing is kept of a peer that left");
    }
}
