//! Which role a pod acts under, and whether it may have the five secrets of a volume.

use divan::{Bencher, black_box, counter::ItemsCount};
use keyfold_core::{
    name::ObjectName,
    object::{Capability, Kind, Spec},
    path::SecretPath,
    policy::{AppRole, Labels, check_node, decide, select_role},
};
use serde_json::json;

use crate::pod::{PATHS, ROLE, caller};

/// With so many app roles declared, of which one binds the pod.
#[divan::bench(args = [10, 1000])]
fn of_5_secrets(bencher: Bencher, roles: usize) {
    let mut declared: Vec<_> =
        (1..roles).map(|at| role(&format!("app-{at}"), &format!("app-{at}"))).collect();
    declared.push(role(ROLE, "api"));
    let caller = caller();
    let (identity, driver_node) = (caller.identity(), caller.driver().node.as_ref());
    let paths = PATHS.map(|path| SecretPath::parse(path).expect("a path"));
    bencher.counter(ItemsCount::new(PATHS.len())).bench_local(|| {
        let identity = black_box(identity);
        let role = select_role(identity, driver_node, &Labels::default(), black_box(&declared), Some(ROLE))
            .expect("one role binds the pod");
        check_node(role, identity.node.as_ref(), driver_node).expect("both are on one node");
        for path in black_box(&paths) {
            black_box(decide(identity, role, path, Capability::Read).expect("it is granted"));
        }
    });
}

fn role(name: &str, service_account: &str) -> AppRole {
    let spec = json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": [service_account]}],
        "grants": [
            {"path": "shared/{namespace}/**", "allow": ["read"]},
            {"path": "payments/**", "allow": ["read"]},
        ],
    });
    let Ok(Spec::AppRole(spec)) = Spec::parse(Kind::AppRole, &spec.to_string()) else {
        panic!("the role is not accepted: {spec}");
    };
    AppRole { name: ObjectName::try_from(name).expect("a name"), spec }
}
