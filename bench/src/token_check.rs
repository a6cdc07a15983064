//! What the check of a token costs in process: for the first time, which verifies RS256, and again, which is a SHA-256 and a
//! look-up.

use std::{fs, path::Path, process::ExitCode, sync::Arc, time::Instant};

use clap::Args as ClapArgs;
use fastrand::Rng;
use keyfold::dev::{
    kubelet::Pod,
    tokens::{AUDIENCE, Minter, SigningKey},
};
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    name::ObjectName,
    object::{Kind, Spec},
};
use keyfold_server::authn::{Authenticator, IssuerRecord};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    report::{micros, profile, write_json},
    statistics::{Interval, median_interval},
};

/// The issuer's URL; nothing is asked there.
const URL: &str = "https://kubernetes.default.svc";
/// Calls before the first one that counts.
const WARM_UP: usize = 100;

/// Arguments of `keyfold-bench token-check`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Tokens, each checked for the first time once
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(200..10_000))]
    tokens: u32,
}

/// An authenticator, and who mints what it accepts.
struct Bench {
    authenticator: Authenticator,
    issuers: [IssuerRecord; 1],
    minter: Minter,
    driver_token: String,
    /// Holds the issuer's keys.
    _folder: TempDir,
}

/// Measures, prints and writes.
///
/// # Panics
/// When a token is refused.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    let bench = Bench::new();
    let tokens: Vec<_> = (0..args.tokens).map(|at| bench.token("payments", &format!("api-{at}"))).collect();
    let mut rng = Rng::with_seed(1);
    let (mut firsts, mut cached) = (Vec::new(), Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        let first = bench.time(token).await;
        // Any that was checked before, not the one that the processor has just seen.
        let again = bench.time(&tokens[rng.usize(..=at)]).await;
        if at >= WARM_UP {
            // A call checks two tokens, and the driver's comes from the cache each time.
            cached.push(again / 2.0);
            firsts.push(first - again / 2.0);
        }
    }
    let token_bytes = tokens[0].len();
    report(token_bytes, median_interval(firsts), median_interval(cached), out);
    ExitCode::SUCCESS
}

fn report(token_bytes: usize, first: Interval, cached: Interval, out: &Path) {
    let row = |what: &str, found: Interval| {
        [what.to_owned(), micros(found.median), format!("{} … {}", micros(found.low), micros(found.high))]
    };
    let rows = [row("first time (RS256, 2048 bits)", first), row("from the cache", cached)];
    print!("{}", keyfold::output::table(["CHECK", "MEDIAN", "95 %"], rows));
    let ratio = first.median / cached.median;
    println!(
        "\nThe first check of a token of {token_bytes} bytes costs {ratio:.1} times one from the cache."
    );
    let figures = json!({
        "profile": profile(), "unit": "ns", "token_bytes": token_bytes,
        "first": first, "cached": cached, "ratio": ratio,
    });
    write_json(out, "token-check.json", &figures);
}

impl Bench {
    fn new() -> Self {
        let minter = Minter { issuer: URL.into(), key: SigningKey::generate().expect("an RSA key") };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = json!({"keys": [minter.key.jwk()]});
        fs::write(folder.path().join("jwks.json"), keys.to_string()).expect("the keys can be written");
        let spec = json!({
            "type": "kubernetes", "url": URL, "audiences": [AUDIENCE], "keys": {"file": "jwks.json"},
            "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
        });
        let Ok(Spec::Issuer(spec)) = Spec::parse(Kind::Issuer, &spec.to_string()) else {
            panic!("the issuer is not accepted: {spec}");
        };
        let name = ObjectName::try_from("dev").expect("a name");
        let clock = Arc::new(SystemClock);
        let authenticator =
            Authenticator::new(clock, Some(folder.path().to_owned())).expect("one backend of signatures");
        let issuers = [IssuerRecord { name, generation: 1, spec }];
        let mut bench = Self { authenticator, issuers, minter, driver_token: String::new(), _folder: folder };
        bench.driver_token = bench.token("keyfold-system", "keyfold-csi");
        bench
    }

    /// A token of a pod; its service account has the name of the pod's application.
    fn token(&self, namespace: &str, name: &str) -> String {
        let service_account = if name.starts_with("api-") { "api" } else { name };
        let pod = Pod {
            namespace: namespace.into(),
            name: name.into(),
            service_account: service_account.into(),
            node: "dev-node".into(),
            fs_group: None,
        };
        let token = self.minter.mint(&pod.token_request(), SystemClock.now()).expect("a token can be minted");
        token.jwt.to_string()
    }

    /// How long a call takes that checks this token and the driver's, in nanoseconds.
    async fn time(&self, token: &str) -> f64 {
        let start = Instant::now();
        let caller = self.authenticator.pod_caller(token, &self.driver_token, &self.issuers).await;
        let nanos = start.elapsed().as_nanos() as f64;
        caller.expect("the token is accepted");
        nanos
    }
}
