//! `WorkloadService`.

use std::collections::BTreeSet;

use keyfold_core::path::SecretPath;
use keyfold_proto::keyfold::v1::{
    IssueSecretsRequest, IssueSecretsResponse, IssuedSecret, SecretReference,
    workload_service_server::WorkloadService,
};
use tonic::{Request, Response, Status};

use super::{Api, bounded, fields_out, timestamp};
use crate::{
    broker::{IssueRequest, WantedItem},
    error::Error,
};

/// Most secrets of one volume.
const ITEMS_MAX: usize = 64;

#[tonic::async_trait]
impl WorkloadService for Api {
    async fn issue_secrets(
        &self,
        request: Request<IssueSecretsRequest>,
    ) -> Result<Response<IssueSecretsResponse>, Status> {
        self.answer("IssueSecrets", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let issued = self
                .broker
                .issue(
                    &call,
                    &IssueRequest {
                        pod_token: &message.pod_token,
                        role: Some(bounded("role", &message.role)?).filter(|role| !role.is_empty()),
                        items: items(&message.items)?,
                    },
                )
                .await?;
            let secret = |secret: crate::broker::IssuedSecret| IssuedSecret {
                path: secret.path,
                version: secret.version,
                fields: fields_out(secret.fields),
            };
            Ok(IssueSecretsResponse {
                role: issued.role,
                secrets: issued.secrets.into_iter().map(secret).collect(),
                lease_expires_at: issued.lease_expires_at.map(timestamp),
            })
        })
        .await
    }
}

fn items(references: &[SecretReference]) -> Result<Vec<WantedItem>, Error> {
    if references.is_empty() || references.len() > ITEMS_MAX {
        return Err(Error::Invalid(format!("a volume has 1 to {ITEMS_MAX} secrets")));
    }
    let mut seen = BTreeSet::new();
    let mut items = Vec::with_capacity(references.len());
    for reference in references {
        let path = SecretPath::parse(&reference.path)?;
        if !seen.insert(path.clone()) {
            return Err(Error::Invalid(format!("path {path} is named twice")));
        }
        items.push(WantedItem { path, optional: reference.optional });
    }
    Ok(items)
}
