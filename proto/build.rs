//! Compiles the protocol definitions with protox, in pure Rust, so that no protoc is needed.

use std::{env, error::Error, path::PathBuf};

use prost::Message as _;

/// Messages that carry a token or secret material, themselves or in a field. They get no derived
/// Debug: `redacted.rs` writes one that shows no value, and forgetting a message there does not compile.
const SENSITIVE: [&str; 15] = [
    ".keyfold.v1.Field",
    ".keyfold.v1.IssueSecretsRequest",
    ".keyfold.v1.InitializeRequest",
    ".keyfold.v1.InitializeResponse",
    ".csi.v1.NodePublishVolumeRequest",
    ".keyfold.v1.IssuedSecret",
    ".keyfold.v1.IssueSecretsResponse",
    ".keyfold.v1.PutSecretRequest",
    ".keyfold.v1.GetSecretResponse",
    ".keyfold.v1.UnsealRequest",
    ".keyfold.v1.ChangeRootResponse",
    ".keyfold.v1.CreateRecoveryResponse",
    ".keyfold.v1.DrillRecoveryRequest",
    ".v2.DecryptResponse",
    ".v2.EncryptRequest",
];

/// Messages whose strings or bytes are themselves the secret: wiped when dropped.
const ZEROIZED: [&str; 10] = [
    ".keyfold.v1.Field",
    ".keyfold.v1.InitializeRequest",
    ".keyfold.v1.InitializeResponse",
    ".keyfold.v1.IssueSecretsRequest",
    ".keyfold.v1.UnsealRequest",
    ".keyfold.v1.ChangeRootResponse",
    ".keyfold.v1.CreateRecoveryResponse",
    ".keyfold.v1.DrillRecoveryRequest",
    ".v2.DecryptResponse",
    ".v2.EncryptRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "keyfold/v1/approval.proto",
        "keyfold/v1/audit.proto",
        "keyfold/v1/ca.proto",
        "keyfold/v1/config.proto",
        "keyfold/v1/key.proto",
        "keyfold/v1/policy.proto",
        "keyfold/v1/root.proto",
        "keyfold/v1/secret.proto",
        "keyfold/v1/system.proto",
        "keyfold/v1/workload.proto",
        "csi/v1/csi.proto",
        "kms/v2.proto",
        "pluginregistration/v1.proto",
    ];
    for folder in ["keyfold", "csi", "kms", "pluginregistration"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut builder = tonic_prost_build::configure().codec_path("crate::codec::Codec").skip_debug(SENSITIVE);
    for message in ZEROIZED {
        builder = builder.type_attribute(message, "#[derive(zeroize::ZeroizeOnDrop)]");
    }
    builder = builder.field_attribute(".keyfold.v1.IssueSecretsRequest.items", "#[zeroize(skip)]");
    builder.compile_fds(descriptors)?;
    Ok(())
}
