//! One request, asked again and again.

use keyfold_proto::keyfold::v1::{
    GetSecretRequest, IssueSecretsRequest, SecretReference, secret_service_client::SecretServiceClient,
    workload_service_client::WorkloadServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

/// A request, and the name in it that its arm is about.
pub(crate) struct Probe {
    pub(crate) question: Question,
    /// Stands in no other probe, so that answers can be compared without it.
    pub(crate) name: String,
}

/// What is asked.
pub(crate) enum Question {
    /// `IssueSecrets`, of one path.
    Issue { driver_token: String, pod_token: String, role: String, path: String },
    /// `GetSecret`.
    Get { token: String, path: String },
}

/// A request that is built already.
pub(crate) enum Prepared {
    /// `IssueSecrets`.
    Issue(WorkloadServiceClient<Channel>, Request<IssueSecretsRequest>),
    /// `GetSecret`.
    Get(SecretServiceClient<Channel>, Request<GetSecretRequest>),
}

impl Probe {
    /// Builds the request.
    ///
    /// # Panics
    /// When the token is not ASCII.
    pub(crate) fn prepare(&self, channel: &Channel) -> Prepared {
        let channel = channel.clone();
        match &self.question {
            Question::Issue { driver_token, pod_token, role, path } => {
                let message = IssueSecretsRequest {
                    pod_token: pod_token.clone(),
                    role: role.clone(),
                    items: vec![SecretReference { path: path.clone(), optional: false }],
                };
                Prepared::Issue(WorkloadServiceClient::new(channel), bearing(driver_token, message))
            }
            Question::Get { token, path } => {
                let message = GetSecretRequest { path: path.clone(), version: None };
                Prepared::Get(SecretServiceClient::new(channel), bearing(token, message))
            }
        }
    }
}

impl Prepared {
    /// Asks.
    ///
    /// # Panics
    /// When what comes back is neither an allowance nor a refusal.
    pub(crate) async fn send(self) -> Result<(), Status> {
        let answer = match self {
            Self::Issue(mut client, request) => client.issue_secrets(request).await.map(drop),
            Self::Get(mut client, request) => client.get_secret(request).await.map(drop),
        };
        if let Err(status) = &answer {
            let is_refusal = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
            assert!(is_refusal, "no refusal but a failure: {status}");
        }
        answer
    }
}

/// A message with this token.
///
/// # Panics
/// When the token is not ASCII.
pub(crate) fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}
