//! Who may serve a domain and who may join it.

use crate::{Identity, Rights};

/// Some pods: of a namespace, of some service accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The namespace; `*` is any.
    pub namespace: String,
    /// Service accounts of it; none is any.
    pub service_accounts: Vec<String>,
}

impl Party {
    /// Whether a pod belongs to it.
    pub fn has(&self, who: &Identity) -> bool {
        (self.namespace == "*" || self.namespace == who.namespace)
            && (self.service_accounts.is_empty() || self.service_accounts.contains(&who.service_account))
    }
}

/// What a pod wants to be in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A client.
    Member,
    /// The agent.
    Agent,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Member => "member",
            Role::Agent => "agent",
        })
    }
}

/// Who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who may serve.
    pub serve: Vec<Party>,
    /// Who may join.
    pub join: Vec<Party>,
}

/// A pod may not be what it wants to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod {pod} (service account {service_account}) may not be {role} of this domain: no entry of its `{list}` has namespace {namespace} with that service account; add one, or give the pod a service account that is there"
)]
pub struct NotAllowed {
    /// namespace/pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// What it wanted to be.
    pub role: Role,
    /// The list that it is not on.
    pub list: &'static str,
}

impl Policy {
    /// What a pod may do in a role; nothing beyond it.
    pub fn rights(&self, who: &Identity, role: Role) -> Result<Rights, NotAllowed> {
        let (parties, list) = match role {
            Role::Member => (&self.join, "join"),
            Role::Agent => (&self.serve, "serve"),
        };
        if !parties.iter().any(|party| party.has(who)) {
            return Err(NotAllowed {
                pod: who.name(),
                namespace: who.namespace.clone(),
                service_account: who.service_account.clone(),
                role,
                list,
            });
        }
        Ok(Rights { join: role == Role::Member, serve: role == Role::Agent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, service_account: &str) -> Identity {
        Identity {
            namespace: namespace.into(),
            pod: "p".into(),
            uid: "u".into(),
            service_account: service_account.into(),
        }
    }

    fn party(namespace: &str, accounts: &[&str]) -> Party {
        Party { namespace: namespace.into(), service_accounts: accounts.iter().map(|a| (*a).into()).collect() }
    }

    #[test]
    fn nobody_is_anything_unless_a_list_names_them() {
        let policy =
            Policy { serve: vec![party("infra", &["agent"])], join: vec![party("shop", &[]), party("*", &["web"])] };
        assert_eq!(policy.rights(&pod("shop", "x"), Role::Member), Ok(Rights { join: true, serve: false }));
        assert_eq!(policy.rights(&pod("bank", "web"), Role::Member), Ok(Rights { join: true, serve: false }));
        assert_eq!(policy.rights(&pod("infra", "agent"), Role::Agent), Ok(Rights { join: false, serve: true }));
        for (who, role) in [
            (pod("bank", "x"), Role::Member),
            (pod("infra", "agent"), Role::Member),
            (pod("infra", "default"), Role::Agent),
            (pod("shop", "agent"), Role::Agent),
            (pod("*", "x"), Role::Member),
        ] {
            let refusal = policy.rights(&who, role).unwrap_err();
            assert!(refusal.to_string().contains(&who.namespace), "{refusal}");
        }
        let refusal = Policy::default().rights(&pod("shop", "x"), Role::Member).unwrap_err().to_string();
        assert!(refusal.contains("may not be member") && refusal.contains("`join`"), "{refusal}");
    }
}
