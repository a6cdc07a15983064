//! The contracts that Keyfold speaks: its own API, the Container Storage Interface, kubelet's plugin registration and
//! KMS plugins'. Messages that carry tokens or secret material have no derived Debug form.

pub mod channel;
mod codec;
mod redacted;

/// Keyfold's own API.
#[allow(missing_docs, clippy::all)]
pub mod keyfold {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("keyfold.v1");
    }
}

/// The Container Storage Interface, as far as a node-only driver needs it.
#[allow(missing_docs, clippy::all)]
pub mod csi {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// The Kubernetes key management service API, as a KMS plugin serves it.
#[allow(missing_docs, clippy::all)]
pub mod kms {
    /// Version 2.
    pub mod v2 {
        tonic::include_proto!("v2");
    }
}

/// Kubelet's plugin registration, version 1.
#[allow(missing_docs, clippy::all)]
pub mod pluginregistration {
    tonic::include_proto!("pluginregistration");
}

/// All of the above as an encoded `FileDescriptorSet`, for server reflection and for tests that walk every RPC.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
