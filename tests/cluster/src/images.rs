//! Images: OCI archives with a few static programs, made here and imported into each node.

use crate::place::{Foreign, Place, nodes};
use crate::programs::{CRANE, Programs};
use crate::supervise::alive;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What pods' sandboxes run.
pub const PAUSE: &str = "podshm.dev/test/pause:1";
/// The C programs of `tests/cluster/c`.
pub const PROBE: &str = "podshm.dev/test/probe:1";

/// An image of static programs, with nothing else in it.
#[derive(Clone, Debug)]
pub struct Image {
    /// With a tag.
    pub name: String,
    /// Programs on this machine, each of which goes to / under its own name.
    pub programs: Vec<PathBuf>,
    /// What it runs.
    pub entrypoint: Vec<String>,
    /// As whom, in numbers.
    pub user: u32,
}

impl Image {
    /// Writes it as an archive that `ctr images import` reads.
    pub fn write(&self, to: &Path) -> anyhow::Result<()> {
        let mut layer = tar::Builder::new(Vec::new());
        for program in &self.programs {
            let name = program.file_name().context("a program has a name")?;
            let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
            append(&mut layer, Path::new(name), &bytes, 0o755)?;
        }
        let layer = layer.into_inner()?;
        // A plain tar, so the layer's own digest is what the root file system's list wants too.
        let digest = digest(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "User": self.user.to_string()},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;

        let mut archive = tar::Builder::new(fs::File::create(to).with_context(|| format!("making {}", to.display()))?);
        append(&mut archive, Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut archive, Path::new("index.json"), &index, 0o644)?;
        for blob in [&layer, &config, &manifest] {
            let name = Path::new("blobs/sha256").join(self::digest(blob).trim_start_matches("sha256:"));
            append(&mut archive, &name, blob, 0o644)?;
        }
        archive.finish()?;
        Ok(())
    }
}

/// What our images' names begin with; they are to be found nowhere.
const OURS: &str = "podshm.dev/test/";

/// Objects as a cluster that is not ours is given them: images by the names that they were pushed under, and to be pulled.
pub fn as_pulled(objects: &str) -> String {
    match Foreign::cluster() {
        None => objects.to_owned(),
        Some(Foreign { registry, .. }) => {
            let never = ["\"imagePullPolicy\":\"Never\"", "imagePullPolicy: Never"];
            let always = ["\"imagePullPolicy\":\"Always\"", "imagePullPolicy: Always"];
            let named = objects.replace(OURS, &format!("{registry}/podshm-test-"));
            never.iter().zip(always).fold(named, |text, (never, always)| text.replace(never, always))
        }
    }
}

/// Pushes an archive to the registry of a cluster that is not ours.
fn push(archive: &Path, image: &str) -> anyhow::Result<()> {
    let layout = archive.with_extension("layout");
    // Of an earlier run.
    let _ = fs::remove_dir_all(&layout);
    tar::Archive::new(fs::File::open(archive)?).unpack(&layout)?;
    let mut crane = Command::new(Programs::built(CRANE)?.path("crane")?);
    // With --insecure a registry without TLS will do; one that has it is spoken to by TLS all the same.
    let output =
        crane.arg("push").arg(&layout).args([&as_pulled(image), "--insecure"]).output().context("starting crane")?;
    fs::remove_dir_all(&layout)?;
    ensure!(output.status.success(), "pushing {image}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Makes an image and gives it to every node; to the registry, for a cluster that is not ours.
pub fn provide(place: &Place, programs: &Programs, image: &Image) -> anyhow::Result<()> {
    let file = image.name.replace(['/', ':'], "_");
    let archive = place.path("images").join(format!("{file}.tar"));
    fs::create_dir_all(place.path("images"))?;
    image.write(&archive)?;
    if Foreign::cluster().is_some() {
        return push(&archive, &image.name);
    }
    nodes().iter().try_for_each(|node| import(place, programs, node, &archive))
}

/// Imports an archive into a node's containerd, from outside, through the node's own /run.
pub fn import(place: &Place, programs: &Programs, node: &str, archive: &Path) -> anyhow::Result<()> {
    let pid = alive(place, node).with_context(|| format!("node {node} does not run"))?;
    let output = Command::new(programs.path("ctr")?)
        .args(["--address", &format!("/proc/{pid}/root/run/containerd/containerd.sock")])
        .args(["--namespace", "k8s.io", "images", "import", "--local"])
        .arg(archive)
        .output()?;
    ensure!(
        output.status.success(),
        "importing {} into node {node}: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Compiles a C program of `tests/cluster/c`, statically.
pub fn compile(place: &Place, name: &str) -> anyhow::Result<PathBuf> {
    let directory = place.path("programs");
    fs::create_dir_all(&directory)?;
    let program = directory.join(name);
    link("cc", name, &program, &["-static"]).context("Debian: build-essential")?;
    Ok(program)
}

/// Compiles a C program of `tests/cluster/c` as programs that nobody thought of are: dynamically.
pub fn compile_dynamic(name: &str, to: &Path) -> anyhow::Result<()> {
    link("cc", name, to, &[])
}

/// The same with another compiler, or other ways of linking.
pub fn link(compiler: &str, name: &str, to: &Path, more: &[&str]) -> anyhow::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(format!("{name}.c"));
    let mut command = Command::new(compiler);
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-Os", "-s", "-o"]).args([to, &source]).args(more);
    let output = command.output().with_context(|| format!("starting {compiler}"))?;
    ensure!(output.status.success(), "{compiler} {}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn append<W: std::io::Write>(to: &mut tar::Builder<W>, path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_entry_type(tar::EntryType::Regular);
    Ok(to.append_data(&mut header, path, bytes)?)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(media: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()})
}

/// What pods of tests run: an agent, a client that counts (`tests/cluster/pod`). With the probe.
pub const POD: &str = "podshm.dev/test/pod:1";
/// The node daemon.
pub const PODSHMD: &str = "podshm.dev/test/podshmd:1";
/// The node daemon in another image, for upgrades.
pub const PODSHMD_NEXT: &str = "podshm.dev/test/podshmd:2";
/// The controller.
pub const CONTROLLER: &str = "podshm.dev/test/podshm-controller:1";

/// The route agent.
pub const ROUTE_AGENT: &str = "podshm.dev/test/route-agent:1";

/// The guard agent.
pub const GUARD_AGENT: &str = "podshm.dev/test/guard-agent:1";

/// The command, for verification pods.
pub const PODSHM: &str = "podshm.dev/test/podshm:1";

/// A program of this workspace, as it goes into an image: static, and without what debuggers read.
pub fn built_statically(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|path| path.ends_with("debug")).and_then(Path::parent);
    let target = target.with_context(|| format!("{} is in no target directory", own.display()))?;
    let program = target.join("cluster-programs").join(name);
    ensure!(
        program.exists(),
        "{} is not there; scripts/cluster.sh has scripts/static-programs make it",
        program.display()
    );
    Ok(program)
}

/// The probe as a dynamic program of glibc's (/probe) and of musl's (/probe-musl), with their loaders; and /probe-static.
pub const DYNAMIC: &str = "podshm.dev/test/dynamic:1";

/// Makes that image and gives it to every node.
pub fn provide_dynamic(place: &Place, programs: &Programs) -> anyhow::Result<()> {
    let directory = place.path("programs").join("dynamic");
    fs::create_dir_all(&directory)?;
    let arch = std::env::consts::ARCH;
    let (glibc, musl) = match arch {
        "x86_64" => ("ld-linux-x86-64.so.2", "ld-musl-x86_64.so.1"),
        _ => ("ld-linux-aarch64.so.1", "ld-musl-aarch64.so.1"),
    };
    // An image has all its files at /.
    let loader = |name: &str| format!("-Wl,--dynamic-linker=/{name}");
    link("cc", "probe", &directory.join("probe"), &[&loader(glibc), "-Wl,-rpath,/"])?;
    link("musl-gcc", "probe", &directory.join("probe-musl"), &[&loader(musl)]).context("Debian: musl-tools")?;
    link("cc", "probe", &directory.join("probe-static"), &["-static"])?;
    let libraries = Path::new("/lib").join(format!("{arch}-linux-gnu"));
    for (from, name) in [
        (libraries.join(glibc), glibc),
        (libraries.join("libc.so.6"), "libc.so.6"),
        (Path::new("/lib").join(format!("{arch}-linux-musl/libc.so")), musl),
    ] {
        fs::copy(&from, directory.join(name)).with_context(|| format!("copying {}", from.display()))?;
    }
    let names = ["probe", "probe-musl", "probe-static", glibc, "libc.so.6", musl];
    let image = Image {
        name: DYNAMIC.into(),
        programs: names.iter().map(|name| directory.join(name)).collect(),
        entrypoint: vec!["/probe-static".into(), "hold".into()],
        user: 65532,
    };
    provide(place, programs, &image)
}

/// Makes the images of the node daemon, of the controller and of their tests' pods, and gives them to every node.
pub fn provide_podshm(place: &Place, programs: &Programs) -> anyhow::Result<()> {
    let (pod, daemon) = (built_statically("podshm-cluster-pod")?, built_statically("podshmd")?);
    let pod = Image {
        name: POD.into(),
        programs: vec![pod, compile(place, "probe")?],
        entrypoint: vec!["/podshm-cluster-pod".into()],
        user: 65532,
    };
    let daemon =
        Image { name: PODSHMD.into(), programs: vec![daemon], entrypoint: vec!["/podshmd".into()], user: 65532 };
    let controller = Image {
        name: CONTROLLER.into(),
        programs: vec![built_statically("podshm-controller")?],
        entrypoint: vec!["/podshm-controller".into()],
        user: 65532,
    };
    [pod, daemon, controller].iter().try_for_each(|image| provide(place, programs, image))
}

/// Makes the node daemon's other image, and gives it to every node: the same program beside another, so its digest is not the first's.
pub fn provide_next_podshmd(place: &Place, programs: &Programs) -> anyhow::Result<()> {
    let image = Image {
        name: PODSHMD_NEXT.into(),
        programs: vec![built_statically("podshmd")?, compile(place, "probe")?],
        entrypoint: vec!["/podshmd".into()],
        user: 65532,
    };
    provide(place, programs, &image)
}

/// Makes the image of one program, an agent's or the command's, and gives it to every node.
pub fn provide_agent(place: &Place, programs: &Programs, name: &str, program: &str) -> anyhow::Result<()> {
    let image = Image {
        name: name.into(),
        programs: vec![built_statically(program)?],
        entrypoint: vec![format!("/{program}")],
        user: 65532,
    };
    provide(place, programs, &image)
}
