//! What to do about what a domain's conditions say, by their reasons; what is so their messages say.

/// What to do.
pub fn of(reason: &str) -> &'static str {
    match reason {
        "OverLimit" => "raise podshmd.memory of the chart, or lower budgets (sysv.shmall and shmSize with mode sysv)",
        "NotServed" => "the log of podshmd on that node says it too; it is tried again with the next volume",
        "NotEnded" => {
            "the log of podshmd on that node; it is tried again by itself. `podshm rm --domain NAME` there, or the node's restart, ends it"
        }
        "NoAgent" => {
            "run its agent on that node: a DaemonSet that tolerates its taints and names the domain with role: agent"
        }
        "StaleClients" => "restart the pods that are named: their processes are stopped, or never call the library",
        "RecordsDiscarded" => {
            "see why its agent was away for so long (kubectl get events); podshmd's log names whose records they were"
        }
        "RegionsUnclaimed" => {
            "restart the pods that podshmd's log names; until then they hold memory that no budget counts"
        }
        "PrivateNamespace" => "restart the containers that are named: they have System V memory of their own",
        "NoRuntime" => {
            "podshmd.nri: true in the chart, and NRI on in the container runtime (plugins.'io.containerd.nri.v1.nri' disable = false); or \
             sysv.mechanism: preload"
        }
        "NodesSilent" => {
            "kubectl -n podshm-system get pods -l app=podshmd -o wide: those that are not Running, or whose port 9478 a network policy closes"
        }
        "NoReports" => {
            "see that podshmd runs, and that podshm-controller reaches port 9478 of its pods (network policies)"
        }
        "Outdated" => {
            "wait a minute; then the log of podshmd there: whether it may list ShmDomains and reaches the API server"
        }
        _ => "docs/kubernetes.md has conditions by name; the log of podshmd on that node",
    }
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn each_reason_has_its_own() {
        let known = [
            "OverLimit",
            "NotServed",
            "NotEnded",
            "NoAgent",
            "StaleClients",
            "RecordsDiscarded",
            "RegionsUnclaimed",
            "PrivateNamespace",
            "NoRuntime",
            "NodesSilent",
            "NoReports",
            "Outdated",
            "Another",
        ];
        let said: std::collections::BTreeSet<&str> = known.iter().map(|reason| of(reason)).collect();
        assert_eq!(said.len(), known.len(), "{said:?}");
    }
}
