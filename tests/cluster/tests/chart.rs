//! The chart: what it renders, what its schema refuses.

use podshm_cluster::programs::{HELM, Programs};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn render(arguments: &[&str]) -> Output {
    let mut helm = Command::new(Programs::built(HELM).unwrap().path("helm").unwrap());
    helm.args(["template", "podshm", "deploy/chart"]).args(arguments).current_dir(checkout()).output().unwrap()
}

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let mut script = Command::new("scripts/manifests");
    script.arg("--check").env("PODSHM_CLUSTER_PROGRAM", env!("CARGO_BIN_EXE_podshm-cluster"));
    let output = script.current_dir(checkout()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

#[test]
fn a_value_that_nobody_knows_is_refused_by_name() {
    for (value, says) in [
        ("podshmd.memroy=1Gi", "memroy"),
        ("podshmd.memory=lots", "/podshmd/memory"),
        ("kubeletDir=var/lib/kubelet", "/kubeletDir"),
        ("namespace.name=Podshm", "/namespace/name"),
    ] {
        let output = render(&["--set", value]);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && why.contains(says), "{value}: {why}");
    }
}

#[test]
fn values_go_where_they_belong() {
    let set = ["kubeletDir=/data/kubelet", "podshmd.memory=1Gi", "images.registry=example.org/mirror", "images.tag=v2"];
    let output = render(&set.iter().flat_map(|value| ["--set", value]).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("/var/lib/kubelet"), "{text}");
    assert_eq!(text.matches("memory: 1Gi").count(), 2, "request and limit: {text}");
    assert!(text.contains("image: example.org/mirror/podshmd:v2\n"), "{text}");
    // Where the release is recorded in it, the namespace is there already.
    let output = render(&["--namespace", "podshm-system"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("kind: Namespace"));
}
