//! What the fault suites need besides a world: calls as the driver makes them, a commit that can be held up, parts that
//! can be frozen, and the properties that must hold after every fault.

use std::{fs, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use keyfold::dev::{
    driver::{Driver, mounts_of},
    kubelet::{Pod, Volume, publish_request},
    postgres::Postgres,
    server::{self, Server},
    tokens::{AUDIENCE, Minter, TokenRequest},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    csi::v1::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, node_client::NodeClient},
    keyfold::v1::{
        GetStatusRequest, GetStatusResponse, IssueSecretsRequest, IssueSecretsResponse, SecretReference,
        workload_service_client::WorkloadServiceClient,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{World, world};
