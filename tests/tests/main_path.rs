//! The main path, end to end on real parts: a pod's token becomes files on its mount, and everything is written down.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use keyfold::dev::{
    kubelet::{Pod, publish_request},
    tokens::uid,
};
use keyfold_proto::keyfold::v1::{
    AuditEntry, ChangeVersionsRequest, ListEntriesRequest, RollbackSecretRequest, RotateKeyRequest,
};
use keyfold_tests::{PAYMENTS_SECRETS, World};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::Code;

const ROLE: &str = "payments-api";

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_token_becomes_files_and_everything_is_written_down() {
    let world = World::start().await.with_payments().await;
    let api = world.pod("payments", "api", "api-0");

    let files = world.publish(&api, ROLE, PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(shown_files(&world, &files), files_of(&world, "first"));

    assert_eq!(world.put("payments/db", &[("username", "payments"), ("password", "second")]).await, 2);
    let before = fs::read_link(files.join("..data")).unwrap();
    world.publish(&api, ROLE, PAYMENTS_SECRETS).await.unwrap();
    assert_ne!(fs::read_link(files.join("..data")).unwrap(), before);
    assert_eq!(shown_files(&world, &files), files_of(&world, "second"));

    let request = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    let turned = world.operator().keys().rotate_key(request).await.unwrap().into_inner();
    assert_eq!((turned.old_version, turned.new_version, turned.rewrapped_deks), (1, 2, 2));
    let wrapped_by =
        "SELECT k.version, k.state, count(*) FROM deks d JOIN keks k ON k.id = d.kek_id GROUP BY 1, 2";
    assert_eq!(world.database.sql(wrapped_by), "2|active|2", "all DEKs are under the new KEK");
    world.publish(&api, ROLE, PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(shown_files(&world, &files), files_of(&world, "second"));

    let reports = world.pod("payments", "reports", "reports-0");
    let refused = world.publish(&reports, ROLE, PAYMENTS_SECRETS).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    insta::assert_snapshot!(refused.message(), @r#"payments/reports-0: app role "payments-api" does not exist or does not bind system:serviceaccount:payments:reports of issuer dev"#);
    assert!(!world.driver.mounts().contains(&world.volume(&reports).target));

    insta::assert_snapshot!(shown_log(&world).await, @r#"
    0 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"system.initialize"},"generation":1,"outcome":{"result":"allowed"}}
    1 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"config.apply","dry_run":false,"objects":[{"kind":"Issuer","name":"dev","generation":1}]},"generation":2,"outcome":{"result":"allowed"}}
    2 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"config.apply","dry_run":false,"objects":[{"kind":"Keyspace","name":"payments","generation":1}]},"generation":3,"outcome":{"result":"allowed"}}
    3 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"config.apply","dry_run":false,"objects":[{"kind":"AppRole","name":"payments-api","generation":1}]},"generation":4,"outcome":{"result":"allowed"}}
    4 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"secret.put","path":"payments/db","version":1},"generation":5,"outcome":{"result":"allowed"}}
    5 "actor":{"kind":"pod","name":"system:serviceaccount:payments:api","issuer":"dev","namespace":"payments","service_account":{"name":"api","uid":"UID of api"},"pod":{"name":"api-0","uid":"UID of api-0"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI"},"driver":{"name":"system:serviceaccount:keyfold-system:keyfold-csi","issuer":"dev","namespace":"keyfold-system","service_account":{"name":"keyfold-csi","uid":"UID of keyfold-csi"},"pod":{"name":"keyfold-csi-dev","uid":"UID of keyfold-csi-dev"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI of the driver"},"operation":{"name":"secret.issue","role":"payments-api","items":[{"path":"payments/db","version":1,"rule":"payments/*"}]},"outcome":{"result":"allowed"}}
    6 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"secret.put","path":"payments/db","version":2},"generation":6,"outcome":{"result":"allowed"}}
    7 "actor":{"kind":"pod","name":"system:serviceaccount:payments:api","issuer":"dev","namespace":"payments","service_account":{"name":"api","uid":"UID of api"},"pod":{"name":"api-0","uid":"UID of api-0"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI"},"driver":{"name":"system:serviceaccount:keyfold-system:keyfold-csi","issuer":"dev","namespace":"keyfold-system","service_account":{"name":"keyfold-csi","uid":"UID of keyfold-csi"},"pod":{"name":"keyfold-csi-dev","uid":"UID of keyfold-csi-dev"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI of the driver"},"operation":{"name":"secret.issue","role":"payments-api","items":[{"path":"payments/db","version":2,"rule":"payments/*"}]},"outcome":{"result":"allowed"}}
    8 "actor":{"kind":"operator","name":"initial-administrator"},"operation":{"name":"key.rotate","keyspace":"payments","from_version":1,"to_version":2},"generation":7,"outcome":{"result":"allowed"}}
    9 "actor":{"kind":"server","name":"keyfold-server","replica":"ID of the replica"},"operation":{"name":"key.activate","keyspace":"payments","purpose":"data","version":2,"reason":"every live replica holds it"},"generation":8,"outcome":{"result":"allowed"}}
    10 "actor":{"kind":"server","name":"keyfold-server","replica":"ID of the replica"},"operation":{"name":"key.rewrap","keyspace":"payments","to_version":2,"deks":2},"outcome":{"result":"allowed"}}
    11 "actor":{"kind":"pod","name":"system:serviceaccount:payments:api","issuer":"dev","namespace":"payments","service_account":{"name":"api","uid":"UID of api"},"pod":{"name":"api-0","uid":"UID of api-0"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI"},"driver":{"name":"system:serviceaccount:keyfold-system:keyfold-csi","issuer":"dev","namespace":"keyfold-system","service_account":{"name":"keyfold-csi","uid":"UID of keyfold-csi"},"pod":{"name":"keyfold-csi-dev","uid":"UID of keyfold-csi-dev"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI of the driver"},"operation":{"name":"secret.issue","role":"payments-api","items":[{"path":"payments/db","version":2,"rule":"payments/*"}]},"outcome":{"result":"allowed"}}
    12 "actor":{"kind":"pod","name":"system:serviceaccount:payments:reports","issuer":"dev","namespace":"payments","service_account":{"name":"reports","uid":"UID of reports"},"pod":{"name":"reports-0","uid":"UID of reports-0"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI"},"driver":{"name":"system:serviceaccount:keyfold-system:keyfold-csi","issuer":"dev","namespace":"keyfold-system","service_account":{"name":"keyfold-csi","uid":"UID of keyfold-csi"},"pod":{"name":"keyfold-csi-dev","uid":"UID of keyfold-csi-dev"},"node":{"name":"dev-node","uid":"UID of dev-node"},"credential_id":"JTI of the driver"},"operation":{"name":"secret.issue","role":"payments-api","items":[{"path":"payments/db"}]},"outcome":{"result":"refused","reason":"role-not-bound","message":"app role \"payments-api\" does not exist or does not bind system:serviceaccount:payments:reports of issuer dev"}}
    "#);
    assert_eq!(world.database.check_audit_log(), 14);

    world.driver.kubelet().unpublish(&world.volume(&api)).await.unwrap();
    assert!(world.driver.mounts().is_empty());
    assert!(
        !files.exists() && fs::read_dir(world.driver.kubelet().dir().join("pods")).unwrap().next().is_none()
    );
}

fn files_of(world: &World, password: &str) -> String {
    let group = if world.driver.mounts_on_host() { "2000" } else { "0" };
    format!("0440 0:{group} db/password {password}\n0440 0:{group} db/username payments\n")
}

/// Every file that the pod sees: mode, owner, group, name, content.
fn shown_files(world: &World, mount: &Path) -> String {
    let mut lines = Vec::new();
    collect(mount, mount, &mut lines);
    lines.sort();
    let host = world.driver.mounts_on_host();
    let own = fs::metadata(world.folder.path()).unwrap();
    let line = |(name, path): (String, std::path::PathBuf)| {
        let found = fs::metadata(&path).unwrap();
        // In a user namespace the only owner that exists is ours, seen as root there.
        let id = |id: u32, own: u32| if host { id } else { id - own };
        let (uid, gid) = (id(found.uid(), own.uid()), id(found.gid(), own.gid()));
        let mode = found.permissions().mode() & 0o7777;
        format!("{mode:04o} {uid}:{gid} {name} {}\n", String::from_utf8_lossy(&fs::read(&path).unwrap()))
    };
    lines.into_iter().map(line).collect()
}

fn collect(mount: &Path, folder: &Path, found: &mut Vec<(String, std::path::PathBuf)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(mount).unwrap().display().to_string();
        match path.is_dir() {
            _ if name.starts_with("..") => {}
            true => collect(mount, &path, found),
            false => found.push((name, path)),
        }
    }
}

/// The log's exact bytes, one entry a line, with only what differs from run to run replaced.
async fn shown_log(world: &World) -> String {
    let request = ListEntriesRequest { page_size: 1000, ..Default::default() };
    let found = world.operator().audit().list_entries(request).await.unwrap().into_inner().entries;
    let lines: Vec<String> = found.iter().rev().map(shown_entry).collect();
    lines.join("\n")
}

fn shown_entry(entry: &AuditEntry) -> String {
    assert_eq!(entry.leaf_hash, keyfold_core::audit::leaf_hash(&entry.entry));
    let json: Value = serde_json::from_slice(&entry.entry).unwrap();
    let member = |name: &str| json[name].as_str().unwrap();
    assert!(OffsetDateTime::parse(member("at"), &Rfc3339).is_ok());
    let common = format!(
        r#"{{"v":1,"at":"{}","request_id":"{}","from":{},"#,
        member("at"),
        member("request_id"),
        json["from"]
    );
    // A server's own entries come from nowhere.
    assert_eq!(json["from"].is_null(), json["actor"]["kind"] == "server", "{json}");
    let text = str::from_utf8(&entry.entry).unwrap();
    let mut text = text.strip_prefix(&common).expect("each entry begins alike").to_owned();
    for (who, shown) in [("actor", "JTI"), ("driver", "JTI of the driver")] {
        text = text.replace(json[who]["credential_id"].as_str().unwrap_or("\n"), shown);
    }
    if let Some(replica) = json["actor"]["replica"].as_str() {
        text = text.replace(replica, "ID of the replica");
    }
    for (kind, namespace, name) in [
        ("Pod", "payments", "api-0"),
        ("Pod", "payments", "reports-0"),
        ("Pod", "keyfold-system", "keyfold-csi-dev"),
        ("Node", "", "dev-node"),
        ("ServiceAccount", "payments", "api"),
        ("ServiceAccount", "payments", "reports"),
        ("ServiceAccount", "keyfold-system", "keyfold-csi"),
    ] {
        text = text.replace(&uid(kind, namespace, name), &format!("UID of {name}"));
    }
    format!("{} {text}", entry.index)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_26_a_reader_never_sees_files_of_two_versions_together() {
    let world = World::start().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    let write = async |n: u32| {
        world
            .put("payments/db", &[("username", &format!("user-{n}")), ("password", &format!("password-{n}"))])
            .await
    };
    write(0).await;
    let files = world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
    let (done, pairs) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let generation = files.join(fs::read_link(files.join("..data")).unwrap());
                let read = |field: &str| fs::read_to_string(generation.join("db").join(field));
                // A generation that was replaced meanwhile is gone as a whole; the next look finds the new one.
                if let (Ok(user), Ok(password)) = (read("username"), read("password")) {
                    assert_eq!(user.strip_prefix("user-"), password.strip_prefix("password-"));
                    pairs.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for n in 1..20 {
                    write(n).await;
                    world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
                }
            });
        });
        done.store(true, Ordering::Relaxed);
    });
    assert!(pairs.into_inner() > 0);
    assert_eq!(fs::read_to_string(files.join("db/password")).unwrap(), "password-19");
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_files_modes_and_owners_are_as_the_volume_asks() {
    let world = World::start().await.with_payments().await;
    world.put("payments/tls", &[("tls.crt", "CERT"), ("tls.key", "it's a $KEY")]).await;
    let owners = if world.driver.mounts_on_host() { ", uid: 1234, gid: 3000" } else { "" };
    let secrets = format!(
        "- path: payments/db\n- {{path: payments/db, format: env, mode: '0400'{owners}}}\n\
         - {{path: payments/db, format: json, file: conf/database.json}}\n\
         - {{path: payments/tls, format: env, file: tls.sh}}\n- {{path: payments/tls, file: certs, mode: '0444'}}\n"
    );
    let files = world.publish(&world.pod("payments", "api", "api-0"), ROLE, &secrets).await.unwrap();
    let (group, owner) = if world.driver.mounts_on_host() { (2000, "1234:3000") } else { (0, "0:0") };
    let expected = format!(
        "0444 0:{group} certs/tls.crt CERT\n0444 0:{group} certs/tls.key it's a $KEY\n\
         0440 0:{group} conf/database.json {{\"password\":\"first\",\"username\":\"payments\"}}\n\n\
         0400 {owner} db.env PASSWORD=\"first\"\nUSERNAME=\"payments\"\n\n\
         0440 0:{group} db/password first\n0440 0:{group} db/username payments\n\
         0440 0:{group} tls.sh TLS_CRT=\"CERT\"\nTLS_KEY=\"it's a \\$KEY\"\n\n"
    );
    assert_eq!(shown_files(&world, &files), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_the_current_live_version_and_nothing_else() {
    let world = World::start().await.with_payments().await;
    world.put("payments/db", &[("password", "second")]).await;
    let operator = world.operator();
    let change =
        |versions: &[u32]| ChangeVersionsRequest { path: "payments/db".into(), versions: versions.into() };

    assert_eq!(served(&world).await, "2 second");
    let back = RollbackSecretRequest { path: "payments/db".into(), version: 1 };
    operator.secrets().rollback_secret(back.clone()).await.unwrap();
    assert_eq!(served(&world).await, "1 first");

    operator.secrets().delete_versions(change(&[1])).await.unwrap();
    let gone = "NotFound: app role payments-api: granted, but there is no such secret: payments/db";
    assert_eq!(served(&world).await, gone);
    operator.secrets().undelete_versions(change(&[1])).await.unwrap();
    assert_eq!(served(&world).await, "1 first");

    operator.secrets().destroy_versions(change(&[1])).await.unwrap();
    assert_eq!(served(&world).await, gone);
    assert_eq!(operator.secrets().rollback_secret(back).await.unwrap_err().code(), Code::NotFound);
    let undelete = operator.secrets().undelete_versions(change(&[1])).await.unwrap().into_inner();
    assert_eq!(undelete.changed, [0_u32; 0], "what is destroyed does not come back");
    assert_eq!(served(&world).await, gone);
    let rest = "SELECT count(*) FILTER (WHERE v.payload IS NOT NULL), count(d.*) FROM secret_versions v
                LEFT JOIN deks d USING (secret_id, version) WHERE v.version = 1";
    assert_eq!(world.database.sql(rest), "0|0", "payload and data key are gone");

    let to_second = RollbackSecretRequest { path: "payments/db".into(), version: 2 };
    operator.secrets().rollback_secret(to_second).await.unwrap();
    assert_eq!(served(&world).await, "2 second");
    assert_eq!(world.put("payments/db", &[("password", "third")]).await, 3, "a number is never used twice");
    assert_eq!(served(&world).await, "3 third");
    world.database.check_audit_log();
}

/// What a pod that starts now would get.
async fn served(world: &World) -> String {
    let pod = world.pod("payments", "api", "api-0");
    match world.issue(&world.token(&pod).jwt, &world.driver_token(), ROLE, &[("payments/db", false)]).await {
        Ok(issued) => {
            let secret = &issued.secrets[0];
            let password = secret.fields.iter().find(|field| field.name == "password").unwrap();
            format!("{} {}", secret.version, String::from_utf8_lossy(&password.value))
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_keeps_its_files_when_a_refresh_is_refused() {
    let world = World::start().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    let files = world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
    let request = ChangeVersionsRequest { path: "payments/db".into(), versions: vec![1] };
    world.operator().secrets().delete_versions(request).await.unwrap();

    world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(shown_files(&world, &files), files_of(&world, "first"));
    assert!(world.logs().contains("refresh failed, the files stay"));
    let last = world.audit().await.into_iter().rfind(|entry| entry["operation"]["name"] == "secret.issue");
    assert_eq!(last.unwrap()["outcome"]["reason"], "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_may_be_left_out_when_one_role_binds_the_pod() {
    let world = World::start().await.with_payments().await;
    let publish = async |pod: &Pod| {
        let (volume, token) = (world.volume(pod), world.token(pod));
        let request = publish_request(pod, &volume, &token, &[("secrets", PAYMENTS_SECRETS)]);
        world.driver.kubelet().publish(request).await.map_err(|status| status.message().to_owned())
    };
    publish(&world.pod("payments", "api", "api-0")).await.unwrap();
    let issued = world.audit().await.into_iter().rfind(|entry| entry["operation"]["name"] == "secret.issue");
    assert_eq!(issued.unwrap()["operation"]["role"], ROLE);

    insta::assert_snapshot!(publish(&world.pod("payments", "reports", "reports-0")).await.unwrap_err(), @"payments/reports-0: no app role was named, and none binds system:serviceaccount:payments:reports of issuer dev");
    let spec: Value = serde_json::json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
        "grants": [],
    });
    world.server.apply("AppRole", "second", &spec).await.unwrap();
    insta::assert_snapshot!(publish(&world.pod("payments", "api", "api-1")).await.unwrap_err(), @"payments/api-1: no app role was named, and several bind system:serviceaccount:payments:api of issuer dev: set `role` in the volume's attributes to one of payments-api, second");
}
