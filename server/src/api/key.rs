//! `KeyService`.

use std::time::Duration;

use keyfold_core::key::certificate::DOES_NOT_REACH;
use keyfold_proto::keyfold::v1::{
    self, CancelKeyDestructionRequest, CancelKeyDestructionResponse, Certificate, CompromiseKeyRequest,
    CompromiseKeyResponse, ExposedSecret, GetKeyStatusRequest, GetKeyStatusResponse,
    GetRotationScheduleRequest, GetRotationScheduleResponse, Key, ListCertificatesRequest,
    ListCertificatesResponse, ListExposedSecretsRequest, ListExposedSecretsResponse, ListKeysRequest,
    ListKeysResponse, ListQuarantineRequest, ListQuarantineResponse, PauseRotationRequest,
    PauseRotationResponse, ResumeRotationRequest, ResumeRotationResponse, RetryQuarantineRequest,
    RetryQuarantineResponse, RotateKeyRequest, RotateKeyResponse, ScheduleKeyDestructionRequest,
    ScheduleKeyDestructionResponse, key_service_server::KeyService,
};
use tonic::{Request, Response, Status};

use super::{Api, bounded, timestamp, version};
use crate::{
    broker::{
        compromise::Exposed,
        key_status::{self, KeysetStatus},
        keys::WantedKeyset,
    },
    error::Error,
    store::{
        destruction_certificates::StoredCertificate, exposure::Holder, keks::KekSummary, quarantined_deks,
        replicas,
    },
};

/// How long a call waits for a turn and its rewrap: a little less than the command line waits for an answer.
const WAIT_MAX: Duration = Duration::from_secs(25);

/// Secrets on one page of a list of exposed ones, unless the caller says otherwise.
const EXPOSED_PAGE: u32 = 100;

#[tonic::async_trait]
impl KeyService for Api {
    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        self.answer("ListKeys", async {
            let call = self.call(&request).await?;
            let keys = self.broker.keys(&call, bounded("keyspace", &request.get_ref().keyspace)?).await?;
            Ok(ListKeysResponse { keys: keys.into_iter().map(key).collect() })
        })
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<RotateKeyRequest>,
    ) -> Result<Response<RotateKeyResponse>, Status> {
        self.answer("RotateKey", async {
            let call = self.call(&request).await?;
            let request = request.get_ref();
            let keyset = keyset(&request.keyspace, &request.purpose)?;
            let patience = WAIT_MAX.min(self.request_max * 3 / 4);
            let done = self.broker.rotate_key(&call, keyset, !request.no_wait, patience).await?;
            Ok(RotateKeyResponse {
                old_version: done.old_version,
                new_version: done.new_version,
                rewrapped_deks: done.rewrapped_deks,
                pending_deks: done.pending_deks,
            })
        })
        .await
    }

    async fn get_key_status(
        &self,
        request: Request<GetKeyStatusRequest>,
    ) -> Result<Response<GetKeyStatusResponse>, Status> {
        self.answer("GetKeyStatus", async {
            let call = self.call(&request).await?;
            let found =
                self.broker.key_status(&call, bounded("keyspace", &request.get_ref().keyspace)?).await?;
            Ok(GetKeyStatusResponse {
                keysets: found.keysets.into_iter().map(keyset_status).collect(),
                replicas: found.replicas.into_iter().map(replica).collect(),
            })
        })
        .await
    }

    async fn get_rotation_schedule(
        &self,
        request: Request<GetRotationScheduleRequest>,
    ) -> Result<Response<GetRotationScheduleResponse>, Status> {
        self.answer("GetRotationSchedule", async {
            let call = self.call(&request).await?;
            let request = request.get_ref();
            let keyspace = bounded("keyspace", &request.keyspace)?;
            let schedules = self.broker.rotation_schedule(&call, keyspace, request.count).await?;
            Ok(GetRotationScheduleResponse { schedules: schedules.into_iter().map(schedule).collect() })
        })
        .await
    }

    async fn pause_rotation(
        &self,
        request: Request<PauseRotationRequest>,
    ) -> Result<Response<PauseRotationResponse>, Status> {
        self.answer("PauseRotation", async {
            let call = self.call(&request).await?;
            let request = request.get_ref();
            let keyset = keyset(&request.keyspace, &request.purpose)?;
            Ok(PauseRotationResponse { changed: self.broker.pause_rotation(&call, keyset).await? })
        })
        .await
    }

    async fn resume_rotation(
        &self,
        request: Request<ResumeRotationRequest>,
    ) -> Result<Response<ResumeRotationResponse>, Status> {
        self.answer("ResumeRotation", async {
            let call = self.call(&request).await?;
            let request = request.get_ref();
            let keyset = keyset(&request.keyspace, &request.purpose)?;
            let (changed, next) = self.broker.resume_rotation(&call, keyset).await?;
            Ok(ResumeRotationResponse { changed, next_rotation_at: next.map(timestamp) })
        })
        .await
    }

    async fn compromise_key(
        &self,
        request: Request<CompromiseKeyRequest>,
    ) -> Result<Response<CompromiseKeyResponse>, Status> {
        self.answer("CompromiseKey", async {
            let call = self.call(&request).await?;
            let message = request.get_ref();
            let version = Some(message.version).filter(|version| *version > 0);
            let done =
                self.broker.compromise_key(&call, bounded("keyspace", &message.keyspace)?, version).await?;
            Ok(CompromiseKeyResponse {
                compromised_version: done.version,
                active_version: done.active_version,
                payloads: done.payloads,
                exposed_secrets: done.secrets,
            })
        })
        .await
    }

    async fn list_exposed_secrets(
        &self,
        request: Request<ListExposedSecretsRequest>,
    ) -> Result<Response<ListExposedSecretsResponse>, Status> {
        self.answer("ListExposedSecrets", async {
            let call = self.call(&request).await?;
            let message = request.get_ref();
            let limit = if message.page_size == 0 { EXPOSED_PAGE } else { message.page_size };
            let keyspace = bounded("keyspace", &message.keyspace)?;
            let after = bounded("after", &message.after)?;
            let (page, next) = self.broker.exposed_secrets(&call, keyspace, after, limit).await?;
            Ok(ListExposedSecretsResponse {
                secrets: page.into_iter().map(exposed).collect(),
                next: next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn schedule_key_destruction(
        &self,
        request: Request<ScheduleKeyDestructionRequest>,
    ) -> Result<Response<ScheduleKeyDestructionResponse>, Status> {
        self.answer("ScheduleKeyDestruction", async {
            let call = self.call(&request).await?;
            let message = request.get_ref();
            let keyset = keyset(&message.keyspace, &message.purpose)?;
            let delay = message.delay_seconds.map(Duration::from_secs);
            let destroy_at =
                self.broker.schedule_key_destruction(&call, keyset, message.version, delay).await?;
            Ok(ScheduleKeyDestructionResponse {
                destroy_at: Some(timestamp(destroy_at)),
                does_not_reach: DOES_NOT_REACH.to_owned(),
            })
        })
        .await
    }

    async fn cancel_key_destruction(
        &self,
        request: Request<CancelKeyDestructionRequest>,
    ) -> Result<Response<CancelKeyDestructionResponse>, Status> {
        self.answer("CancelKeyDestruction", async {
            let call = self.call(&request).await?;
            let message = request.get_ref();
            let keyset = keyset(&message.keyspace, &message.purpose)?;
            let state = self.broker.cancel_key_destruction(&call, keyset, message.version).await?;
            Ok(CancelKeyDestructionResponse { state: state.to_string() })
        })
        .await
    }

    async fn list_certificates(
        &self,
        request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        self.answer("ListCertificates", async {
            let call = self.call(&request).await?;
            let message = request.get_ref();
            let version = Some(message.version).filter(|version| *version > 0);
            let keyspace = bounded("keyspace", &message.keyspace)?;
            let found = self.broker.certificates(&call, keyspace, version).await?;
            Ok(ListCertificatesResponse {
                certificates: found.certificates.into_iter().map(certificate).collect(),
                public_keys: found.public_keys,
            })
        })
        .await
    }

    async fn list_quarantine(
        &self,
        request: Request<ListQuarantineRequest>,
    ) -> Result<Response<ListQuarantineResponse>, Status> {
        self.answer("ListQuarantine", async {
            let call = self.call(&request).await?;
            let keyspace = bounded("keyspace", &request.get_ref().keyspace)?;
            let deks = self.broker.quarantine_list(&call, keyspace).await?;
            Ok(ListQuarantineResponse { deks: deks.into_iter().map(quarantined).collect() })
        })
        .await
    }

    async fn retry_quarantine(
        &self,
        request: Request<RetryQuarantineRequest>,
    ) -> Result<Response<RetryQuarantineResponse>, Status> {
        self.answer("RetryQuarantine", async {
            let call = self.call(&request).await?;
            let keyspace = bounded("keyspace", &request.get_ref().keyspace)?;
            Ok(RetryQuarantineResponse { released: self.broker.retry_quarantine(&call, keyspace).await? })
        })
        .await
    }
}

/// The keyset that a request names.
fn keyset<'a>(keyspace: &'a str, purpose: &'a str) -> Result<WantedKeyset<'a>, Error> {
    Ok(WantedKeyset { keyspace: bounded("keyspace", keyspace)?, purpose: bounded("purpose", purpose)? })
}

fn key(KekSummary { keyspace, wrapped_deks, kek }: KekSummary) -> Key {
    Key {
        keyspace,
        purpose: kek.purpose.to_string(),
        version: kek.version,
        state: kek.state.as_str().to_owned(),
        id: kek.id.to_string(),
        created_at: Some(timestamp(kek.created_at)),
        activated_at: kek.activated_at.map(timestamp),
        deactivated_at: kek.deactivated_at.map(timestamp),
        compromised_at: kek.compromised_at.map(timestamp),
        destroy_at: kek.destroy_at.map(timestamp),
        destroyed_at: kek.destroyed_at.map(timestamp),
        wrapped_deks: u64::try_from(wrapped_deks).unwrap_or_default(),
    }
}

fn keyset_status(status: KeysetStatus) -> v1::KeysetStatus {
    let (counts, rate) = (status.counts, status.deks_per_second);
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    let seconds_left = (rate > 0.0).then(|| counts.pending as f64 / rate);
    v1::KeysetStatus {
        keyspace: status.row.keyspace,
        purpose: status.row.purpose.to_string(),
        active_version: status.active_version,
        pre_active_version: status.pre_active_version.unwrap_or_default(),
        deks_done: counts.done,
        deks_pending: counts.pending,
        reencryptions_pending: counts.reencryptions_pending,
        quarantined: counts.quarantined,
        deks_per_second: rate,
        seconds_left,
        paused: status.row.paused_at.is_some(),
        paused_by: status.row.paused_by.unwrap_or_default(),
        active_since: status.active_since.map(timestamp),
        next_rotation_at: status.next_turn.map(timestamp),
        overdue: status.overdue,
        waiting_for: status.waits_for,
    }
}

fn replica(replica: replicas::Replica) -> v1::Replica {
    v1::Replica {
        id: replica.id.to_string(),
        name: replica.name,
        version: replica.version,
        heartbeat_at: Some(timestamp(replica.heartbeat_at)),
        holds_newest_keys: replica.holds_newest_keys,
        failure: replica.failure.unwrap_or_default(),
    }
}

fn schedule(schedule: key_status::RotationSchedule) -> v1::RotationSchedule {
    v1::RotationSchedule {
        keyspace: schedule.row.keyspace,
        purpose: schedule.row.purpose.to_string(),
        policy: schedule.policy,
        next: schedule.next.into_iter().map(timestamp).collect(),
        paused: schedule.row.paused_at.is_some(),
        paused_by: schedule.row.paused_by.unwrap_or_default(),
        paused_at: schedule.row.paused_at.map(timestamp),
        last_run: schedule.row.last_scheduled_run.map(timestamp),
    }
}

fn quarantined(dek: quarantined_deks::QuarantinedDek) -> v1::QuarantinedDek {
    v1::QuarantinedDek {
        keyspace: dek.keyspace,
        dek_id: dek.dek_id.to_string(),
        path: dek.path,
        version: version(dek.version),
        key_version: version(dek.kek_version),
        reason: dek.reason,
        found_at: Some(timestamp(dek.found_at)),
    }
}

fn exposed(found: Exposed) -> ExposedSecret {
    let holder = |holder: Holder| v1::Holder {
        actor: holder.actor,
        version: version(holder.version),
        last_given_at: Some(timestamp(holder.last_given_at)),
    };
    ExposedSecret {
        path: found.secret.path,
        versions: found.secret.versions.into_iter().map(version).collect(),
        current: true,
        exposed_at: Some(timestamp(found.secret.exposed_at)),
        key_version: version(found.secret.key_version),
        holders: found.holders.into_iter().map(holder).collect(),
    }
}

fn certificate(row: StoredCertificate) -> Certificate {
    Certificate {
        keyspace: row.keyspace,
        purpose: row.purpose,
        version: version(row.version),
        created_at: Some(timestamp(row.created_at)),
        certificate: row.certificate,
    }
}
