//! One API server: its client, how many requests it may have in flight, and how long and how large a reply may be.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use keyfold_core::clock::Clock;
use kube::{Client, client::Body};
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    Bounds, Unavailable, connect,
    failure::{Failure, Presence},
    outage::{Outage, Pass},
};
use crate::authn::IssuerRecord;

/// A TokenReview has some 2 KiB, a pod's metadata rarely more than 20 KiB.
const REPLY_MAX_BYTES: usize = 1024 * 1024;

/// How long a client serves before it is made anew: what a kubeconfig, its files or the mounted service account say
/// counts again after this time. As long as `kube` keeps a token file's content.
const CLIENT_AGE_MAX: Duration = Duration::from_secs(60);

/// The part of a question's time that goes to waiting for a place and a client. The exchange always has the rest: if
/// those who wait for others ran out of time while asking, whoever takes all places would make an API server look away.
const WAITING_PART: u32 = 5;

/// The API server of one issuer object, in one of its generations.
pub(super) struct ApiServer {
    pub(super) record: IssuerRecord,
    /// Tells apart what was answered to whom, in the caches: no two API servers of a process share one.
    pub(super) serial: u64,
    bounds: Bounds,
    places: Semaphore,
    outage: Outage,
    client: Arc<Mutex<Option<(Client, OffsetDateTime)>>>,
}

impl ApiServer {
    pub(super) fn new(record: IssuerRecord, serial: u64, bounds: Bounds) -> Self {
        let places = Semaphore::new(bounds.in_flight);
        Self { record, serial, bounds, places, outage: Outage::default(), client: Arc::default() }
    }

    /// The body of a good reply, `None` when there is no such object. `question` names the request in the metrics.
    pub(super) async fn ask(
        &self,
        question: &'static str,
        request: Request<Vec<u8>>,
        kubeconfig_dir: Option<&Path>,
        clock: &dyn Clock,
    ) -> Result<Option<Vec<u8>>, Unavailable> {
        // The log has the outage from who noticed it.
        let pass = self.outage.admit(clock.now());
        let pass = pass.ok_or_else(|| Unavailable { issuer: self.record.name.clone(), away: true })?;
        let started = Instant::now();
        let answer = self.answer(pass, request, kubeconfig_dir, clock).await;
        let outcome = if answer.is_ok() { "answered" } else { "unavailable" };
        let issuer = self.record.name.to_string();
        let labels = [("issuer", issuer), ("question", question.into()), ("outcome", outcome.into())];
        metrics::histogram!("keyfold_api_server_seconds", &labels).record(started.elapsed());
        answer.map_err(|failure| self.unavailable(&failure))
    }

    /// Writes down why, since callers are not told.
    pub(super) fn unavailable(&self, failure: &Failure) -> Unavailable {
        let issuer = self.record.name.clone();
        tracing::warn!(%issuer, reason = %failure, "an issuer's API server could not be asked");
        Unavailable { issuer, away: failure.presence != Presence::Unknown }
    }

    async fn answer(
        &self,
        mut pass: Pass<'_>,
        request: Request<Vec<u8>>,
        kubeconfig_dir: Option<&Path>,
        clock: &dyn Clock,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let waiting = self.bounds.timeout / WAITING_PART;
        let asking = self.bounds.timeout - waiting;
        let prepared = timeout(waiting, self.prepare(kubeconfig_dir, clock.now())).await;
        let (_place, client) = prepared.unwrap_or_else(|_| {
            let busy = format!("no free place, or no client, within {waiting:?}: too much is asked of it");
            Err(Failure::new(busy))
        })?;
        if !pass.is_probe() {
            let noticed = || Failure::silent("it did not answer somebody else meanwhile");
            pass = self.outage.admit(clock.now()).ok_or_else(noticed)?;
        }
        let answer = timeout(asking, exchange(&client, request)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Failure::silent(format!("no whole answer within {asking:?}"))));
        match &answer {
            Err(failure) if failure.presence == Presence::Silent => self.outage.notice(clock.now()),
            _ => self.outage.end(),
        }
        drop(pass);
        answer
    }

    async fn prepare(
        &self,
        kubeconfig_dir: Option<&Path>,
        now: OffsetDateTime,
    ) -> Result<(SemaphorePermit<'_>, Client), Failure> {
        let place = self.places.acquire().await.map_err(|error| Failure::caused("no place", &error))?;
        Ok((place, self.client(kubeconfig_dir, now).await?))
    }

    async fn client(&self, kubeconfig_dir: Option<&Path>, now: OffsetDateTime) -> Result<Client, Failure> {
        let place = self.record.spec.api_server.clone();
        let place = place.ok_or_else(|| Failure::new("the issuer object has no apiServer"))?;
        let mut client = Arc::clone(&self.client).lock_owned().await;
        if let Some((client, at)) = &*client
            && super::within(*at, CLIENT_AGE_MAX, now)
        {
            return Ok(client.clone());
        }
        let (dir, timeout) = (kubeconfig_dir.map(PathBuf::from), self.bounds.timeout);
        // It reads files. The lock goes along: a file system that hangs takes one thread, however many ask.
        let made = tokio::task::spawn_blocking(move || {
            *client = None;
            let made = connect::client(&place, dir.as_deref(), timeout)?;
            *client = Some((made.clone(), now));
            Ok(made)
        });
        made.await.map_err(|error| Failure::caused("its client", &error))?
    }
}

async fn exchange(client: &Client, request: Request<Vec<u8>>) -> Result<Option<Vec<u8>>, Failure> {
    let asked = format!("{} {}", request.method(), request.uri().path());
    // Not `Client::request`: it takes replies of any size, and logs whole those that it cannot read, the caller's
    // token included.
    let response =
        client.send(request.map(Body::from)).await.map_err(|error| Failure::caused(&asked, &error))?;
    let status = response.status();
    if !status.is_success() && status != StatusCode::NOT_FOUND {
        return Err(Failure::status(&asked, status));
    }
    let body = Limited::new(response.into_body(), REPLY_MAX_BYTES)
        .collect()
        .await
        .map_err(|error| Failure::caused(&asked, &*error))?
        .to_bytes();
    if status.is_success() {
        return Ok(Some(body.into()));
    }
    // What else answers 404, for example a proxy for an address that is not there, knows nothing of objects.
    if is_not_found(&body) { Ok(None) } else { Err(Failure::status(&asked, status)) }
}

/// Whether this is Kubernetes' `Status` of an object that is not there.
fn is_not_found(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Status {
        kind: String,
        reason: String,
    }
    serde_json::from_slice::<Status>(body)
        .is_ok_and(|status| status.kind == "Status" && status.reason == "NotFound")
}
