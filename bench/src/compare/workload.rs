//! The workloads, and what one request of each is on either side.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use clap::ValueEnum;
use fastrand::Rng;
use tonic::{Code, Status};

use super::{
    broker::{Broker, BrokerCaller},
    meter::Meter,
    peer::{Peer, PeerCaller, TokenKind},
    stored::{self, SECRETS_PER_POD},
    tokens::{APPS, PodToken},
};

/// Callers that ask through one node's driver.
const CALLERS_PER_NODE: usize = 8;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// One secret is read by an operator or an application with a token that is used for long.
    Read,
    /// One secret gets a new version.
    Write,
    /// A pod's start: its token, never seen before, and five secrets.
    Issue,
    /// A pod's token that was used before. Keyfold knows no login: the call asks for one secret.
    LoginWarm,
    /// The same with a token never seen before.
    LoginCold,
    /// The names below one prefix.
    ListPrefix,
    /// All names.
    ListAll,
    /// From the process' start to the first right answer.
    StartUp,
    /// Keyfold alone: a pod's start while the keyspace's key turns and every data key is rewrapped.
    IssueDuringRewrap,
}

impl Workload {
    /// Its name in the report.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether each request takes a token that no server has seen.
    pub(crate) fn takes_new_tokens(self) -> bool {
        matches!(self, Self::Issue | Self::LoginCold)
    }

    /// Whether the peer is asked for logins.
    pub(crate) fn logs_in(self) -> bool {
        matches!(self, Self::Issue | Self::LoginWarm | Self::LoginCold)
    }

    /// Whether it is a load by a number of callers.
    pub(crate) fn is_load(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Issue | Self::LoginWarm | Self::LoginCold)
    }
}

/// One server, and one way to use it.
pub(crate) enum Side {
    Keyfold(Arc<Broker>),
    Peer(Arc<Peer>, TokenKind),
}

/// A column of the report.
pub(crate) struct Column {
    /// Its key in the report.
    pub(crate) key: &'static str,
    pub(crate) side: Side,
}

impl Column {
    /// So many callers, connected.
    ///
    /// # Panics
    /// When one cannot connect.
    pub(crate) async fn callers(&self, count: usize) -> Vec<Caller> {
        self.try_callers(count).await.unwrap_or_else(|failure| panic!("{}: {failure}", self.key))
    }

    /// The same of a server that may not be there yet.
    ///
    /// # Errors
    /// When one cannot connect.
    pub(crate) async fn try_callers(&self, count: usize) -> Result<Vec<Caller>, String> {
        match &self.side {
            Side::Keyfold(broker) => {
                Ok(broker.callers(count, nodes(count)).await?.into_iter().map(Caller::Keyfold).collect())
            }
            Side::Peer(peer, tokens) => {
                Ok(peer.callers(count, *tokens).await?.into_iter().map(Caller::Peer).collect())
            }
        }
    }

    /// Where its figures come from.
    pub(crate) fn meter(&self) -> Meter {
        match &self.side {
            Side::Keyfold(broker) => broker.meter(),
            Side::Peer(peer, _) => peer.meter(),
        }
    }
}

/// The nodes that so many callers are pods of.
pub(crate) fn nodes(callers: usize) -> usize {
    callers.div_ceil(CALLERS_PER_NODE)
}

/// One request.
pub(crate) enum Request<'a> {
    Issue(&'a PodToken, [u32; SECRETS_PER_POD]),
    Login(&'a PodToken),
    Read(u32),
    Write(u32),
    /// The names below a prefix, and how many they must be.
    List {
        prefix: String,
        is_folder: bool,
        expected: usize,
    },
}

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server has too much to do.
    Busy(Code),
    /// Anything else: what failed, or what is wrong with the answer.
    Wrong(String),
}

impl From<String> for Failure {
    fn from(wrong: String) -> Self {
        Self::Wrong(wrong)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status with a source was made on this side of a broken connection.
        let is_answer = std::error::Error::source(&status).is_none();
        match status.code() {
            code @ (Code::ResourceExhausted | Code::Unavailable) if is_answer => Self::Busy(code),
            _ => Self::Wrong(status.to_string()),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy(code) => write!(f, "the server has too much to do ({code:?})"),
            Self::Wrong(wrong) => f.write_str(wrong),
        }
    }
}

/// Who asks.
pub(crate) enum Caller {
    Keyfold(BrokerCaller),
    Peer(PeerCaller),
}

impl Caller {
    /// Asks, and checks the answer.
    ///
    /// # Errors
    /// Says what failed or what is wrong with the answer.
    pub(crate) async fn send(&mut self, request: &Request<'_>) -> Result<(), Failure> {
        match (self, request) {
            (Self::Keyfold(caller), Request::Issue(token, secrets)) => caller.issue(token, secrets).await,
            (Self::Keyfold(caller), Request::Login(token)) => caller.issue(token, &[token.app as u32]).await,
            (Self::Keyfold(caller), Request::Read(secret)) => caller.read(*secret).await,
            (Self::Keyfold(caller), Request::Write(secret)) => caller.write(*secret).await,
            (Self::Keyfold(caller), Request::List { prefix, expected, .. }) => {
                Ok(expect(*expected, caller.list(prefix).await?)?)
            }
            (Self::Peer(caller), Request::Issue(token, secrets)) => Ok(caller.issue(token, secrets).await?),
            (Self::Peer(caller), Request::Login(token)) => Ok(caller.login(token).await.map(drop)?),
            (Self::Peer(caller), Request::Read(secret)) => Ok(caller.read(*secret).await?),
            (Self::Peer(caller), Request::Write(secret)) => Ok(caller.write(*secret).await?),
            (Self::Peer(caller), Request::List { prefix, is_folder, expected }) => {
                Ok(expect(*expected, caller.list(prefix, *is_folder).await?)?)
            }
        }
    }
}

fn expect(expected: usize, found: usize) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found} names instead of {expected}")) }
}

/// Tokens for one phase.
pub(crate) struct Feed {
    tokens: Arc<Vec<PodToken>>,
    next: AtomicUsize,
    end: usize,
    /// Begins again at the end, which new tokens must not.
    is_ring: bool,
}

impl Feed {
    /// Each token of a range once.
    pub(crate) fn once(tokens: &Arc<Vec<PodToken>>, range: std::ops::Range<usize>) -> Self {
        Self {
            tokens: Arc::clone(tokens),
            next: AtomicUsize::new(range.start),
            end: range.end,
            is_ring: false,
        }
    }

    /// All tokens again and again.
    pub(crate) fn ring(tokens: &Arc<Vec<PodToken>>) -> Self {
        Self { tokens: Arc::clone(tokens), next: AtomicUsize::new(0), end: tokens.len(), is_ring: true }
    }

    fn next(&self) -> Option<&PodToken> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let at = if self.is_ring { at % self.end } else { at };
        self.tokens[..self.end].get(at)
    }
}

/// Where the callers of one phase have their requests from.
pub(crate) struct Source {
    pub(crate) workload: Workload,
    /// How many secrets are stored.
    pub(crate) stored: u32,
    pub(crate) feed: Feed,
}

impl Source {
    /// The next request; nothing when there are no more tokens.
    pub(crate) fn next(&self, rng: &mut Rng) -> Option<Request<'_>> {
        let secret = rng.u32(..self.stored);
        Some(match self.workload {
            Workload::Issue | Workload::IssueDuringRewrap => {
                Request::Issue(self.feed.next()?, stored::of_a_pod(rng, self.stored))
            }
            Workload::LoginCold | Workload::LoginWarm => Request::Login(self.feed.next()?),
            Workload::Write => Request::Write(secret),
            Workload::Read | Workload::StartUp => Request::Read(secret),
            Workload::ListPrefix => {
                let folder = rng.u32(..self.stored.div_ceil(stored::PREFIX_SECRETS));
                let rest = self.stored - folder * stored::PREFIX_SECRETS;
                Request::List {
                    prefix: stored::prefix(folder),
                    is_folder: true,
                    expected: rest.min(stored::PREFIX_SECRETS) as usize,
                }
            }
            Workload::ListAll => Request::List {
                prefix: stored::KEYSPACE.into(),
                is_folder: false,
                expected: self.stored as usize,
            },
        })
    }
}

/// Fewest secrets that a run may begin with: a login asks for that of its application's number.
pub(crate) const STORED_MIN: u32 = APPS as u32;

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Arc<Vec<PodToken>> {
        let token = |app| PodToken { jwt: String::new(), app, node: 0 };
        Arc::new((0..4).map(token).collect())
    }

    #[test]
    fn a_new_token_is_used_once_and_only_in_its_phase() {
        let tokens = tokens();
        let (first, second) = (Feed::once(&tokens, 0..2), Feed::once(&tokens, 2..4));
        let apps =
            |feed: &Feed| std::iter::from_fn(|| feed.next().map(|token| token.app)).collect::<Vec<_>>();
        assert_eq!([apps(&first), apps(&second)], [[0, 1], [2, 3]]);
    }

    #[test]
    fn known_tokens_are_used_again() {
        let tokens = tokens();
        let feed = Feed::ring(&tokens);
        let apps: Vec<_> = (0..6).filter_map(|_| feed.next()).map(|token| token.app).collect();
        assert_eq!(apps, [0, 1, 2, 3, 0, 1]);
    }

    #[test]
    fn a_source_has_no_requests_without_new_tokens() {
        let source = Source { workload: Workload::Issue, stored: 100, feed: Feed::once(&tokens(), 0..1) };
        let mut rng = Rng::with_seed(1);
        assert!(matches!(source.next(&mut rng), Some(Request::Issue(..))));
        assert!(source.next(&mut rng).is_none());
    }
}
