//! How many files the process may open: each connection is one, and many systems begin with 1024 (getrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// What the process opens besides connections of callers and of Postgres: listeners, its own files, issuers.
const OTHERS: u64 = 256;

/// Raises the soft limit to the hard one, and warns when that is too low for what the configuration allows.
pub fn raise_limit(config: &Config) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let needed = config.limits.connections as u64 + u64::from(config.database.max_connections) + OTHERS;
    if let Some(may_open) = getrlimit(Resource::Nofile).current.filter(|&may_open| may_open < needed) {
        tracing::warn!(
            may_open,
            needed,
            "the process may open fewer files than limits.connections needs: raise its limit, or lower that"
        );
    }
}
