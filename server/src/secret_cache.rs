//! Current versions of secrets as ciphertext, so that who reads one asks Postgres for nothing.
//!
//! Nothing of it counts by itself. Each read has an audit entry, and the transaction of the entry looks, once the log's head
//! row is locked, whether anything was changed since the moment that the cache had followed to: every change of guarded
//! rows raises the generation of the integrity head in the same transaction as its entry, which names the paths. So what is
//! served from here is what is current as its entry is written, whatever notifications were lost.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use quick_cache::{Weighter, sync};

use crate::{
    error::Error,
    integrity::row_macs::RowMacs,
    store::{
        Store,
        audit::Change,
        secret_versions::{self, StoredVersion},
    },
};

/// About what a version has, with its keys and path.
const VERSION_BYTES_TYPICAL: usize = 1536;
/// What a version takes beside its payload, about.
const OVERHEAD_BYTES: usize = 512;

/// A moment of the database's guarded rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AsOf {
    /// Of the integrity head.
    pub generation: i64,
    /// Of the audit log: later changes have their entries from there on.
    pub audit_size: i64,
}

/// What has changed after a moment.
#[derive(Debug, Default)]
pub struct Changes {
    /// Every secret may have.
    all: bool,
    paths: HashSet<String>,
}

/// Current versions, those used most and last, within a number of bytes.
pub(crate) struct SecretCache {
    versions: sync::Cache<String, Arc<StoredVersion>, Bytes>,
    /// What is held was current then, and is what is current now but for what has changed since.
    followed: RwLock<AsOf>,
}

/// The live current versions of some paths.
pub(crate) struct Current {
    /// Where one was held: what they are current of, for the entry to confirm.
    pub(crate) as_of: Option<AsOf>,
    /// In the order of the paths; absent where a path has none.
    pub(crate) versions: Vec<Option<Arc<StoredVersion>>>,
}

impl SecretCache {
    /// Holds versions of `max_bytes` together.
    pub(crate) fn new(max_bytes: usize) -> Self {
        let items = max_bytes / VERSION_BYTES_TYPICAL;
        let versions = sync::Cache::with_weighter(items, max_bytes as u64, Bytes);
        Self { versions, followed: RwLock::default() }
    }

    /// The current versions of these paths: held ones, if they may be, or read anew.
    ///
    /// # Errors
    /// Those of Postgres; `Integrity`.
    pub(crate) async fn current(
        &self,
        store: &Store,
        macs: &RowMacs,
        paths: &[&str],
        may_be_held: bool,
    ) -> Result<Current, Error> {
        if !may_be_held {
            let read: Vec<_> = read(store, macs, paths).await?.into_iter().map(Arc::new).collect();
            let versions = paths.iter().map(|path| of_path(&read, path)).collect();
            return Ok(Current { as_of: None, versions });
        }
        // First the moment, then what is held: what is taken on meanwhile is newer, and no harm.
        let as_of = *self.followed();
        let mut versions: Vec<_> = paths.iter().map(|path| self.versions.get(*path)).collect();
        let missing = paths.iter().zip(&versions).filter(|(_, held)| held.is_none());
        let missing: Vec<_> = missing.map(|(path, _)| *path).collect();
        let is_one_held = missing.len() < paths.len();
        if !missing.is_empty() {
            let read = self.keep(as_of, read(store, macs, &missing).await?);
            for (path, place) in paths.iter().zip(&mut versions).filter(|(_, place)| place.is_none()) {
                *place = of_path(&read, path);
            }
        }
        Ok(Current { as_of: is_one_held.then_some(as_of), versions })
    }

    /// Keeps what was read after `as_of`, unless later changes were followed meanwhile, which it may be older than.
    fn keep(&self, as_of: AsOf, read: Vec<StoredVersion>) -> Vec<Arc<StoredVersion>> {
        let read: Vec<_> = read.into_iter().map(Arc::new).collect();
        let followed = self.followed();
        if *followed == as_of {
            for version in &read {
                self.versions.insert(version.path.clone(), Arc::clone(version));
            }
        }
        read
    }

    /// Forgets what has changed from one moment to another.
    pub(crate) fn follow(&self, from: AsOf, to: AsOf, changes: &Changes) {
        let mut followed = self.followed.write().unwrap_or_else(PoisonError::into_inner);
        if followed.generation < from.generation || to.generation < followed.generation || changes.all {
            // Changes before `from` are not known, or the database went back.
            self.versions.clear();
        } else {
            changes.paths.iter().for_each(|path| drop(self.versions.remove(path)));
        }
        *followed = to;
    }

    /// Forgets one, which turned out not to open.
    pub(crate) fn forget(&self, path: &str) {
        self.versions.remove(path);
    }

    fn followed(&self) -> RwLockReadGuard<'_, AsOf> {
        self.followed.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changes {
    /// Of which nothing is known.
    pub(crate) fn unknown() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// What these entries say.
    pub(crate) fn of(entries: Vec<Change>) -> Self {
        let mut changes = Self::default();
        for Change { operation, paths } in entries {
            match operation.split_once('.').map_or("", |(subject, _)| subject) {
                "secret" => changes.paths.extend(paths),
                // Of declared objects, people's tokens and plans.
                "config" | "approval" | "system" => {}
                // Of keys, most of all: of all secrets that they wrap.
                _ => changes.all = true,
            }
        }
        changes
    }

    /// Whether one of these paths is among them.
    pub(crate) fn touch(&self, paths: &[&str]) -> bool {
        self.all || paths.iter().any(|path| self.paths.contains(*path))
    }
}

/// Boxed, since each request has the room that this takes, and most find all that they ask for held.
fn read<'a>(
    store: &'a Store,
    macs: &'a RowMacs,
    paths: &'a [&str],
) -> BoxFuture<'a, Result<Vec<StoredVersion>, Error>> {
    async { secret_versions::current(&mut *store.connection().await?, macs, paths).await }.boxed()
}

/// Of few, as a volume's are.
fn of_path(versions: &[Arc<StoredVersion>], path: &str) -> Option<Arc<StoredVersion>> {
    versions.iter().find(|version| version.path == path).map(Arc::clone)
}

#[derive(Clone)]
struct Bytes;

impl Weighter<String, Arc<StoredVersion>> for Bytes {
    fn weight(&self, path: &String, version: &Arc<StoredVersion>) -> u64 {
        (2 * path.len() + version.payload.len() + version.wrapped_dek.len() + OVERHEAD_BYTES) as u64
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn version(path: &str, version: i32) -> StoredVersion {
        StoredVersion {
            path: path.into(),
            secret_id: Uuid::nil(),
            keyspace_id: Uuid::nil(),
            version,
            payload: vec![0; 100],
            created_at: OffsetDateTime::UNIX_EPOCH,
            created_by: String::new(),
            dek_id: Uuid::nil(),
            kek_id: Uuid::nil(),
            kek_version: 1,
            kek_state: "active".into(),
            wrapped_dek: Vec::new(),
        }
    }

    fn at(generation: i64) -> AsOf {
        AsOf { generation, audit_size: 10 * generation }
    }

    fn changes(entries: &[(&str, &[&str])]) -> Changes {
        let change = |(operation, paths): &(&str, &[&str])| Change {
            operation: (*operation).into(),
            paths: paths.iter().map(ToString::to_string).collect(),
        };
        Changes::of(entries.iter().map(change).collect())
    }

    fn cache_with(paths: &[&str], generation: i64) -> SecretCache {
        let cache = SecretCache::new(1024 * 1024);
        cache.follow(AsOf::default(), at(generation), &Changes::default());
        cache.keep(at(generation), paths.iter().map(|path| version(path, 1)).collect());
        cache
    }

    fn held(cache: &SecretCache) -> Vec<String> {
        let mut paths: Vec<_> = cache.versions.iter().map(|(path, _)| path).collect();
        paths.sort_unstable();
        paths
    }

    #[test]
    fn what_has_changed_is_forgotten_and_the_rest_is_held() {
        let cache = cache_with(&["a/x", "a/y", "a/z"], 7);
        let changed =
            changes(&[("secret.put", &["a/x"]), ("config.apply", &[]), ("secret.destroy", &["a/z"])]);
        cache.follow(at(7), at(10), &changed);
        assert_eq!(held(&cache), ["a/y"]);
        assert_eq!(*cache.followed(), at(10));
        assert!(changed.touch(&["b", "a/x"]) && !changed.touch(&["a/y"]));
    }

    #[test]
    fn a_change_of_keys_or_an_unknown_one_may_be_of_every_secret() {
        for changed in
            [changes(&[("key.compromise", &[])]), changes(&[("new.thing", &[])]), Changes::unknown()]
        {
            let cache = cache_with(&["a/x"], 7);
            cache.follow(at(7), at(8), &changed);
            assert_eq!(held(&cache), Vec::<String>::new());
            assert!(changed.touch(&["a/x"]));
        }
    }

    #[test]
    fn after_a_gap_or_a_step_back_nothing_is_held() {
        for (from, to) in [(9, 10), (5, 6)] {
            let cache = cache_with(&["a/x"], 7);
            cache.follow(at(from), at(to), &Changes::default());
            assert_eq!(held(&cache), Vec::<String>::new(), "{from} to {to}");
        }
        let cache = cache_with(&["a/x"], 7);
        cache.follow(at(5), at(8), &Changes::default());
        assert_eq!(held(&cache), ["a/x"], "what is followed twice is no gap");
    }

    #[test]
    fn what_was_read_before_a_change_was_followed_is_not_kept() {
        let cache = cache_with(&[], 7);
        let as_of = *cache.followed();
        cache.follow(at(7), at(8), &changes(&[("secret.put", &["a/x"])]));
        assert_eq!(cache.keep(as_of, vec![version("a/x", 1)])[0].version, 1, "its reader has it");
        assert_eq!(held(&cache), Vec::<String>::new());
    }

    #[test]
    fn it_holds_as_many_bytes_as_it_may() {
        let cache = SecretCache::new(10_000);
        cache.keep(AsOf::default(), (0..1000).map(|at| version(&format!("a/{at}"), 1)).collect());
        assert!(cache.versions.weight() <= 10_000 && !held(&cache).is_empty(), "{}", cache.versions.weight());
    }
}
