//! The Go programs: built once from the small modules in `programs/`, and kept outside the checkout.
//!
//! ```text
//!  ~/.cache/podshm/cluster/kubernetes-1a2b…/{kube-apiserver,kubelet,…}     keyed by go.mod, go.sum and how it is built
//! ```

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often somebody who waits is told that it goes on.
const PROGRESS: Duration = Duration::from_secs(20);

/// One of our modules, the programs that it names as tools, and about how long it takes on two idle cores.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    name: &'static str,
    programs: &'static [&'static str],
    minutes: u64,
    /// A program that go would name after its package, and what it is called.
    renamed: Option<(&'static str, &'static str)>,
    /// Where its version comes from: a module, and the variables that are set to it.
    stamped: Option<(&'static str, &'static [&'static str])>,
}

/// What a cluster runs.
pub const CLUSTER: &[Module] = &[
    Module {
        name: "kubernetes",
        programs: &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"],
        minutes: 9,
        renamed: None,
        stamped: Some((
            "k8s.io/kubernetes",
            // Without it clients see v0.0.0.
            &["k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"],
        )),
    },
    Module { name: "etcd", programs: &["etcd"], minutes: 1, renamed: Some(("server", "etcd")), stamped: None },
    Module {
        name: "containerd",
        programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
        minutes: 2,
        renamed: None,
        stamped: Some((
            "github.com/containerd/containerd/v2",
            &["github.com/containerd/containerd/v2/version.Version"],
        )),
    },
];
/// What tests run beside it.
pub const TESTS: &[Module] =
    &[Module { name: "csi-test", programs: &["csi-sanity"], minutes: 1, renamed: None, stamped: None }];
/// What the chart is rendered and installed with.
pub const HELM: &[Module] = &[Module {
    name: "helm",
    programs: &["helm"],
    minutes: 2,
    renamed: None,
    stamped: Some(("helm.sh/helm/v4", &["helm.sh/helm/v4/internal/version.version"])),
}];

/// What pushes images where a cluster that is not ours pulls them from.
pub const CRANE: &[Module] =
    &[Module { name: "crane", programs: &["crane"], minutes: 1, renamed: None, stamped: None }];

/// Directories with the programs of some modules, in the order of PATH.
#[derive(Clone, Debug)]
pub struct Programs(Vec<PathBuf>);

impl Programs {
    /// Builds what is not there yet.
    pub fn build(modules: &[Module]) -> anyhow::Result<Self> {
        modules.iter().map(Module::build).collect::<anyhow::Result<_>>().map(Programs)
    }

    /// Those that were built; an error where one was not.
    pub fn built(modules: &[Module]) -> anyhow::Result<Self> {
        let find = |module: &Module| {
            let cache = module.cache()?;
            ensure!(module.is_built(&cache), "{} is not built; run `podshm-cluster build`", module.name);
            Ok(cache)
        };
        modules.iter().map(find).collect::<anyhow::Result<_>>().map(Programs)
    }

    /// A program's path.
    pub fn path(&self, program: &str) -> anyhow::Result<PathBuf> {
        let paths = self.0.iter().map(|directory| directory.join(program));
        paths.into_iter().find(|path| path.exists()).with_context(|| format!("no program {program} in {:?}", self.0))
    }

    /// PATH with these in front: containerd looks for its shim and for runc there.
    pub fn search_path(&self) -> String {
        let mut all: Vec<String> = self.0.iter().map(|directory| directory.display().to_string()).collect();
        all.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        all.join(":")
    }
}

impl Module {
    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(self.name)
    }

    fn cache(&self) -> anyhow::Result<PathBuf> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep the Go programs")?;
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            let path = self.source().join(file);
            hash.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
        hash.update(format!("{self:?} {}", std::env::consts::ARCH));
        let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(base.join("podshm/cluster").join(format!("{}-{key}", self.name)))
    }

    fn is_built(&self, cache: &Path) -> bool {
        self.programs.iter().all(|program| cache.join(program).exists())
    }

    fn build(&self) -> anyhow::Result<PathBuf> {
        let cache = self.cache()?;
        if self.is_built(&cache) {
            println!("{}: built before, in {}", self.name, cache.display());
            return Ok(cache);
        }
        let partial = cache.with_extension(format!("partial-{}", std::process::id()));
        fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
        println!(
            "{}: building {} once into {}; about {} min on two idle cores",
            self.name,
            self.programs.join(", "),
            cache.display(),
            self.minutes
        );
        let built = self.go_build(&partial).and_then(|()| {
            if let Some((found, name)) = self.renamed {
                fs::rename(partial.join(found), partial.join(name)).with_context(|| format!("no program {found}"))?;
            }
            ensure!(self.is_built(&partial), "go build made other programs than {:?}", self.programs);
            match fs::rename(&partial, &cache) {
                // Somebody else was faster.
                Err(_) if self.is_built(&cache) => Ok(()),
                other => other.with_context(|| format!("moving the programs to {}", cache.display())),
            }
        });
        let _ = fs::remove_dir_all(&partial);
        built.map(|()| cache)
    }

    fn go_build(&self, to: &Path) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut child = Command::new("go")
            .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &self.ldflags()?, "-o"])
            // `tool` is every program that the module's go.mod names as one.
            .arg(format!("{}/", to.display()))
            .arg("tool")
            .current_dir(self.source())
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS")
            .stdin(Stdio::null())
            .spawn()
            .context("starting go: install Go 1.26 or newer (Debian's golang-go is older; see https://go.dev/dl)")?;
        let mut told = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(200));
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                println!("{}: still building, {} s", self.name, begin.elapsed().as_secs());
            }
        };
        ensure!(status.success(), "{}: go build ends with {status}", self.name);
        println!("{}: built in {} s", self.name, begin.elapsed().as_secs());
        Ok(())
    }

    fn ldflags(&self) -> anyhow::Result<String> {
        let Some((module, variables)) = self.stamped else { return Ok("-s -w".into()) };
        let text = fs::read_to_string(self.source().join("go.mod"))?;
        let version = text.lines().find_map(|line| {
            let mut words = line.trim().trim_start_matches("require ").split_whitespace();
            (words.next() == Some(module)).then(|| words.next().unwrap_or_default().to_owned())
        });
        let Some(version) = version.filter(|version| version.starts_with('v')) else {
            bail!("{}/go.mod requires no {module}", self.name);
        };
        Ok(variables.iter().fold("-s -w".into(), |flags, variable| format!("{flags} -X {variable}={version}")))
    }
}
