//! The cluster's certificates, made anew for each cluster.

use crate::place::{self, API_SERVICE, BRIDGE, Place, nodes};
use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Somebody who speaks to the API server: file name, user, group.
type Client = (String, String, &'static str);

/// Makes all keys, certificates and kubeconfigs.
pub fn make(place: &Place) -> anyhow::Result<()> {
    fs::create_dir_all(place.path("pki"))?;
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "podshm-cluster");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    write(place, "ca.pem", &authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);

    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
    let control = place::control();
    let addresses = [API_SERVICE, BRIDGE, &control, "127.0.0.1"];
    let mut server =
        CertificateParams::new(names.iter().chain(&addresses).map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(place, "apiserver", &server, &issuer)?;

    let accounts = KeyPair::generate()?;
    write(place, "accounts.key", &accounts.serialize_pem())?;
    write(place, "accounts.pub", &accounts.public_key_pem())?;

    let mut clients: Vec<Client> = vec![
        ("admin".into(), "admin".into(), "system:masters"),
        ("kubelet-client".into(), "kube-apiserver".into(), "system:masters"),
        ("controller-manager".into(), "system:kube-controller-manager".into(), ""),
        ("scheduler".into(), "system:kube-scheduler".into(), ""),
    ];
    clients.extend(nodes().iter().map(|node| (format!("node-{node}"), format!("system:node:{node}"), "system:nodes")));
    for (file, user, group) in clients {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue(place, &file, &params, &issuer)?;
        let address = if file == "admin" { &place::control() } else { BRIDGE };
        kubeconfig(place, &file, address)?;
    }
    fs::copy(place.path("pki/admin.kubeconfig"), place.kubeconfig())?;
    Ok(())
}

fn issue(place: &Place, name: &str, params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    write(place, &format!("{name}.pem"), &params.signed_by(&key, issuer)?.pem())?;
    write(place, &format!("{name}.key"), &key.serialize_pem())
}

fn write(place: &Place, name: &str, text: &str) -> anyhow::Result<()> {
    let path = place.path("pki").join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?)
}

/// JSON, which is YAML.
fn kubeconfig(place: &Place, name: &str, address: &str) -> anyhow::Result<()> {
    let file = |file: &str| place.path("pki").join(file);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "podshm",
        "clusters": [{"name": "podshm", "cluster": {"server": format!("https://{address}:443"), "certificate-authority": file("ca.pem")}}],
        "users": [{"name": name, "user": {"client-certificate": file(&format!("{name}.pem")), "client-key": file(&format!("{name}.key"))}}],
        "contexts": [{"name": "podshm", "context": {"cluster": "podshm", "user": name}}],
    });
    write(place, &format!("{name}.kubeconfig"), &serde_json::to_string_pretty(&config)?)
}
