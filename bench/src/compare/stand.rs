//! All servers, and what they hold before each cell.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold::dev::tokens::{Minter, SigningKey};
use rsa::{
    BigUint, RsaPublicKey,
    pkcs8::{EncodePublicKey as _, LineEnding},
};
use serde_json::{Value, json};

use super::{
    Args, Further,
    broker::Broker,
    cell::{Cell, Plan},
    database, others,
    peer::{self, Peer, Setup, Storage, TokenKind},
    tokens::Mint,
    workload::{Column, Failure, Request, Side, Workload},
};

/// The pods' issuer. Nothing is asked there: both sides are given its key.
const ISSUER: &str = "https://kubernetes.default.svc";
/// Callers that write the secrets, or read all.
const WRITERS: usize = 32;
/// How long one of them waits for a server that has too much to do.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Everything that runs.
pub(super) struct Stand {
    columns: Vec<Column>,
    plan: Plan,
    /// Secrets stored.
    filled: u32,
    /// Whether the peers have a copy of what they hold.
    is_kept: bool,
    /// Whether the peers hold what logins have left.
    has_logins: bool,
}

impl Stand {
    /// Starts all servers and declares everything.
    ///
    /// # Panics
    /// When a part does not start or refuses.
    pub(super) async fn start(args: &Args) -> Self {
        println!("{} and Keyfold start", peer::version(&args.openbao));
        let minter = Minter { issuer: ISSUER.into(), key: SigningKey::generate().expect("an RSA key") };
        let public_key = public_key_pem(&minter.key);
        let mint = Mint::new(minter);
        let setup = |storage| Setup {
            program: &args.openbao,
            storage,
            http2: args.peer_http2,
            issuer: (&public_key, ISSUER),
        };
        let broker = Arc::new(Broker::start(Arc::clone(&mint), &args.keyfold_setting).await);
        let mut columns = vec![Column { key: "keyfold", side: Side::Keyfold(broker) }];
        let plan = plan(args, mint);
        if args.alone {
            return Self { columns, plan, filled: 0, is_kept: false, has_logins: false };
        }
        let peer = Arc::new(Peer::start(&setup(Storage::Postgres)).await);
        columns.push(Column { key: "peer", side: Side::Peer(Arc::clone(&peer), TokenKind::Service) });
        let further = args
            .columns
            .clone()
            .unwrap_or_else(|| if args.quick { Vec::new() } else { vec![Further::Raft, Further::Batch] });
        if further.contains(&Further::Raft) {
            let raft = Arc::new(Peer::start(&setup(Storage::Raft)).await);
            columns.push(Column { key: "peer_raft", side: Side::Peer(raft, TokenKind::Service) });
        }
        if further.contains(&Further::Batch) {
            columns.push(Column { key: "peer_batch", side: Side::Peer(peer, TokenKind::Batch) });
        }
        Self { columns, plan, filled: 0, is_kept: false, has_logins: false }
    }

    /// Those that are servers of their own.
    fn servers(&self) -> Vec<&Column> {
        let is_server = |column: &&Column| !matches!(column.side, Side::Peer(_, TokenKind::Batch));
        self.columns.iter().filter(is_server).collect()
    }

    /// What Keyfold's Postgres says of itself; the peer's is the same.
    ///
    /// # Panics
    /// When it does not answer.
    pub(super) fn postgres_version(&self) -> String {
        let Side::Keyfold(broker) = &self.columns[0].side else { unreachable!("Keyfold is the first") };
        database::version(broker.postgres().access())
    }

    /// Brings all sides to where a cell begins. Gives how fast secrets were written, if any were missing.
    ///
    /// # Panics
    /// When a server does not do as asked.
    pub(super) async fn prepare(&mut self, cell: &Cell, is_last: bool) -> Vec<Value> {
        if self.has_logins {
            self.copies(true).await;
        }
        let fills = self.fill(self.filled, cell.stored).await;
        if cell.stored > self.filled {
            (self.filled, self.is_kept) = (cell.stored, false);
        }
        self.has_logins = cell.workload.logs_in() && !is_last;
        if self.has_logins && !self.is_kept {
            self.copies(false).await;
            self.is_kept = true;
        }
        fills
    }

    /// Writes secrets on all servers, one server after the other. Gives how fast.
    async fn fill(&self, first: u32, end: u32) -> Vec<Value> {
        let mut fills = Vec::new();
        for column in self.servers().into_iter().filter(|_| first < end) {
            let start = Instant::now();
            for_each(column, first, end, Request::Write).await;
            let per_second = (f64::from(end - first) / start.elapsed().as_secs_f64()).round();
            eprintln!("{}: {end} secrets stored, {per_second} a second", column.key);
            fills.push(json!({
                "column": column.key, "secrets": end - first, "writers": WRITERS, "per_second": per_second,
            }));
        }
        fills
    }

    /// Lets each peer keep a copy of what is stored, or go back to it. Its process is a new one then, so each secret is read
    /// once: its cache is warm, as Keyfold's is.
    async fn copies(&self, go_back: bool) {
        for column in self.servers() {
            let Side::Peer(peer, _) = &column.side else { continue };
            if go_back {
                peer.go_back().await;
            } else {
                peer.keep().await;
            }
            for_each(column, 0, self.filled, Request::Read).await;
        }
    }

    /// Measures a cell. Gives the report's entry.
    ///
    /// # Panics
    /// When an answer is wrong.
    pub(super) async fn measure(&self, cell: &Cell) -> Value {
        let (plan, servers) = (&self.plan, self.servers());
        match cell.workload {
            Workload::ListPrefix | Workload::ListAll => others::list(cell, plan, &servers).await,
            Workload::StartUp => others::start_up(cell, plan, &servers).await,
            Workload::IssueDuringRewrap => others::issue_during_rewrap(cell, plan, &self.columns[0]).await,
            // Tokens matter to what logs in, and to reads, which show them.
            Workload::Write => cell.measure(plan, &servers).await,
            _ => cell.measure(plan, &self.columns.iter().collect::<Vec<_>>()).await,
        }
    }
}

fn plan(args: &Args, mint: Arc<Mint>) -> Plan {
    let (secs, tokens) = if args.quick { (3, 8000) } else { (5, 20_000) };
    Plan {
        pairs: args.pairs.into(),
        phase: Duration::from_secs(args.phase_secs.unwrap_or(secs)),
        tokens_max: args.tokens_max.unwrap_or(tokens),
        mint,
    }
}

/// Asks for one thing with each of these secrets once.
///
/// # Panics
/// When an answer is wrong.
pub(crate) async fn for_each(column: &Column, first: u32, end: u32, what: fn(u32) -> Request<'static>) {
    let next = Arc::new(AtomicU32::new(first));
    let writers: Vec<_> = column
        .callers(WRITERS)
        .await
        .into_iter()
        .map(|mut caller| {
            let next = Arc::clone(&next);
            tokio::spawn(async move {
                loop {
                    let secret = next.fetch_add(1, Ordering::Relaxed);
                    if secret >= end {
                        return Ok(());
                    }
                    while let Err(failure) = caller.send(&what(secret)).await {
                        match failure {
                            Failure::Busy(_) => tokio::time::sleep(BUSY_PAUSE).await,
                            Failure::Wrong(wrong) => return Err(wrong),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        let done: Result<(), String> = writer.await.expect("a writer ends");
        done.unwrap_or_else(|failure| panic!("{}: {failure}", column.key));
    }
}

/// The public half of the issuer's key, as the peer takes it.
fn public_key_pem(key: &SigningKey) -> String {
    let jwk = key.jwk();
    let part = |name: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(jwk[name].as_str().expect("text")).expect("base64url");
        BigUint::from_bytes_be(&bytes)
    };
    let key = RsaPublicKey::new(part("n"), part("e")).expect("a public key");
    key.to_public_key_pem(LineEnding::LF).expect("PEM")
}
