//! Debug forms of the messages that carry a token or secret material: what a message is about, never what it holds.

use std::fmt::{Debug, Formatter, Result};

use crate::{csi, keyfold::v1, kms::v2};

impl Debug for v1::Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Field").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Debug for v1::IssueSecretsRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("IssueSecretsRequest")
            .field("role", &self.role)
            .field("items", &self.items)
            .finish_non_exhaustive()
    }
}

impl Debug for v1::IssueSecretsResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("IssueSecretsResponse")
            .field("role", &self.role)
            .field("secrets", &self.secrets)
            .finish()
    }
}

impl Debug for v1::IssuedSecret {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("IssuedSecret")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("fields", &self.fields)
            .finish()
    }
}

impl Debug for v1::PutSecretRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("PutSecretRequest")
            .field("path", &self.path)
            .field("fields", &self.fields)
            .field("expected_version", &self.expected_version)
            .finish()
    }
}

impl Debug for v1::GetSecretResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("GetSecretResponse")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

impl Debug for v1::InitializeRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("InitializeRequest").finish_non_exhaustive()
    }
}

impl Debug for v1::InitializeResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("InitializeResponse")
            .field("installation_id", &self.installation_id)
            .finish_non_exhaustive()
    }
}

impl Debug for csi::v1::NodePublishVolumeRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("target_path", &self.target_path)
            .finish_non_exhaustive()
    }
}

impl Debug for v1::UnsealRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("UnsealRequest").finish_non_exhaustive()
    }
}

impl Debug for v1::ChangeRootResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("ChangeRootResponse")
            .field("custody", &self.custody)
            .field("new_root_key_id", &self.new_root_key_id)
            .finish_non_exhaustive()
    }
}

impl Debug for v1::CreateRecoveryResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("CreateRecoveryResponse").finish_non_exhaustive()
    }
}

impl Debug for v1::DrillRecoveryRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("DrillRecoveryRequest").finish_non_exhaustive()
    }
}

impl Debug for v2::DecryptResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("DecryptResponse").finish_non_exhaustive()
    }
}

impl Debug for v2::EncryptRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("EncryptRequest").field("uid", &self.uid).finish_non_exhaustive()
    }
}
