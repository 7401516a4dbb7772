//! Interfaces and routes. Nothing has a default route: no packet of the cluster leaves the machine.

use crate::place::{self, API_SERVICE, BRIDGE, SERVICES, host, name, node_address, nodes, pod_network};
use anyhow::{Context, ensure};
use std::process::Command;

/// Runs ip in the network namespace of a process, or here.
fn ip(of: Option<u32>, arguments: &str) -> anyhow::Result<()> {
    let mut command = match of {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{pid}/ns/net")).arg("ip");
            command
        }
        None => Command::new("ip"),
    };
    let output = command.args(arguments.split(' ')).output().context("starting ip")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The control plane's: a link to the host, a bridge for nodes, the API server's service address.
pub fn control(pid: u32) -> anyhow::Result<()> {
    let name = name();
    ip(None, &format!("link add {name} type veth peer name host netns {pid}"))?;
    ip(None, &format!("addr add {}/30 dev {name}", host()))?;
    ip(None, &format!("link set {name} up"))?;
    let inside = |arguments: &str| ip(Some(pid), arguments);
    inside("link set lo up")?;
    inside(&format!("addr add {}/30 dev host", place::control()))?;
    inside("link set host up")?;
    inside("link add nodes type bridge")?;
    inside(&format!("addr add {BRIDGE}/24 dev nodes"))?;
    inside(&format!("addr add {API_SERVICE}/32 dev nodes"))?;
    inside("link set nodes up")?;
    (0..nodes().len())
        .try_for_each(|index| inside(&format!("route add {} via {}", pod_network(index).0, node_address(index))))
}

/// A node's: on the bridge, with a route to other nodes' pods and to the API server.
pub fn node(control: u32, index: usize, pid: u32) -> anyhow::Result<()> {
    let outside = format!("node-{}", nodes()[index]);
    ip(Some(control), &format!("link add {outside} type veth peer name eth0 netns {pid}"))?;
    ip(Some(control), &format!("link set {outside} master nodes up"))?;
    let inside = |arguments: &str| ip(Some(pid), arguments);
    inside("link set lo up")?;
    inside(&format!("addr add {}/24 dev eth0", node_address(index)))?;
    inside("link set eth0 up")?;
    inside(&format!("route add {SERVICES} via {BRIDGE}"))?;
    let others = (0..nodes().len()).filter(|other| *other != index);
    for other in others {
        inside(&format!("route add {} via {}", pod_network(other).0, node_address(other)))?;
    }
    Ok(())
}

/// Removes the host's end of a link that is left over. It goes by itself with the control plane's namespace, a moment later.
pub fn remove() {
    let _ = ip(None, &format!("link del {}", name()));
}

/// Whether the host has its end still.
pub fn is_there() -> bool {
    std::path::Path::new("/sys/class/net").join(name()).exists()
}
