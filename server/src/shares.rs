//! What all peers share, connections for one, and how much of it each may have.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// So much there is in all, and so much of it one peer may have.
#[derive(Clone)]
pub struct Shares {
    all_max: usize,
    peer_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// What was taken together, given back when dropped.
pub struct Share {
    shares: Shares,
    peer: IpAddr,
    count: usize,
}

impl Shares {
    /// With these bounds.
    pub fn new(all_max: usize, peer_max: usize) -> Self {
        Self { all_max, peer_max, taken: Arc::default() }
    }

    /// A share of `peer` that is empty.
    pub fn of(&self, peer: IpAddr) -> Share {
        Share { shares: self.clone(), peer, count: 0 }
    }
}

impl Share {
    /// Whose it is.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Takes `more`, unless the peer or all peers together would then have more than they may. Says whether it did.
    pub fn grow(&mut self, more: usize) -> bool {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let by_peer = taken.by_peer.get(&self.peer).copied().unwrap_or_default();
        let fits = |taken: usize, max: usize| more <= max.saturating_sub(taken);
        if !fits(taken.all, self.shares.all_max) || !fits(by_peer, self.shares.peer_max) {
            return false;
        }
        taken.all += more;
        taken.by_peer.insert(self.peer, by_peer + more);
        self.count += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= self.count;
        if let Some(by_peer) = taken.by_peer.get_mut(&self.peer) {
            *by_peer -= self.count;
            if *by_peer == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(shares: &Shares, peer: u8, count: usize) -> Option<Share> {
        let mut share = shares.of(IpAddr::from([10, 0, 0, peer]));
        share.grow(count).then_some(share)
    }

    #[test]
    fn one_peer_cannot_take_everything() {
        let shares = Shares::new(3, 2);
        let first: Vec<_> = (0..3).filter_map(|_| taken(&shares, 1, 1)).collect();
        assert_eq!(first.len(), 2);
        let third = taken(&shares, 2, 1).unwrap();
        assert!(taken(&shares, 2, 1).is_none(), "all is taken");
        drop(first);
        assert!(taken(&shares, 1, usize::MAX).is_none() && taken(&shares, 1, 3).is_none());
        drop((taken(&shares, 1, 2).unwrap(), third));
        let left = shares.taken.lock().unwrap();
        assert!(left.all == 0 && left.by_peer.is_empty(), "nothing is kept of a peer that left");
    }

    #[test]
    fn a_share_grows_and_goes_back_as_a_whole() {
        let shares = Shares::new(10, 10);
        let mut share = taken(&shares, 1, 4).unwrap();
        assert!(share.grow(6) && !share.grow(1));
        drop(share);
        assert!(taken(&shares, 2, 10).is_some());
    }
}
