//! What tests ask of a cluster: namespaces of their own, pods, commands in them. All by kubectl, as a person would.

use crate::images::{
    CONTROLLER, GUARD_AGENT, POD, PODSHM, PODSHMD, PROBE, ROUTE_AGENT, as_pulled, built_statically, provide_agent,
    provide_dynamic, provide_next_podshmd, provide_podshm,
};
use crate::place::{Foreign, Place};
use crate::programs::{CLUSTER, HELM, Programs};
use crate::supervise::alive;
use crate::{control, up::kubectl};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take; it bounds a hang on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The cluster that `make cluster-up` or `make cluster-test` has brought up.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where it is.
    pub place: Place,
    programs: Programs,
}

/// A namespace that goes with [`Cluster::leave`].
#[derive(Clone, Debug)]
pub struct Space {
    /// Its name.
    pub name: String,
}

/// What a command in a pod has said, and whether it succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Standard output, without the last line end.
    pub text: String,
    /// Status 0.
    pub is_fine: bool,
}

impl Cluster {
    /// The one that is up.
    pub fn connect() -> anyhow::Result<Self> {
        let cluster = Cluster { place: Place::here(), programs: Programs::built(CLUSTER)? };
        if Foreign::cluster().is_none() {
            // Where there is none its address is somebody else's.
            alive(&cluster.place, control::SET).context("there is no cluster; run `make cluster-up`")?;
        }
        cluster.kubectl(&["get", "--raw=/readyz"])?;
        if !cluster.is_ours() {
            let found = cluster.kubectl(&["get", "csidriver", "podshm.dev", "--ignore-not-found", "-o", "name"])?;
            ensure!(
                found.is_empty(),
                "podshm is installed in this cluster: tests would take it away; give them another one"
            );
        }
        Ok(cluster)
    }

    /// Whether it is ours: then tests may look into nodes, and stop what runs there.
    pub fn is_ours(&self) -> bool {
        Foreign::cluster().is_none()
    }

    /// Two nodes that take pods, by name; the same one twice where there is no other.
    pub fn nodes(&self) -> anyhow::Result<[String; 2]> {
        let found: Value = serde_json::from_str(&self.kubectl(&["get", "nodes", "-o", "json"])?)?;
        let takes_pods = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array();
            let is_ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let taints = node["spec"]["taints"].as_array();
            is_ready && !taints.into_iter().flatten().any(|taint| taint["effect"] != "PreferNoSchedule")
        };
        let name = |node: &Value| node["metadata"]["name"].as_str().map(str::to_owned);
        let names: Vec<String> =
            found["items"].as_array().into_iter().flatten().filter(takes_pods).filter_map(name).collect();
        let first = names.first().context("no node is ready and without taints")?;
        Ok([first.clone(), names.get(1).unwrap_or(first).clone()])
    }

    /// Runs kubectl; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        kubectl(&self.place, &self.programs, arguments, "")
    }

    /// Runs kubectl with something to read.
    pub fn given(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        kubectl(&self.place, &self.programs, arguments, input)
    }

    /// Runs helm; what it says, both ways, and whether it succeeded.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let output = Command::new(Programs::built(HELM)?.path("helm")?)
            .args(arguments.iter().map(|argument| as_pulled(argument)))
            .env("KUBECONFIG", self.place.kubeconfig())
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .stdin(Stdio::null())
            .output()
            .context("starting helm")?;
        let said = [output.stdout, output.stderr].concat();
        Ok(Said { text: String::from_utf8_lossy(&said).trim_end().to_owned(), is_fine: output.status.success() })
    }

    /// Runs kubectl in a namespace.
    pub fn within(&self, space: &Space, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl(&[&["-n", &space.name], arguments].concat())
    }

    /// Applies a manifest of `deploy`, with images of ours in place of those that it names for an example.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(manifest);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let put = |line: &str| match line.split_once("image: registry.example/") {
            Some((indent, image)) => format!("{indent}image: {}\n", ours(manifest, image)),
            None => format!("{line}\n"),
        };
        let text: String = text.lines().map(put).collect();
        kubectl(&self.place, &self.programs, &["apply", "-f", "-"], &text).map(drop)
    }

    /// Removes what a manifest of `deploy` has, and waits until it is gone.
    pub fn remove(&self, manifest: &str) -> anyhow::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(manifest);
        let (path, patience) = (path.display().to_string(), format!("--timeout={}s", PATIENCE.as_secs()));
        self.kubectl(&["delete", "--ignore-not-found", &patience, "-f", &path]).map(drop)
    }

    /// Gives every node the node daemon's image, and that of tests' pods.
    pub fn provide_podshm(&self) -> anyhow::Result<()> {
        provide_podshm(&self.place, &self.programs)
    }

    /// Gives every node the node daemon in another image, too.
    pub fn provide_next_podshmd(&self) -> anyhow::Result<()> {
        provide_next_podshmd(&self.place, &self.programs)
    }

    /// Gives every node the image of dynamic programs.
    pub fn provide_dynamic(&self) -> anyhow::Result<()> {
        provide_dynamic(&self.place, &self.programs)
    }

    /// Gives every node the route agent's image.
    pub fn provide_route_agent(&self) -> anyhow::Result<()> {
        provide_agent(&self.place, &self.programs, ROUTE_AGENT, "route-agent")
    }

    /// Gives every node the guard agent's image.
    pub fn provide_guard_agent(&self) -> anyhow::Result<()> {
        provide_agent(&self.place, &self.programs, GUARD_AGENT, "guard-agent")
    }

    /// Gives every node the command's image.
    pub fn provide_command(&self) -> anyhow::Result<()> {
        provide_agent(&self.place, &self.programs, PODSHM, "podshm")
    }

    /// Applies what the chart renders with these values (`NAME=JSON`) and images of ours.
    pub fn install(&self, values: &[&str]) -> anyhow::Result<()> {
        let mut helm = Command::new(Programs::built(HELM)?.path("helm")?);
        helm.args(["template", "podshm", "--no-hooks"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart"));
        for (name, image) in
            [("podshmd", PODSHMD), ("routeAgent", ROUTE_AGENT), ("guardAgent", GUARD_AGENT), ("controller", CONTROLLER)]
        {
            helm.args(["--set", &format!("images.{name}={image}")]);
        }
        if !self.is_ours() {
            helm.args(["--set", "images.pullPolicy=Always"]);
        }
        for value in values {
            helm.args(["--set-json", value]);
        }
        let output = helm.output().context("starting helm")?;
        ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        kubectl(&self.place, &self.programs, &["apply", "-f", "-"], &text).map(drop)
    }

    /// Makes a domain, once the chart is installed.
    pub fn domain(&self, name: &str, spec: &Value) -> anyhow::Result<()> {
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["wait", "--for=condition=Established", "crd/shmdomains.podshm.dev", &patience])?;
        self.put(&[
            json!({"apiVersion": "podshm.dev/v1alpha1", "kind": "ShmDomain", "metadata": {"name": name}, "spec": spec}),
        ])
    }

    /// Takes away what [`Cluster::install`] has brought, from the nodes too: the next installation finds them as they were.
    pub fn uninstall(&self) -> anyhow::Result<()> {
        let agents = ["daemonset/route-agent", "daemonset/guard-agent"];
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        // Before podshmd, or nobody is left to take their volumes away.
        let first = ["-n", "podshm-system", "delete", "--ignore-not-found", "--cascade=foreground", &patience];
        self.kubectl(&[&first[..], &agents[..]].concat())?;
        if self.is_ours() {
            self.sweep()?;
        }
        for what in [
            &["csidriver/podshm.dev", "crd/shmdomains.podshm.dev", "crd/agentrollouts.podshm.dev"][..],
            &["clusterrole,clusterrolebinding", "-l", "app.kubernetes.io/name=podshm"],
            &["validatingadmissionpolicy,validatingadmissionpolicybinding", "-l", "app.kubernetes.io/name=podshm"],
        ] {
            self.kubectl(&[&["delete", "--ignore-not-found", &patience], what].concat())?;
        }
        self.leave(&Space { name: "podshm-system".into() })
    }

    /// As the chart's hook does. Where a test before this one has left pods, or nothing is installed, it has nothing to sweep.
    pub fn sweep(&self) -> anyhow::Result<()> {
        let mut sweep = Command::new(built_statically("podshm-controller")?);
        let image = format!("--image={PODSHMD}");
        let output = sweep
            .args(["uninstall", "--namespace=podshm-system", "--pull-policy=Never", &image])
            .env("KUBECONFIG", self.place.kubeconfig())
            .output()
            .context("starting podshm-controller")?;
        if !output.status.success() {
            println!("nodes are left as they are: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Applies objects.
    pub fn put(&self, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        kubectl(&self.place, &self.programs, &["apply", "-f", "-"], &list.to_string()).map(drop)
    }

    /// Makes a namespace at a Pod Security level; a former one of that name goes first.
    pub fn space(&self, name: &str, level: &str) -> anyhow::Result<Space> {
        let space = Space { name: name.to_owned() };
        self.leave(&space)?;
        self.kubectl(&["create", "namespace", name])?;
        self.kubectl(&["label", "namespace", name, &format!("pod-security.kubernetes.io/enforce={level}")])?;
        // Pods that come before it are refused.
        until("the namespace's default service account", || {
            let found =
                self.within(&space, &["get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"])?;
            Ok((!found.is_empty()).then_some(()))
        })?;
        Ok(space)
    }

    /// Removes a namespace and all in it, and waits until it is gone.
    pub fn leave(&self, space: &Space) -> anyhow::Result<()> {
        self.within(space, &["delete", "daemonsets,deployments,pods", "--all", "--grace-period=1", "--wait=false"])?;
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["delete", "namespace", &space.name, "--ignore-not-found", &patience]).map(drop)
    }

    /// Creates a pod; why it is refused, if it is.
    pub fn create(&self, space: &Space, pod: &Value) -> anyhow::Result<()> {
        kubectl(&self.place, &self.programs, &["-n", &space.name, "create", "-f", "-"], &pod.to_string()).map(drop)
    }

    /// Creates a pod and waits until it is ready.
    pub fn start(&self, space: &Space, pod: &Value) -> anyhow::Result<()> {
        self.create(space, pod)?;
        self.ready(space, pod["metadata"]["name"].as_str().context("a pod has a name")?)
    }

    /// Waits until a pod is ready.
    pub fn ready(&self, space: &Space, name: &str) -> anyhow::Result<()> {
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        let waited = self.within(space, &["wait", "--for=condition=Ready", &format!("pod/{name}"), &patience]);
        waited.map(drop).with_context(|| self.described(space))
    }

    /// Waits until a pod is gone.
    pub fn gone(&self, space: &Space, name: &str) -> anyhow::Result<()> {
        until(&format!("pod {name} to go"), || {
            let found = self.within(space, &["get", "pod", name, "--ignore-not-found", "-o", "name"])?;
            Ok(found.is_empty().then_some(()))
        })
    }

    /// Waits until a DaemonSet or Deployment is as it was last asked to be.
    pub fn rolled_out(&self, space: &Space, what: &str) -> anyhow::Result<()> {
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        self.within(space, &["rollout", "status", what, &patience]).map(drop).with_context(|| self.described(space))
    }

    /// What a person would look at when a pod does not start.
    fn described(&self, space: &Space) -> String {
        self.within(space, &["describe", "pods"]).unwrap_or_else(|error| error.to_string())
    }

    /// Waits until a pod has an event that says this.
    pub fn event(&self, space: &Space, pod: &str, says: &str) -> anyhow::Result<()> {
        let of = format!("--field-selector=involvedObject.name={pod}");
        until(&format!("an event of {pod} that says {says:?}"), || {
            let found = self.within(space, &["get", "events", &of, "-o", "jsonpath={.items[*].message}"])?;
            Ok(found.contains(says).then_some(()))
        })
        .with_context(|| self.described(space))
    }

    /// The one ready pod that these labels name, on a node if one is said. While there are others, or it is about to go, it is waited
    /// for.
    pub fn pod_of(&self, space: &Space, labels: &str, node: Option<&str>) -> anyhow::Result<String> {
        let on = node.map_or(String::new(), |node| format!("spec.nodeName={node}"));
        let name = until(&format!("one pod with {labels} in {}", space.name), || {
            let found = self.within(space, &["get", "pods", "-l", labels, "--field-selector", &on, "-o", "json"])?;
            let found: Value = serde_json::from_str(&found)?;
            Ok(match found["items"].as_array().map_or(&[][..], Vec::as_slice) {
                [pod] if pod["metadata"]["deletionTimestamp"].is_null() => {
                    pod["metadata"]["name"].as_str().map(str::to_owned)
                }
                _ => None,
            })
        })
        .with_context(|| self.described(space))?;
        self.ready(space, &name)?;
        Ok(name)
    }

    /// Runs a command in a pod's only container.
    pub fn run(&self, space: &Space, pod: &str, command: &[&str]) -> anyhow::Result<Said> {
        self.execute(&[&["-n", &space.name, "exec", pod, "--"], command].concat())
    }

    /// Runs a command in one of a pod's containers.
    pub fn run_in(&self, space: &Space, pod: &str, container: &str, command: &[&str]) -> anyhow::Result<Said> {
        self.execute(&[&["-n", &space.name, "exec", pod, "-c", container, "--"], command].concat())
    }

    fn execute(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let output = Command::new(self.programs.path("kubectl")?)
            .args(arguments)
            .env("KUBECONFIG", self.place.kubeconfig())
            .stdin(Stdio::null())
            .output()
            .context("starting kubectl")?;
        let why = String::from_utf8_lossy(&output.stderr);
        // Status 1 is the command's too; kubectl's own errors say so.
        if !output.status.success() && !why.contains("command terminated with exit code") {
            bail!("kubectl {}: {why}", arguments.join(" "));
        }
        if !output.status.success() {
            eprint!("{why}");
        }
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        Ok(Said { text, is_fine: output.status.success() })
    }
}

/// The image of ours in place of one that a manifest names for an example.
fn ours(manifest: &str, image: &str) -> &'static str {
    match image.split(':').next() {
        Some("podshmd") => PODSHMD,
        Some("podshm-controller") => CONTROLLER,
        _ if manifest.starts_with("examples/") => POD,
        _ => PROBE,
    }
}

/// Asks until there is something; an error that stays becomes the reason.
pub fn until<T>(what: &str, find: impl Fn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        let found = find();
        if let Ok(Some(found)) = found {
            return Ok(found);
        }
        if begin.elapsed() > PATIENCE {
            found.with_context(|| format!("waiting for {what}"))?;
            bail!("{what}: not so after {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A pod of the probe image on a node, as `restricted` wants it.
pub fn probe(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "probe", "image": PROBE, "imagePullPolicy": "Never",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}
