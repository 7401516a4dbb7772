//! What one helper process is told to build: written by the library, read by `podshm-pod`.
//!
//! It travels as command line arguments, `--key value` pairs and then `-- program args…`, so that a pod can also be
//! started by hand while debugging.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// Changes whenever library and helper would misunderstand each other; a stale helper is refused with a clear message.
pub(crate) const SPEC_VERSION: &str = "podshm-pod/1";

/// How far a pod is walled off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces made by root; each pod has a UID of its own that the host sees too.
    Root,
    /// Namespaces inside a user namespace: the pod sees its UID, the host sees the harness's UID for every pod.
    User,
    /// Plain processes: no walls at all. Said loudly on stderr.
    None,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::User => "user",
            Self::None => "none",
        })
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "root" => Ok(Self::Root),
            "user" => Ok(Self::User),
            "none" => Ok(Self::None),
            other => Err(format!("isolation: expected root, user or none, found {other:?}")),
        }
    }
}

/// One bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub host: PathBuf,
    pub inside: PathBuf,
    pub read_only: bool,
}

/// Everything a helper needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub name: String,
    pub isolation: Isolation,
    pub uid: u32,
    pub gid: u32,
    pub binds: Vec<Bind>,
    pub hide: Vec<PathBuf>,
    pub expose: Vec<PathBuf>,
    pub memory_limit: Option<u64>,
    pub env: Vec<(OsString, OsString)>,
    pub shm_size: u64,
    /// `enter` and the payload stage: the pod's init, as the host counts.
    pub init: Option<u32>,
    /// `enter` and the payload stage: the pod's cgroup.
    pub cgroup: Option<PathBuf>,
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl Spec {
    /// Root *in the container*.
    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = vec![SPEC_VERSION.into()];
        let mut put = |key: &str, value: &OsStr| {
            out.push(key.into());
            out.push(value.to_owned());
        };
        put("--name", OsStr::new(&self.name));
        put("--isolation", OsStr::new(&self.isolation.to_string()));
        put("--uid", OsStr::new(&self.uid.to_string()));
        put("--gid", OsStr::new(&self.gid.to_string()));
        put("--shm-size", OsStr::new(&self.shm_size.to_string()));
        for bind in &self.binds {
            put(if bind.read_only { "--bind-ro" } else { "--bind-rw" }, bind.host.as_os_str());
            put("--at", bind.inside.as_os_str());
        }
        for path in &self.hide {
            put("--hide", path.as_os_str());
        }
        for path in &self.expose {
            put("--expose", path.as_os_str());
        }
        if let Some(limit) = self.memory_limit {
            put("--memory", OsStr::new(&limit.to_string()));
        }
        for (key, value) in &self.env {
            let mut pair = key.clone();
            pair.push("=");
            pair.push(value);
            put("--env", &pair);
        }
        if let Some(init) = self.init {
            put("--init", OsStr::new(&init.to_string()));
        }
        if let Some(cgroup) = &self.cgroup {
            put("--cgroup", cgroup.as_os_str());
        }
        put("--", self.program.as_os_str());
        out.extend(self.args.iter().cloned());
        out
    }

    pub(crate) fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter();
        let version = args.next().unwrap_or_default();
        if version != SPEC_VERSION {
            return Err(format!(
                "expected {SPEC_VERSION:?}, found {version:?}: helper and library were built apart, run \
                 `cargo build -p podshm-testkit --bins`"
            ));
        }
        let mut spec = Self {
            name: "pod".into(),
            isolation: Isolation::None,
            uid: 0,
            gid: 0,
            binds: Vec::new(),
            hide: Vec::new(),
            expose: Vec::new(),
            memory_limit: None,
            env: Vec::new(),
            shm_size: 64 << 20,
            init: None,
            cgroup: None,
            program: PathBuf::new(),
            args: Vec::new(),
        };
        loop {
            let key = args.next().ok_or("expected `-- program args…`, found the end")?;
            let key = key.to_string_lossy().into_owned();
            let value = args.next().ok_or_else(|| format!("{key}: expected a value, found the end"))?;
            match key.as_str() {
                "--name" => spec.name = value.to_string_lossy().into_owned(),
                "--isolation" => spec.isolation = value.to_string_lossy().parse()?,
                "--uid" => spec.uid = number(&key, &value)?,
                "--gid" => spec.gid = number(&key, &value)?,
                "--shm-size" => spec.shm_size = number(&key, &value)?,
                "--memory" => spec.memory_limit = Some(number(&key, &value)?),
                "--init" => spec.init = Some(number(&key, &value)?),
                "--cgroup" => spec.cgroup = Some(value.into()),
                "--hide" => spec.hide.push(value.into()),
                "--expose" => spec.expose.push(value.into()),
                "--bind-ro" | "--bind-rw" => {
                    spec.binds.push(Bind { host: value.into(), inside: PathBuf::new(), read_only: key == "--bind-ro" })
                }
                "--at" => match spec.binds.last_mut() {
                    Some(bind) => bind.inside = value.into(),
                    None => return Err("--at: expected after --bind-ro or --bind-rw".into()),
                },
                "--env" => {
                    let bytes = value.into_vec();
                    let at = bytes.iter().position(|byte| *byte == b'=').ok_or("--env: expected KEY=VALUE")?;
                    let (key, value) = (OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..]));
                    spec.env.push((key.to_owned(), value.to_owned()));
                }
                "--" => {
                    spec.program = value.into();
                    spec.args = args.collect();
                    return Ok(spec);
                }
                other => return Err(format!("{other}: unknown option")),
            }
        }
    }
}

fn number<N: FromStr>(key: &str, value: &OsStr) -> Result<N, String> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("{key}: expected a number, found {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_command_line() {
        let spec = Spec {
            name: "client-0".into(),
            isolation: Isolation::Root,
            uid: 20001,
            gid: 20002,
            binds: vec![
                Bind { host: "/a b".into(), inside: "/run/podshm".into(), read_only: false },
                Bind { host: "/etc".into(), inside: "/x".into(), read_only: true },
            ],
            hide: vec!["/run".into()],
            expose: vec!["/tmp/t".into()],
            memory_limit: Some(1 << 20),
            env: vec![("A".into(), "b=c".into()), ("EMPTY".into(), "".into())],
            shm_size: 1 << 16,
            init: Some(7),
            cgroup: Some("/sys/fs/cgroup/x".into()),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), "--uid".into()],
        };
        assert_eq!(Spec::from_args(spec.to_args()), Ok(spec));
    }

    #[test]
    fn a_stale_helper_is_named() {
        let error = Spec::from_args(["podshm-pod/0".into()]).expect_err("refused");
        assert!(error.contains("built apart"), "{error}");
        assert!(Spec::from_args([SPEC_VERSION.into(), "--uid".into(), "x".into()]).is_err());
        assert!(Spec::from_args([SPEC_VERSION.into()]).is_err());
    }
}
