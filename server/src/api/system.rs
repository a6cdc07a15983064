//! `SystemService`.

use std::collections::BTreeSet;

use keyfold_core::{object::Capability, rights::Rights};
use keyfold_proto::keyfold::v1::{
    GetStatusRequest, GetStatusResponse, InitializeRequest, InitializeResponse,
    RevokeInitialAdministratorRequest, RevokeInitialAdministratorResponse, SecretGrant, State, StatusDetails,
    WhoAmIRequest, WhoAmIResponse, system_service_server::SystemService,
};
use tonic::{Request, Response, Status};

use super::{Api, root, timestamp};
use crate::{
    authn::{OperatorCaller, OperatorKind},
    broker, seal,
};

#[tonic::async_trait]
impl SystemService for Api {
    async fn initialize(
        &self,
        request: Request<InitializeRequest>,
    ) -> Result<Response<InitializeResponse>, Status> {
        self.answer("Initialize", async {
            let call = self.call(&request).await?;
            let expected = self.bootstrap_token_file.as_deref();
            let made = self.broker.initialize(&call, &request.get_ref().bootstrap_token, expected).await?;
            Ok(InitializeResponse {
                installation_id: made.installation.to_string(),
                admin_token: String::from_utf8(made.admin_token.into_vec()).unwrap_or_default(),
                root_shares: root::texts(made.root_shares.texts),
                root_threshold: made.root_shares.threshold,
            })
        })
        .await
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.answer("GetStatus", async {
            let call = self.call(&request).await?;
            let status = self.broker.status(&call).await?;
            let (state, message) = match status.state {
                seal::State::Sealed(why) => (State::Sealed, why),
                seal::State::Uninitialized => (State::Uninitialized, "run keyfold init".to_owned()),
                seal::State::Serving(_) => (State::Serving, String::new()),
            };
            Ok(GetStatusResponse { state: state.into(), message, details: status.details.map(details) })
        })
        .await
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        self.answer("WhoAmI", async {
            let (caller, rights) = self.broker.whoami(&self.call(&request).await?).await?;
            Ok(whoami(&caller, &rights))
        })
        .await
    }

    async fn revoke_initial_administrator(
        &self,
        request: Request<RevokeInitialAdministratorRequest>,
    ) -> Result<Response<RevokeInitialAdministratorResponse>, Status> {
        self.answer("RevokeInitialAdministrator", async {
            let revoked = self.broker.revoke_initial_administrator(&self.call(&request).await?).await?;
            Ok(RevokeInitialAdministratorResponse { revoked })
        })
        .await
    }
}

fn whoami(caller: &OperatorCaller, rights: &Rights) -> WhoAmIResponse {
    let identity = match caller.kind() {
        OperatorKind::InitialAdministrator => None,
        OperatorKind::Identity(identity) => Some(identity),
    };
    let grant = |(path, capabilities): (String, BTreeSet<Capability>)| SecretGrant {
        path,
        capabilities: capabilities.iter().map(|capability| capability.as_str().to_owned()).collect(),
    };
    WhoAmIResponse {
        name: caller.name().to_owned(),
        issuer: identity.map(|identity| identity.issuer.to_string()),
        subject: identity.map(|identity| identity.subject.clone()),
        roles: rights.roles().iter().map(ToString::to_string).collect(),
        permissions: rights.permissions().map(|permission| permission.to_string()).collect(),
        grants: rights.grants().into_iter().map(grant).collect(),
        expires_at: identity.map(|identity| timestamp(identity.expires_at)),
    }
}

fn details(details: broker::system::StatusDetails) -> StatusDetails {
    StatusDetails {
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        installation_id: details.installation.to_string(),
        schema_version: details.schema_version,
        root_key_id: details.root_key_id.simple().to_string(),
        audit_entries: u64::try_from(details.audit_entries).unwrap_or_default(),
        initial_administrator_active: details.initial_administrator_active,
    }
}
