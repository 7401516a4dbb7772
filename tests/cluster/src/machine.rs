//! What the machine must have.

use anyhow::ensure;
use std::path::Path;

/// Fails with everything that is missing, each with what to do.
pub fn check() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root: run it with sudo -E env PATH=\"$PATH\"".to_owned());
    }
    for (program, package) in
        [("runc", "runc"), ("ip", "iproute2"), ("nsenter", "util-linux"), ("cc", "build-essential")]
    {
        let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        if !directories.iter().any(|directory| Path::new(directory).join(program).exists()) {
            missing.push(format!("{program}: apt-get install {package}"));
        }
    }
    if !Path::new(crate::node::CNI).join("bridge").exists() {
        missing.push(format!("{}/bridge: apt-get install containernetworking-plugins", crate::node::CNI));
    }
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !kinds.contains("\toverlay\n") {
        missing.push("overlayfs: modprobe overlay".to_owned());
    }
    ensure!(missing.is_empty(), "a cluster can't run here; missing:\n  {}", missing.join("\n  "));
    Ok(())
}
