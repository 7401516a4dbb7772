//! `ShmDomain` on a real API server: what it refuses and in which words, what `kubectl` says of it.

use podshm_cluster::testing::Cluster;
use serde_json::{Value, json};

/// A domain that is as it should be.
fn domain(name: &str, spec: Value) -> Value {
    let mut fine = json!({
        "modes": ["channel", "posix"], "budget": "64Mi", "perPod": "16Mi", "shmSize": "32Mi",
        "serve": [{"namespace": "routing", "serviceAccounts": ["agent"]}], "join": [{"namespace": "shop"}],
    });
    for (field, value) in spec.as_object().expect("fields of a spec") {
        match value {
            Value::Null => drop(fine.as_object_mut().expect("fields").remove(field)),
            value => fine[field] = value.clone(),
        }
    }
    json!({"apiVersion": "podshm.dev/v1alpha1", "kind": "ShmDomain", "metadata": {"name": name}, "spec": fine})
}

/// What the API server says of an object that it refuses; nothing where it takes it. Nothing is kept either way.
fn refusal(cluster: &Cluster, object: &Value) -> Option<String> {
    let asked = cluster.given(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &object.to_string());
    asked.err().map(|error| format!("{error:#}"))
}

#[test]
fn what_can_not_be_is_refused_and_the_refusal_says_what_to_write() {
    let cluster = Cluster::connect().unwrap();
    cluster.apply("chart/files/shmdomains.json").unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/shmdomains.podshm.dev"]).unwrap();
    let long = "a".repeat(64);
    let (size, party) = ("expected a whole number of bytes that is not 0, or of Ki, Mi, Gi or Ti, as in 256Mi", "shop");
    let rows = [
        ("no-modes", json!({"modes": null}), "spec.modes: Required value"),
        ("empty", json!({"modes": []}), "spec.modes: Invalid value: expected at least one of channel, posix, sysv"),
        ("odd-mode", json!({"modes": ["channels"]}), r#"supported values: "channel", "posix", "sysv""#),
        ("twice", json!({"modes": ["channel", "channel"]}), r#"spec.modes[1]: Duplicate value: "channel""#),
        ("share", json!({"perPod": "65Mi"}), "spec.perPod: Invalid value: perPod is more than budget"),
        ("share-of-default", json!({"budget": null, "perPod": "1Gi"}), "lower perPod or raise budget"),
        ("no-shm", json!({"shmSize": null}), "spec.modes: Invalid value: mode posix needs shmSize"),
        ("no-bound", json!({"shmSize": "0"}), size),
        ("half", json!({"budget": "1.5Gi"}), size),
        ("unit", json!({"perPod": "16MB"}), size),
        (
            "number",
            json!({"budget": 1_048_576}),
            "spec.budget: Invalid value: \"integer\": spec.budget in body must be of type string",
        ),
        ("huge", json!({"budget": "99999999Ti"}), size),
        (
            "namespace",
            json!({"join": [{"namespace": "Shop"}]}),
            "spec.join[0].namespace: Invalid value: \"Shop\": expected the name of a namespace, or * for any",
        ),
        ("nowhere", json!({"serve": [{"serviceAccounts": ["agent"]}]}), "spec.serve[0].namespace: Required value"),
        (
            "account",
            json!({"join": [{"namespace": party, "serviceAccounts": [""]}]}),
            "spec.join[0].serviceAccounts[0]",
        ),
        (
            "many",
            json!({"join": vec![json!({"namespace": party}); 257]}),
            "spec.join: Too many: 257: must have at most 256 items",
        ),
        (
            "sysv",
            json!({"sysv": {"shmmni": 8}}),
            "spec.sysv: Invalid value: sysv bounds mode sysv, which modes does not have",
        ),
        (
            "segment",
            json!({"modes": ["sysv"], "sysv": {"shmmax": "2Gi", "shmall": "1Gi"}}),
            "spec.sysv.shmmax: Invalid value: shmmax is more than shmall",
        ),
        ("segments", json!({"modes": ["sysv"], "sysv": {"shmmni": 40000}}), "spec.sysv.shmmni"),
        ("scheme", json!({"olderSchemes": ["hostipc"]}), r#"supported values: "host", "sidecar""#),
        ("typo", json!({"bugdet": "64Mi"}), r#"unknown field "spec.bugdet""#),
        ("with.dot", json!({}), "metadata.name: expected 1 to 63 lower-case letters, digits or '-'"),
        (long.as_str(), json!({}), "metadata.name: expected 1 to 63 lower-case letters, digits or '-'"),
    ];
    for (name, spec, says) in rows {
        let said = refusal(&cluster, &domain(name, spec)).unwrap_or_else(|| panic!("{name} is taken"));
        println!("{name}: {said}");
        assert!(said.contains(says), "{name}: expected {says:?}, found {said}");
    }
    for (name, spec) in [
        ("fine", json!({})),
        (
            "least",
            json!({"modes": ["channel"], "budget": null, "perPod": null, "shmSize": null, "serve": null, "join": null}),
        ),
        ("equal", json!({"budget": "1Gi", "perPod": "1024Mi"})),
        ("bytes", json!({"budget": "67108864"})),
        ("anybody", json!({"join": [{"namespace": "*", "serviceAccounts": ["web"]}]})),
        ("unmodified", json!({"modes": ["sysv"], "sysv": {"shmmax": "64Mi"}, "olderSchemes": ["host", "sidecar"]})),
    ] {
        let said = refusal(&cluster, &domain(name, spec));
        assert_eq!(said, None, "{name}");
    }
}

#[test]
fn kubectl_explains_every_field() {
    let cluster = Cluster::connect().unwrap();
    cluster.apply("chart/files/shmdomains.json").unwrap();
    for (field, says) in [
        ("spec.modes", "each pod kept apart from the others by the kernel"),
        ("spec.join.namespace", "`*` is any"),
        ("spec.olderSchemes", "while a fleet moves over"),
        ("status.worstNodes", "The 20 nodes where most is wrong"),
    ] {
        let said = cluster.kubectl(&["explain", &format!("shmdomains.{field}")]).unwrap();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(says), "{field}: {said}");
    }
}
