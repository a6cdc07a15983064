//! A KMS v2 plugin for tests: it serves the API on a Unix socket, with AES-256-GCM keys in a file of its own. On SIGHUP
//! it makes a new key; what is under an older one still opens. A second file can make it misbehave.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::entropy::{Entropy as _, SystemEntropy};
use keyfold_csi::socket;
use keyfold_proto::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
    key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Request, Response, Status, transport::Server};

/// Where the plugin puts the nonce: a client must give annotations back as they were.
const NONCE: &str = "nonce.kms.keyfold.example";

#[tokio::main]
async fn main() {
    let [socket, keys, mood] =
        std::env::args_os().skip(1).collect::<Vec<_>>().try_into().expect("SOCKET KEYS MOOD");
    let plugin = Arc::new(Plugin { keys: PathBuf::from(keys), mood: PathBuf::from(mood) });
    if !plugin.keys.exists() {
        plugin.add_key();
    }
    let mut hangup = signal(SignalKind::hangup()).expect("signals can be handled");
    let rotating = Arc::clone(&plugin);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            rotating.add_key();
            println!("rotated");
        }
    });
    let (incoming, _file) = socket::bind(&PathBuf::from(socket)).expect("the socket can be bound");
    println!("serving");
    let service = KeyManagementServiceServer::from_arc(plugin);
    Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("the socket serves");
}

struct Plugin {
    /// One key a line: its id and its bytes in base64. The last is in use.
    keys: PathBuf,
    /// How to misbehave; not there: not at all.
    mood: PathBuf,
}

impl Plugin {
    fn add_key(&self) {
        let mut key = [0; 32];
        SystemEntropy.fill(&mut key).expect("the system gives randomness");
        let mut all = fs::read_to_string(&self.keys).unwrap_or_default();
        all.push_str(&format!("key-{} {}\n", all.lines().count() + 1, STANDARD.encode(key)));
        fs::write(&self.keys, all).expect("the keys can be written");
    }

    /// Ids and keys, the one in use last.
    fn keys(&self) -> Vec<(String, LessSafeKey)> {
        let all = fs::read_to_string(&self.keys).expect("the keys can be read");
        let key = |text| {
            let bytes = STANDARD.decode(text).expect("a key is base64");
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).expect("a key has 32 bytes"))
        };
        all.lines()
            .map(|line| line.split_once(' ').expect("a line has two parts"))
            .map(|(id, text)| (id.into(), key(text)))
            .collect()
    }

    fn current_id(&self) -> String {
        self.keys().pop().expect("there is a key").0
    }

    fn mood(&self) -> String {
        fs::read_to_string(&self.mood).unwrap_or_default()
    }
}

#[tonic::async_trait]
impl KeyManagementService for Plugin {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let mut status =
            StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: self.current_id() };
        match self.mood().as_str() {
            "unwell" => status.healthz = "the vault is sealed\u{1b}[2J".into(),
            "version" => status.version = "v1beta1".into(),
            "nameless" => status.key_id.clear(),
            "refusing" => return Err(Status::permission_denied("words of the plugin")),
            "slow" => tokio::time::sleep(Duration::from_secs(600)).await,
            _ => {}
        }
        Ok(Response::new(status))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let (key_id, key) = self.keys().pop().expect("there is a key");
        let mut nonce = [0; 12];
        SystemEntropy.fill(&mut nonce).expect("the system gives randomness");
        let mut ciphertext = request.into_inner().plaintext.clone();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&key_id),
            &mut ciphertext,
        )
        .map_err(|_| Status::internal("sealing failed"))?;
        let annotations = HashMap::from([(NONCE.to_owned(), nonce.to_vec())]);
        let mut response = EncryptResponse { ciphertext, key_id, annotations };
        match self.mood().as_str() {
            "empty" => response.ciphertext.clear(),
            "large" => response.ciphertext = vec![0; 1025],
            "huge" => response.ciphertext = vec![0; 64 * 1024 * 1024],
            "named-at-length" => response.key_id = "k".repeat(1025),
            "annotated-at-length" => drop(response.annotations.insert("a.b".into(), vec![0; 32 * 1024])),
            "annotated-wrongly" => drop(response.annotations.insert("no domain".into(), Vec::new())),
            _ => {}
        }
        Ok(Response::new(response))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let DecryptRequest { mut ciphertext, key_id, annotations, .. } = request.into_inner();
        let refused = || Status::invalid_argument("words of the plugin");
        let nonce = annotations.get(NONCE).ok_or_else(refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
        let (_, key) = self.keys().into_iter().find(|(id, _)| *id == key_id).ok_or_else(refused)?;
        let plaintext =
            key.open_in_place(nonce, Aad::from(&key_id), &mut ciphertext).map_err(|_| refused())?;
        let plaintext = match self.mood().as_str() {
            "lying" => vec![7; 32],
            "short" => plaintext[..31].to_vec(),
            _ => plaintext.to_vec(),
        };
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}
