//! What all share (connections, bytes, places), and how much of it each may have.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// So much there is in all, and so much of it one owner `K` may have.
#[derive(Clone)]
pub struct Shares<K> {
    all_max: usize,
    own_max: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

struct Taken<K> {
    all: usize,
    by_owner: HashMap<K, usize>,
}

/// What was taken together, given back when dropped.
pub struct Share<K: Clone + Eq + Hash> {
    shares: Shares<K>,
    owner: K,
    count: usize,
}

/// Why there is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The owner has as much as one may have.
    Own {
        /// That much.
        max: usize,
    },
    /// All together have all that there is.
    All,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// With these bounds.
    pub fn new(all_max: usize, own_max: usize) -> Self {
        let taken = Taken { all: 0, by_owner: HashMap::new() };
        Self { all_max, own_max, taken: Arc::new(Mutex::new(taken)) }
    }

    /// A share of `owner` that is empty.
    pub fn of(&self, owner: K) -> Share<K> {
        Share { shares: self.clone(), owner, count: 0 }
    }

    /// A share of `owner` of size 1.
    ///
    /// # Errors
    /// When the owner, or all together, would then have more than they may.
    pub fn one_of(&self, owner: K) -> Result<Share<K>, Full> {
        let mut share = self.of(owner);
        share.grow(1).map(|()| share)
    }
}

impl<K: Clone + Eq + Hash> Share<K> {
    /// Whose it is.
    pub fn owner(&self) -> &K {
        &self.owner
    }

    /// Takes `more`.
    ///
    /// # Errors
    /// When the owner, or all together, would then have more than they may. Nothing is taken then.
    pub fn grow(&mut self, more: usize) -> Result<(), Full> {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_owner.get(&self.owner).copied().unwrap_or_default();
        let (all_max, own_max) = (self.shares.all_max, self.shares.own_max);
        if more > own_max.saturating_sub(own) {
            return Err(Full::Own { max: own_max });
        }
        if more > all_max.saturating_sub(taken.all) {
            return Err(Full::All);
        }
        taken.all += more;
        taken.by_owner.insert(self.owner.clone(), own + more);
        self.count += more;
        Ok(())
    }
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= self.count;
        if let Some(own) = taken.by_owner.get_mut(&self.owner) {
            *own -= self.count;
            if *own == 0 {
                taken.by_owner.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(
        shares: &Shares<&'static str>,
        owner: &'static str,
        count: usize,
    ) -> Result<Share<&'static str>, Full> {
        let mut share = shares.of(owner);
        share.grow(count).map(|()| share)
    }

    #[test]
    fn attack_16_one_owner_cannot_take_everything() {
        let shares = Shares::new(3, 2);
        let first: Vec<_> = (0..3).filter_map(|_| taken(&shares, "a", 1).ok()).collect();
        assert_eq!(first.len(), 2);
        assert_eq!(taken(&shares, "a", 1).err(), Some(Full::Own { max: 2 }));
        let third = taken(&shares, "b", 1).unwrap();
        assert_eq!(taken(&shares, "b", 1).err(), Some(Full::All));
        drop(first);
        assert!(taken(&shares, "a", usize::MAX).is_err() && taken(&shares, "a", 3).is_err());
        drop((taken(&shares, "a", 2).unwrap(), third));
        let left = shares.taken.lock().unwrap();
        assert!(left.all == 0 && left.by_owner.is_empty(), "nothing is kept of an owner that left");
    }

    #[test]
    fn a_share_grows_and_goes_back_as_a_whole() {
        let shares = Shares::new(10, 10);
        let mut share = taken(&shares, "a", 4).unwrap();
        assert!(share.grow(6).is_ok() && share.grow(1).is_err());
        drop(share);
        assert!(taken(&shares, "b", 10).is_ok());
    }
}
