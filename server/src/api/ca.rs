//! `CertificateService`.

use keyfold_proto::keyfold::v1::{
    AuthorityCertificate, GetBundleRequest, GetBundleResponse, IssueDriverCertificateRequest,
    IssueDriverCertificateResponse, RotateAuthorityRequest, RotateAuthorityResponse,
    certificate_service_server::CertificateService,
};
use tonic::{Request, Response, Status};

use super::{Api, timestamp, version};
use crate::ca::Authority;

#[tonic::async_trait]
impl CertificateService for Api {
    async fn get_bundle(
        &self,
        request: Request<GetBundleRequest>,
    ) -> Result<Response<GetBundleResponse>, Status> {
        self.answer("GetBundle", async {
            let _call = self.call(&request).await?;
            let bundle = self.broker.bundle().await?;
            Ok(GetBundleResponse {
                bundle: bundle.pem.clone(),
                authorities: bundle.authorities.iter().map(authority).collect(),
            })
        })
        .await
    }

    async fn issue_driver_certificate(
        &self,
        request: Request<IssueDriverCertificateRequest>,
    ) -> Result<Response<IssueDriverCertificateResponse>, Status> {
        self.answer("IssueDriverCertificate", async {
            let call = self.call(&request).await?;
            let issued =
                self.broker.issue_driver_certificate(&call, &request.get_ref().certificate_request).await?;
            Ok(IssueDriverCertificateResponse {
                chain: issued.signed.pem,
                expires_at: Some(timestamp(issued.signed.expires_at)),
                bundle: issued.bundle,
            })
        })
        .await
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        self.answer("RotateAuthority", async {
            let rotated = self.broker.rotate_authority(&self.call(&request).await?).await?;
            Ok(RotateAuthorityResponse {
                version: rotated.version,
                active_at: Some(timestamp(rotated.active_at)),
            })
        })
        .await
    }
}

fn authority(authority: &Authority) -> AuthorityCertificate {
    AuthorityCertificate {
        version: version(authority.version),
        state: authority.state.clone(),
        expires_at: Some(timestamp(authority.expires_at)),
        fingerprint: authority.fingerprint(),
    }
}
