//! Two workloads with their agents inside, by the scheme of `deploy/schemes/sidecar.yaml`, and the rollouts that change that.

use crate::load::QUERIES;
use podshm_cluster::images::{GUARD_AGENT, POD, PODSHM, ROUTE_AGENT};
use podshm_cluster::place::BRIDGE;
use serde_json::{Value, json};

/// The route that business looks up, and what it has to be: of nobody, so that it stays.
pub const KEY: &str = "shop/ledger:http";
pub const ADDRESSES: &str = "10.20.0.1:80,10.20.0.2:80,10.20.0.3:80";
/// Where agents write down what they were given, on each node.
pub const DELIVERED: &str = "/run/podshm-delivered";
/// Replicas that the owners ask for.
pub const ASKED: [(&str, u64); 2] = [("cart", 4), ("till", 2)];
/// Who may be answered by the guard.
pub const POLICY: &str = r#"@id("shop-reads") permit (principal, action == Action::"read", resource) when { context.podshm.namespace == "shop" };"#;
/// What business asks it.
const ACTION: &str = r#"Action::"read""#;
/// The part of requests that may be slow.
const MAY_BE_SLOW: f64 = 0.12;

fn container(name: &str, image: &str, arguments: &[&str], mounts: &[(&str, &str)]) -> Value {
    let from = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mounts: Vec<Value> = mounts.iter().map(|(name, path)| json!({"name": name, "mountPath": path})).collect();
    json!({
        "name": name, "image": image, "imagePullPolicy": "Never", "args": arguments, "volumeMounts": mounts,
        "env": [
            from("POD_NAME", "metadata.name"), from("POD_NAMESPACE", "metadata.namespace"), from("FORM", "metadata.labels['form']"),
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// One that starts before the business and ends after it.
fn sidecar(name: &str, image: &str, arguments: &[&str], mounts: &[(&str, &str)]) -> Value {
    let mut sidecar = container(name, image, arguments, mounts);
    sidecar["restartPolicy"] = json!("Always");
    sidecar
}

fn fat(name: &str, is_guarded: bool) -> Value {
    let (sockets, guard) = (("podshm", "/run/podshm"), ("guard", "/run/guard"));
    let log = format!("--log-delivered={DELIVERED}/$(POD_NAME)");
    let mut broker = vec!["within", "routing=/run/podshm"];
    let (mut both, mut arguments) = (vec![sockets], vec!["business", KEY, ADDRESSES]);
    if is_guarded {
        broker.push("guard=/run/guard");
        both.push(guard);
        arguments.push(ACTION);
    }
    let mut agents = vec![
        sidecar("broker", POD, &broker, &both),
        sidecar(
            "agent",
            ROUTE_AGENT,
            &["--kubernetes", "--linger", "--socket-dir=/run/podshm", &log],
            &[sockets, ("delivered", DELIVERED)],
        ),
    ];
    if is_guarded {
        let arguments = ["--linger", "--socket-dir=/run/guard", "--policies=/etc/guard"];
        agents.push(sidecar("guard", GUARD_AGENT, &arguments, &[guard, ("policies", "/etc/guard")]));
    }
    let mut business = container("business", POD, &arguments, &both);
    business["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    business["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1});
    // As long as it takes until nobody sends it requests any more: what anybody's business needs to end without hurting.
    business["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 4}}});
    let memory = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    json!({
        "serviceAccountName": "business", "automountServiceAccountToken": true, "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 40,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 20_001, "runAsGroup": 20_001, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": name}},
        }],
        "initContainers": agents,
        "containers": [business],
        "volumes": [
            {"name": "podshm", "emptyDir": memory}, {"name": "guard", "emptyDir": memory},
            {"name": "policies", "configMap": {"name": "policies"}},
            {"name": "delivered", "persistentVolumeClaim": {"claimName": "delivered"}},
        ],
    })
}

/// All of it, in namespace `shop`.
pub fn objects() -> Vec<Value> {
    let in_shop = |name: &str| json!({"name": name, "namespace": "shop"});
    let endpoints: Vec<Value> = ADDRESSES
        .split(',')
        .map(|one| json!({"addresses": [one.split(':').next()], "conditions": {"ready": true}}))
        .collect();
    let mut all = vec![
        // What the agents of pods write has to outlive them; a claim is let in under `restricted`, a hostPath is not.
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "delivered"},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "", "hostPath": {"path": DELIVERED},
                "claimRef": {"namespace": "shop", "name": "delivered"}, "persistentVolumeReclaimPolicy": "Retain",
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": in_shop("delivered"),
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": "delivered",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": in_shop("policies"), "data": {"main.cedar": POLICY}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": in_shop("business")}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "test-fat-agents"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "podshm-route-agent"},
            "subjects": [{"kind": "ServiceAccount", "name": "business", "namespace": "shop"}],
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": in_shop("ledger"),
            "spec": {"ports": [{"name": "http", "port": 80}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "ledger", "namespace": "shop", "labels": {"kubernetes.io/service-name": "ledger"}},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}], "endpoints": endpoints,
        }),
    ];
    for (name, replicas) in ASKED {
        let labels = json!({"app": name, "form": "fat"});
        all.push(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": in_shop(name),
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": fat(name, name == "till")},
            },
        }));
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": in_shop(name),
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }));
        all.push(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": in_shop(name),
            "spec": {"selector": {"matchLabels": {"app": name}}, "maxUnavailable": 1},
        }));
    }
    all
}

fn gates(image: &str, command: &[&str]) -> Value {
    json!({
        "verification": {"namespace": "shop", "image": image, "command": command, "timeoutSeconds": 240},
        "prometheus": [{
            "name": "latency", "url": format!("http://{BRIDGE}:{QUERIES}"), "query": "share_of_slow_requests", "max": MAY_BE_SLOW,
        }],
    })
}

/// What verifies that an agent is right, as somebody does who knows what is.
fn by_a_program_of_ours() -> Value {
    gates(POD, &["/podshm-cluster-pod", "routes", "verify", KEY, ADDRESSES])
}

/// From fat to slim.
pub fn conversion(name: &str) -> Value {
    let token = json!({"spec": {"automountServiceAccountToken": false}});
    let csi = |domain: &str| json!({"driver": "podshm.dev", "volumeAttributes": {"domain": domain}});
    let both = json!({"spec": {
        "automountServiceAccountToken": false,
        "volumes": [{"name": "podshm", "csi": csi("routing")}, {"name": "guard", "csi": csi("guard")}],
    }});
    let lookup = format!("routes:{KEY}");
    let verify = [
        "/podshm",
        "verify",
        "--lookup",
        &lookup,
        "--report",
        "reports:hello",
        "--call",
        "explain:echo:hello=echo:hello",
        "--rounds",
        "20",
        "--within",
        "10000",
    ];
    // A machine that is busy is slow, and that is no fault of a migration.
    let mut all = gates(PODSHM, &verify);
    all["prometheus"] = json!([]);
    json!({
        "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": name},
        "spec": {
            "agents": [
                {"namespace": "podshm-system", "name": "route-agent"}, {"namespace": "podshm-system", "name": "guard-agent"},
            ],
            "domain": "routing",
            "batches": [{"count": 1}, {"percent": 100}],
            "soakSeconds": 10, "progressDeadlineSeconds": 300,
            "gates": all,
            "workloads": [
                {
                    "namespace": "shop", "name": "cart",
                    "slim": {
                        "labels": {"form": "slim"}, "removeContainers": ["broker", "agent"], "domain": "routing", "patch": token,
                    },
                },
                {
                    "namespace": "shop", "name": "till",
                    "slim": {
                        "labels": {"form": "slim"}, "removeContainers": ["broker", "agent", "guard"], "domain": "routing", "patch": both,
                    },
                },
            ],
        },
    })
}

/// The same, that goes back by itself; with a verification that knows what is right.
pub fn careful_conversion(name: &str) -> Value {
    let mut object = conversion(name);
    object["spec"]["gates"] = by_a_program_of_ours();
    object["spec"]["onFailure"] = json!("RollBack");
    object
}

/// The route agent's next version, this node first.
pub fn upgrade(name: &str, canary: &str) -> Value {
    json!({
        "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": name},
        "spec": {
            "purpose": "UpgradeAgents", "onFailure": "RollBack",
            "agents": [{"namespace": "podshm-system", "name": "route-agent"}],
            "domain": "routing",
            "batches": [{"selector": {"matchLabels": {"kubernetes.io/hostname": canary}}}, {"percent": 100}],
            // Longer than any fault takes to show.
            "soakSeconds": 90, "progressDeadlineSeconds": 300,
            "gates": by_a_program_of_ours(),
        },
    })
}

/// The route agent's DaemonSet with a version that has a fault: image, what it runs, and the domain's /dev/shm.
pub fn with_fault(fault: &str) -> Value {
    let container = "/spec/template/spec/containers/0";
    let log = format!("{DELIVERED}/node");
    json!([
        {"op": "replace", "path": format!("{container}/image"), "value": POD},
        {"op": "replace", "path": format!("{container}/args"), "value": ["bad-route-agent", fault, log]},
        {
            "op": "add", "path": format!("{container}/volumeMounts/-"),
            "value": {"name": "podshm", "mountPath": "/dev/shm", "subPath": "shm"},
        },
    ])
}

/// It as the chart has it, and it writes down what it is given.
pub fn with_log() -> Value {
    let container = "/spec/template/spec/containers/0";
    json!([
        {"op": "add", "path": format!("{container}/args/-"), "value": format!("--log-delivered={DELIVERED}/node")},
        {"op": "add", "path": format!("{container}/volumeMounts/-"), "value": {"name": "delivered", "mountPath": DELIVERED}},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "delivered", "hostPath": {"path": DELIVERED}}},
    ])
}
