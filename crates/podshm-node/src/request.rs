//! What a pod asks for, checked: nothing of what a pod can write into its manifest is taken for a path, or for who it is.

use crate::messages::{PublishRequest, UnpublishRequest};
use crate::mounts::PodVolume;
use podshm_domain::{Identity, Role};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// What the kubelet puts beside a pod's own attributes starts so; it overrides what the pod wrote there.
const KUBELET: &str = "csi.storage.k8s.io/";
/// Longest attribute that is looked at.
const LONGEST: usize = 253;

/// A volume's name, fit to be a directory's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeId(String);

/// Where the kubelet wants a volume: below the directory of the pod that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    path: PathBuf,
    at: PodVolume,
}

/// A volume that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub volume: VolumeId,
    /// Where.
    pub target: Target,
    /// By whom, as the kubelet says.
    pub who: Identity,
    /// Of which domain, as the pod says.
    pub domain: String,
    /// To be what, as the pod says.
    pub role: Role,
}

/// Why a request is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// A field that CSI requires.
    #[error("{field}: {found:?}; expected {expected}")]
    Field {
        /// Its name.
        field: &'static str,
        /// As it was.
        found: String,
        /// As it should be.
        expected: &'static str,
    },
    /// Not of an inline volume.
    #[error(
        "this is no inline ephemeral volume; write `csi: {{driver: podshm.dev, volumeAttributes: {{domain: NAME}}}}` into the pod's volumes; no storage class and no persistent volume"
    )]
    NotInline,
    /// The kubelet says nothing of the pod.
    #[error("the kubelet does not say {key}; the CSIDriver object needs podInfoOnMount: true")]
    NoPodInfo {
        /// What is missing.
        key: &'static str,
    },
    /// An attribute that we don't know.
    #[error(
        "volumeAttributes has {key:?}; expected `domain`, and `role` (member or agent) where the pod serves it; nothing else can be chosen by a pod"
    )]
    Attribute {
        /// Its name.
        key: String,
    },
    /// A value that can't be.
    #[error("volumeAttributes.{key}: {found:?}; expected {expected}")]
    Value {
        /// The attribute.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl BadRequest {
    /// Which rule, in a word: what refusals are counted by.
    pub fn rule(&self) -> &'static str {
        match self {
            BadRequest::Field { .. } => "field",
            BadRequest::NotInline => "not_inline",
            BadRequest::NoPodInfo { .. } => "no_pod_info",
            BadRequest::Attribute { .. } => "attribute",
            BadRequest::Value { .. } => "value",
        }
    }
}

impl VolumeId {
    /// Of a name that the kubelet has given.
    pub fn parse(found: &str) -> Result<Self, BadRequest> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if found.is_empty() || found.len() > 128 || found.starts_with('.') || !found.chars().all(fine) {
            let expected = "1 to 128 letters, digits, '-', '_' or '.', not starting with '.'";
            return Err(BadRequest::Field { field: "volume_id", found: clip(found), expected });
        }
        Ok(VolumeId(found.to_owned()))
    }

    /// As a directory's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Target {
    /// Of a path that the kubelet has given: `KUBELET_DIR/pods/UID/volumes/…/mount`. The pod's UID in it, too.
    pub fn parse(found: &str, kubelet_dir: &Path) -> Result<(Self, String), BadRequest> {
        let bad = || BadRequest::Field {
            field: "target_path",
            found: clip(found),
            expected: "KUBELET_DIR/pods/UID/volumes/kubernetes.io~csi/VOLUME/mount (is podshmd's --kubelet-dir the kubelet's --root-dir?)",
        };
        let path = Path::new(found);
        let rest = path.strip_prefix(kubelet_dir.join("pods")).map_err(|_| bad())?;
        let parts: Vec<&str> = rest
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str().ok_or_else(bad),
                _ => Err(bad()),
            })
            .collect::<Result<_, _>>()?;
        match parts[..] {
            [uid, "volumes", "kubernetes.io~csi", name, "mount"] => {
                let at = PodVolume { uid: uid.to_owned(), name: name.to_owned() };
                Ok((Target { path: path.to_owned(), at }, uid.to_owned()))
            }
            _ => Err(bad()),
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same by names.
    pub fn at(&self) -> &PodVolume {
        &self.at
    }
}

/// A request to publish, as it was meant.
pub fn wanted(request: &PublishRequest, kubelet_dir: &Path) -> Result<Wanted, BadRequest> {
    let volume = VolumeId::parse(&request.volume_id)?;
    let (target, uid) = Target::parse(&request.target_path, kubelet_dir)?;
    match &request.volume_capability {
        Some(capability) if capability.block.is_none() && capability.mount.is_some() => {}
        _ => {
            let (found, expected) = ("none, or block".to_owned(), "mount");
            return Err(BadRequest::Field { field: "volume_capability", found, expected });
        }
    }
    let context = &request.volume_context;
    if context.get("csi.storage.k8s.io/ephemeral").map(String::as_str) != Some("true") {
        return Err(BadRequest::NotInline);
    }
    let who = Identity {
        namespace: said(context, "csi.storage.k8s.io/pod.namespace")?,
        pod: said(context, "csi.storage.k8s.io/pod.name")?,
        uid: said(context, "csi.storage.k8s.io/pod.uid")?,
        service_account: said(context, "csi.storage.k8s.io/serviceAccount.name")?,
    };
    if who.uid != uid {
        // A kubelet that is told to pass on what pods write about themselves (podInfoOnMount: false) could be lied to.
        let expected = "a path of the pod that csi.storage.k8s.io/pod.uid names";
        return Err(BadRequest::Field { field: "target_path", found: clip(&request.target_path), expected });
    }
    if let Some(key) =
        context.keys().find(|key| !key.starts_with(KUBELET) && !["domain", "role"].contains(&key.as_str()))
    {
        return Err(BadRequest::Attribute { key: clip(key) });
    }
    let domain = context.get("domain").map_or("", String::as_str);
    if !is_label(domain) {
        let expected = "the name of a domain: 1 to 63 lower-case letters, digits or '-', as in `routing`";
        return Err(BadRequest::Value { key: "domain", found: clip(domain), expected });
    }
    let role = match context.get("role").map_or("member", String::as_str) {
        "member" => Role::Member,
        "agent" => Role::Agent,
        other => return Err(BadRequest::Value { key: "role", found: clip(other), expected: "`member` or `agent`" }),
    };
    Ok(Wanted { volume, target, who, domain: domain.to_owned(), role })
}

/// A request to unpublish, as it was meant.
pub fn unwanted(request: &UnpublishRequest, kubelet_dir: &Path) -> Result<(VolumeId, Target), BadRequest> {
    let volume = VolumeId::parse(&request.volume_id)?;
    Ok((volume, Target::parse(&request.target_path, kubelet_dir)?.0))
}

/// Whether it is a DNS label, as the names of our objects are.
pub fn is_label(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(fine) && !name.starts_with('-') && !name.ends_with('-')
}

fn said(context: &HashMap<String, String>, key: &'static str) -> Result<String, BadRequest> {
    match context.get(key) {
        Some(value) if !value.is_empty() && value.len() <= LONGEST => Ok(value.clone()),
        _ => Err(BadRequest::NoPodInfo { key }),
    }
}

/// What a pod wrote, short enough for an event.
fn clip(found: &str) -> String {
    found.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Nothing, VolumeCapability};

    fn request(attributes: &[(&str, &str)]) -> PublishRequest {
        let kubelet = [
            ("ephemeral", "true"),
            ("pod.namespace", "shop"),
            ("pod.name", "cart"),
            ("pod.uid", "u-1"),
            ("serviceAccount.name", "web"),
        ];
        let kubelet = kubelet.map(|(key, value)| (format!("{KUBELET}{key}"), value.to_owned()));
        PublishRequest {
            volume_id: "csi-0a1b".into(),
            target_path: "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/podshm/mount".into(),
            volume_capability: Some(VolumeCapability { block: None, mount: Some(Nothing {}) }),
            volume_context: attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).chain(kubelet).collect(),
        }
    }

    fn parse(request: &PublishRequest) -> Result<Wanted, BadRequest> {
        wanted(request, Path::new("/var/lib/kubelet"))
    }

    #[test]
    fn a_pod_names_a_domain_and_a_role() {
        let found = parse(&request(&[("domain", "routing")])).unwrap();
        assert_eq!(
            (found.domain.as_str(), found.role, found.who.name().as_str()),
            ("routing", Role::Member, "shop/cart")
        );
        assert_eq!(parse(&request(&[("domain", "routing"), ("role", "agent")])).unwrap().role, Role::Agent);
    }

    #[test]
    fn whatever_else_a_pod_writes_is_refused_by_name() {
        let huge = "a".repeat(1 << 20);
        for (attributes, says) in [
            (vec![], "domain"),
            (vec![("domain", "../../etc")], "domain"),
            (vec![("domain", "/etc")], "domain"),
            (vec![("domain", huge.as_str())], "domain"),
            (vec![("domain", "routing"), ("role", "root")], "role"),
            (vec![("domain", "routing"), ("budget", "1Ti")], "budget"),
            (vec![("domain", "routing"), ("path", "/")], "path"),
            (vec![("domain", "routing"), ("Domain", "other")], "Domain"),
        ] {
            let error = parse(&request(&attributes)).unwrap_err().to_string();
            assert!(error.contains(says) && error.len() < 400, "{says}: {error}");
        }
    }

    #[test]
    fn what_the_kubelet_would_not_send_is_refused() {
        let good = request(&[("domain", "routing")]);
        let with = |change: fn(&mut PublishRequest)| {
            let mut request = good.clone();
            change(&mut request);
            parse(&request).unwrap_err()
        };
        with(|r| r.volume_id = String::new());
        with(|r| r.volume_id = "../x".into());
        with(|r| r.target_path = String::new());
        with(|r| r.target_path = "/etc".into());
        with(|r| {
            r.target_path = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/../../../../../../etc/mount".into()
        });
        with(|r| r.target_path = "/var/lib/kubelet/pods/u-2/volumes/kubernetes.io~csi/podshm/mount".into());
        with(|r| r.volume_capability = None);
        with(|r| r.volume_capability = Some(VolumeCapability { block: Some(Nothing {}), mount: None }));
        assert_eq!(with(|r| drop(r.volume_context.remove("csi.storage.k8s.io/ephemeral"))), BadRequest::NotInline);
        let missing = with(|r| drop(r.volume_context.remove("csi.storage.k8s.io/serviceAccount.name")));
        assert_eq!(missing, BadRequest::NoPodInfo { key: "csi.storage.k8s.io/serviceAccount.name" });
    }
}
