//! The guard agent of the chart on a real cluster: business pods ask it, policies change, it is replaced under load.

use podshm_cluster::images::POD;
use podshm_cluster::loads;
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::{Value, json};

const READ: &str = r#"Action::"read""#;
const WRITE: &str = r#"Action::"write""#;

/// Whoever is of namespace `shop` may read.
const SHOP_READS: &str = r#"@id("shop-reads") permit (principal, action == Action::"read", resource) when { context.podshm.namespace == "shop" };"#;
/// And may write.
const SHOP_WRITES: &str = r#"@id("shop-writes") permit (principal, action == Action::"write", resource) when { context.podshm.namespace == "shop" };"#;

/// A pod of the domain, as `restricted` wants it.
fn business(name: &str, node: &str, arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 20_001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "pod", "image": POD, "imagePullPolicy": "Never", "args": arguments,
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "podshm", "mountPath": "/run/podshm", "readOnly": true}],
            }],
            "volumes": [{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": {"domain": "guard"}}}],
        },
    })
}

fn asks(cluster: &Cluster, space: &Space, pod: &str, action: &str) -> String {
    let said = cluster.run(space, pod, &["/podshm-cluster-pod", "guard", "ask", action]).unwrap();
    assert!(said.is_fine, "{}", said.text);
    said.text.trim().to_owned()
}

#[test]
fn business_pods_are_answered_by_the_policies_of_a_configmap() {
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    cluster.provide_podshm().unwrap();
    cluster.provide_guard_agent().unwrap();
    let policies = format!("guardAgent.policies={}", json!({"main.cedar": SHOP_READS}));
    cluster.install(&["guardAgent.enabled=true", &policies]).unwrap();
    let domain = json!({
        "modes": ["channel"], "budget": "64Mi", "perPod": "16Mi",
        "serve": [{"namespace": "podshm-system", "serviceAccounts": ["guard-agent"]}],
        "join": [{"namespace": "shop"}, {"namespace": "till"}],
    });
    cluster.domain("guard", &domain).unwrap();
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    cluster.rolled_out(&system, "daemonset/guard-agent").unwrap();
    let (shop, till) = (cluster.space("shop", "restricted").unwrap(), cluster.space("till", "restricted").unwrap());

    let nodes = cluster.nodes().unwrap();
    for node in &nodes {
        for space in [&shop, &till] {
            cluster.start(space, &business(&format!("on-{node}"), node, &["hold"])).unwrap();
        }
    }
    for node in &nodes {
        let pod = format!("on-{node}");
        assert_eq!(asks(&cluster, &shop, &pod, READ), "allow by shop-reads");
        // Who asks is what the broker knows, not what the question says.
        assert_eq!(asks(&cluster, &till, &pod, READ), "deny by");
        assert_eq!(asks(&cluster, &shop, &pod, WRITE), "deny by");
    }

    // The kubelet brings a changed ConfigMap to its pods within about a minute; nothing is restarted.
    let change = |files: Value| {
        let patch = json!({"data": files}).to_string();
        cluster.within(&system, &["patch", "configmap", "guard-policies", "--type=merge", "-p", &patch]).unwrap();
    };
    let agents = || {
        cluster
            .within(&system, &["get", "pods", "-l", "app=guard-agent", "-o", "jsonpath={.items[*].metadata.uid}"])
            .unwrap()
    };
    let before = agents();
    change(json!({"more.cedar": SHOP_WRITES}));
    for node in &nodes {
        let allowed =
            || Ok((asks(&cluster, &shop, &format!("on-{node}"), WRITE) == "allow by shop-writes").then_some(()));
        until("the changed policies to decide", allowed).unwrap();
    }
    // What can't be used changes nothing.
    change(json!({"more.cedar": "permit ("}));
    until("the agents to say what is wrong", || {
        let logs = cluster.within(&system, &["logs", "-l", "app=guard-agent", "--prefix", "--tail=50"])?;
        Ok((logs.matches("more.cedar").count() >= nodes.len()).then_some(()))
    })
    .unwrap();
    assert_eq!(asks(&cluster, &shop, &format!("on-{}", nodes[0]), WRITE), "allow by shop-writes");
    assert_eq!(agents(), before, "no agent was restarted");
    change(json!({"more.cedar": SHOP_WRITES}));

    the_agent_is_replaced_under_load(&cluster, &nodes, &system, &shop);

    for space in [&shop, &till] {
        cluster.leave(space).unwrap();
    }
    cluster.uninstall().unwrap();
}

/// Every question is answered, and as the policies say: no agent's end is a refusal.
fn the_agent_is_replaced_under_load(cluster: &Cluster, nodes: &[String; 2], system: &Space, shop: &Space) {
    let rolled = |strategy: Value| {
        let patch = json!({"spec": {"updateStrategy": {"rollingUpdate": strategy}}}).to_string();
        cluster.within(system, &["patch", "daemonset", "guard-agent", "--type=merge", "-p", &patch]).unwrap();
        cluster.within(system, &["rollout", "restart", "daemonset/guard-agent"]).unwrap();
    };
    let surge = || rolled(json!({"maxSurge": 1, "maxUnavailable": 0}));
    let unavailable = || rolled(json!({"maxSurge": 0, "maxUnavailable": 1}));
    let by_force = || {
        cluster.within(system, &["delete", "pod", "-l", "app=guard-agent", "--grace-period=0", "--force"]).unwrap();
    };
    let ways: [(&str, &dyn Fn()); 3] =
        [("rolled by maxSurge", &surge), ("rolled by maxUnavailable", &unavailable), ("deleted by force", &by_force)];
    let agents =
        || cluster.within(system, &["get", "pods", "-l", "app=guard-agent", "-o", "jsonpath={.items[*].metadata.uid}"]);
    for (what, act) in ways {
        let pods: Vec<(&Space, String)> =
            nodes.iter().enumerate().map(|(at, _)| (shop, format!("load-{at}"))).collect();
        for ((_, pod), node) in pods.iter().zip(nodes) {
            cluster.start(shop, &business(pod, node, &["guard", "load", READ])).unwrap();
        }
        let before = agents().unwrap();
        loads::meanwhile(cluster, &pods, (what, loads::During::QUESTIONS), || {
            act();
            cluster.rolled_out(system, "daemonset/guard-agent").unwrap();
            for node in nodes {
                // What a DaemonSet says of itself may be from before.
                cluster.pod_of(system, "app=guard-agent", Some(node)).unwrap();
            }
        });
        let after = agents().unwrap();
        assert!(!before.split(' ').any(|uid| after.contains(uid)), "{what}: {before}, then {after}");
        for (_, pod) in &pods {
            let last = loads::ended(cluster, shop, pod, what);
            assert!(last.ends_with("questions, all allowed"), "{what}: {pod}: {last}");
            println!("{what}: {pod}: {last}");
        }
    }
}
