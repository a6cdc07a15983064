//! Tokens of pods. Signing one takes longer than checking forty, so they are made before they are needed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use keyfold::dev::{kubelet::Pod, tokens::Minter};
use keyfold_core::clock::{Clock as _, SystemClock};

use super::stored::KEYSPACE;

/// Applications, each with a service account and a role of its own.
pub(crate) const APPS: usize = 20;

/// A token, and what a caller has to know of it.
#[derive(Clone)]
pub(crate) struct PodToken {
    pub(crate) jwt: String,
    /// The pod's application.
    pub(crate) app: usize,
    /// The pod's node.
    pub(crate) node: usize,
}

/// Mints tokens of pods that no server has seen.
pub(crate) struct Mint {
    minter: Minter,
    pods: AtomicUsize,
}

impl Mint {
    /// With the issuer's URL and key.
    pub(crate) fn new(minter: Minter) -> Arc<Self> {
        Arc::new(Self { minter, pods: AtomicUsize::new(0) })
    }

    /// The issuer.
    pub(crate) fn minter(&self) -> &Minter {
        &self.minter
    }

    /// So many tokens, each of a pod of its own, spread over all applications and `nodes` nodes. Takes all processors.
    ///
    /// # Panics
    /// When there is no randomness.
    pub(crate) async fn tokens(self: &Arc<Self>, count: usize, nodes: usize) -> Arc<Vec<PodToken>> {
        let first = self.pods.fetch_add(count, Ordering::Relaxed);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let minting: Vec<_> = (0..threads)
            .map(|thread| {
                let mint = Arc::clone(self);
                let pods = (first..first + count).skip(thread).step_by(threads);
                tokio::task::spawn_blocking(move || {
                    pods.map(|pod| mint.token(pod, pod % nodes)).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut tokens = Vec::with_capacity(count);
        for part in minting {
            tokens.extend(part.await.expect("tokens can be minted"));
        }
        Arc::new(tokens)
    }

    fn token(&self, pod: usize, node: usize) -> PodToken {
        let app = pod % APPS;
        PodToken { jwt: self.of(&service_account(app), &format!("pod-{pod}"), node), app, node }
    }

    /// A token of one pod in the namespace of all.
    ///
    /// # Panics
    /// When there is no randomness.
    pub(crate) fn of(&self, service_account: &str, pod: &str, node: usize) -> String {
        self.mint(KEYSPACE, service_account, pod, node)
    }

    /// The token of a node's driver.
    ///
    /// # Panics
    /// When there is no randomness.
    pub(crate) fn of_driver(&self, node: usize) -> String {
        self.mint("keyfold-system", "keyfold-csi", &format!("keyfold-csi-{node}"), node)
    }

    fn mint(&self, namespace: &str, service_account: &str, pod: &str, node: usize) -> String {
        let pod = Pod {
            namespace: namespace.into(),
            name: pod.into(),
            service_account: service_account.into(),
            node: format!("node-{node}"),
            fs_group: None,
        };
        let token = self.minter.mint(&pod.token_request(), SystemClock.now()).expect("a token can be minted");
        token.jwt.to_string()
    }
}

/// The service account of an application.
pub(crate) fn service_account(app: usize) -> String {
    format!("app-{app}")
}
