//! Brings the cluster up, saying what it does.

use crate::images::{Image, PAUSE, PROBE, as_pulled, compile, provide};
use crate::place::{Place, nodes};
use crate::programs::{CLUSTER, Programs};
use crate::{cgroups, control, down, machine, network, node, pki, supervise};
use anyhow::{Context, bail, ensure};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take; it bounds a hang.
const PATIENCE: Duration = Duration::from_secs(180);

/// A cluster with Ready nodes, the sandbox image and the probe on them.
pub fn up(place: &Place) -> anyhow::Result<()> {
    machine::check()?;
    let programs = Programs::build(CLUSTER)?;
    if place.root().exists() {
        println!("removing what is left of a cluster before this one");
        down::down(place)?;
    }
    let begin = Instant::now();
    let said = |what: &str| println!("{:5.1} s  {what}", begin.elapsed().as_secs_f64());
    fs::create_dir_all(place.path("logs")).with_context(|| format!("making {}", place.root().display()))?;
    fs::write(place.path("sysctls"), node::sysctls())?;
    pki::make(place)?;
    for (index, name) in nodes().iter().enumerate() {
        cgroups::make(name)?;
        node::prepare(place, index)?;
    }
    said("keys, certificates, configurations, cgroups");
    let pid = start(place, control::SET)?;
    network::control(pid)?;
    fs::write(place.network_file(control::SET), "")?;
    let mut pids = Vec::new();
    for (index, name) in nodes().iter().enumerate() {
        let node = start(place, name)?;
        network::node(pid, index, node)?;
        fs::write(place.network_file(name), "")?;
        pids.push(node);
    }
    said(&format!("control plane and nodes {} have their namespaces; starting the API server", nodes().join(", ")));
    let pause = Image {
        name: PAUSE.into(),
        programs: vec![compile(place, "pause")?],
        entrypoint: vec!["/pause".into()],
        user: 65535,
    };
    let probe = Image {
        name: PROBE.into(),
        programs: vec![compile(place, "probe")?],
        entrypoint: vec!["/probe".into(), "hold".into()],
        user: 65532,
    };
    for image in [&pause, &probe] {
        wait_for(place, "containerd to take an image", || provide(place, &programs, image))?;
    }
    said("containerd runs and has the images");
    let ask = |arguments: &[&str]| kubectl(place, &programs, arguments, "");
    wait_for(place, "the API server", || match ask(&["get", "--raw=/readyz"])?.as_str() {
        // Failing output has the word too.
        "ok" => Ok(()),
        other => bail!("it says {other}"),
    })?;
    said("API server ready");
    wait_for(place, "the nodes to be Ready", || {
        let ready = "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=='Ready')].status} {end}";
        let found = ask(&["get", "nodes", "-o", ready])?;
        let is_ready = |name: &&str| found.contains(&format!("{name}=True"));
        ensure!(nodes().iter().all(is_ready), "they are: {found}");
        Ok(())
    })?;
    said("nodes Ready");
    wait_for(place, "the default service account", || {
        ask(&["-n", "default", "get", "serviceaccount", "default"]).map(drop)
    })?;
    said("cluster up");
    println!("\n  KUBECONFIG={} {} get nodes\n", place.kubeconfig().display(), programs.path("kubectl")?.display());
    Ok(())
}

/// Runs kubectl as the cluster's administrator; what it prints.
pub fn kubectl(place: &Place, programs: &Programs, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(programs.path("kubectl")?)
        .args(arguments)
        .env("KUBECONFIG", place.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting kubectl")?;
    // It may end without having read all of it.
    let _ = child.stdin.take().context("input is piped")?.write_all(as_pulled(input).as_bytes());
    let output = child.wait_with_output()?;
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "kubectl {}: {why}{said}", arguments.join(" "));
    Ok(said.into_owned())
}

/// Starts a set of namespaces; the pid of its first process.
fn start(place: &Place, set: &str) -> anyhow::Result<u32> {
    let log = OpenOptions::new().create(true).append(true).open(place.log(set))?;
    let mut outer = Command::new(std::env::current_exe()?)
        .args(["set", set])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting this program again")?;
    supervise::note(place, &supervise::outer(set), outer.id())?;
    let begin = Instant::now();
    loop {
        if let Some(pid) = supervise::alive(place, set) {
            return Ok(pid);
        }
        if let Some(status) = outer.try_wait()? {
            bail!("{set} ends with {status}; see {}", place.log(set).display());
        }
        if begin.elapsed() > PATIENCE {
            let at = fs::read_to_string(format!("/proc/{}/wchan", outer.id())).unwrap_or_default();
            bail!("{set} has no namespaces after {} s; its process is in {at:?} of the kernel", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for(place: &Place, what: &str, is_there: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let begin = Instant::now();
    while let Err(error) = is_there() {
        for set in nodes().iter().chain([&control::SET]) {
            if supervise::alive(place, set).is_none() {
                bail!("{set} has ended while waiting for {what}; see {}", place.log(set).display());
            }
        }
        if begin.elapsed() > PATIENCE {
            let logs = place.path("logs");
            return Err(error)
                .with_context(|| format!("{what}: not there after {} s; see {}", PATIENCE.as_secs(), logs.display()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
