//! The recorded tokens and requests of a real Kubernetes 1.36, through the real server and driver.

use std::{fs, os::unix::fs::MetadataExt as _};

use keyfold_tests::{Recorded, fixture};
use time::{OffsetDateTime, macros::datetime};
use tonic::Code;

/// Between the issue of the recorded tokens and the end of the shortest-lived one.
const RECORDED: OffsetDateTime = datetime!(2026-11-23 05:45:00 UTC);

const POD: &str = "tokens/payments-api-on-node-vm.jwt";
const DRIVER: &str = "tokens/driver-on-node-vm.jwt";

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_pod_gets_its_secret() {
    let world = Recorded::at(RECORDED).await;
    let issued = world.issue(&fixture(POD), &fixture(DRIVER), "payments-api").await.unwrap();
    assert_eq!(issued.role, "payments-api");
    assert_eq!((issued.secrets[0].path.as_str(), issued.secrets[0].version), ("payments/db", 1));
    let password = issued.secrets[0].fields.iter().find(|field| field.name == "password").unwrap();
    assert_eq!(password.value, b"recorded-secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_role_the_only_one_that_binds_is_taken() {
    let world = Recorded::at(RECORDED).await;
    assert_eq!(world.issue(&fixture(POD), &fixture(DRIVER), "").await.unwrap().role, "payments-api");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_03_each_wrong_token_is_refused_for_its_own_reason() {
    let world = Recorded::at(RECORDED).await;
    let later = Recorded::at(datetime!(2026-11-23 06:05:00 UTC)).await;
    let cases = [
        (
            &world,
            "tokens/payments-api-api-server-audience.jwt",
            DRIVER,
            Code::Unauthenticated,
            "token-audience",
        ),
        (
            &world,
            "tokens/payments-api-not-bound-to-a-pod.jwt",
            DRIVER,
            Code::Unauthenticated,
            "token-not-bound-to-a-pod",
        ),
        (&later, "tokens/payments-api-ten-minutes.jwt", DRIVER, Code::Unauthenticated, "token-expired"),
        (&world, POD, "tokens/driver-on-node-b.jwt", Code::PermissionDenied, "node-mismatch"),
        (&world, "tokens/payments-api-on-node-b.jwt", DRIVER, Code::PermissionDenied, "node-mismatch"),
        (&world, "tokens/payments-reports-on-node-vm.jwt", DRIVER, Code::PermissionDenied, "role-not-bound"),
        (&world, "tokens/shop-api-on-node-vm.jwt", DRIVER, Code::PermissionDenied, "role-not-bound"),
        (&world, DRIVER, DRIVER, Code::PermissionDenied, "driver-as-pod"),
        (&world, POD, POD, Code::PermissionDenied, "not-a-driver"),
    ];
    for (world, pod, driver, code, reason) in cases {
        let status = world.issue(&fixture(pod), &fixture(driver), "payments-api").await.unwrap_err();
        assert_eq!(status.code(), code, "{pod} by {driver}: {}", status.message());
        let refused = world.database.sql(
            "SELECT convert_from(entry, 'UTF8')::json -> 'outcome' ->> 'reason' FROM audit_entries
             ORDER BY index DESC LIMIT 1",
        );
        assert_eq!(refused, reason, "{pod} by {driver}: {}", status.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ten_minute_token_works_for_ten_minutes() {
    let world = Recorded::at(RECORDED).await;
    let token = fixture("tokens/payments-api-ten-minutes.jwt");
    assert!(world.issue(&token, &fixture(DRIVER), "payments-api").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_recorded_publish_requests_mount() {
    let world = Recorded::at(RECORDED).await;
    let recordings = [
        ("csi/node-publish-token-in-secrets.json", "secrets"),
        ("csi/node-publish-token-in-context.json", "secrets-or-context"),
    ];
    for (recording, token_source) in recordings {
        let mut driver = world.driver(token_source).await;
        let (request, files) = world.publish_request(recording, &driver);
        driver.kubelet().publish(request).await.unwrap_or_else(|status| panic!("{recording}: {status}"));
        assert_eq!(fs::read(files.join("db/password")).unwrap(), b"recorded-secret");
        let environment = fs::read_to_string(files.join("db.env")).unwrap();
        assert!(
            environment.contains("PASSWORD=") && environment.contains("recorded-secret"),
            "{environment}"
        );
        let mode = fs::metadata(files.join("db.env")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o400);
        driver.stop().await;
        assert!(driver.mounts().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_25_a_token_in_the_context_is_not_read_unless_configured() {
    let world = Recorded::at(RECORDED).await;
    let driver = world.driver("secrets").await;
    let (request, _) = world.publish_request("csi/node-publish-token-in-context.json", &driver);
    let status = driver.kubelet().publish(request).await.unwrap_err();
    assert!(status.message().contains("serviceAccountTokenInSecrets"), "{}", status.message());
    assert!(driver.mounts().is_empty());
}
