//! Joining.

use crate::border::{Out, Own, Ref, Text};
use crate::last::entry;
use crate::result::podshm_result;
use podshm::Client;
use std::ffi::{CString, c_char};
use std::time::Duration;

/// A joined client. For any number of threads. What is made of it lives on when it is freed; the process leaves the domain with
/// the last of them.
pub struct podshm_client {
    pub(crate) client: Client,
    domain: CString,
    member: CString,
}

/// Joins the domain whose socket is in `directory` (in a pod: where the podshm volume is mounted). Waits until `timeout_ns` for a
/// broker and an agent to be there. Returns when records are accepted. On failure `*client` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_new(
    directory: Text,
    timeout_ns: u64,
    client: Out<*mut podshm_client>,
) -> podshm_result {
    entry(|| {
        client.give(|| {
            let client = Client::join(directory.path()?, Duration::from_nanos(timeout_ns))?;
            let text = |text: &str| CString::new(text).unwrap_or_default();
            Ok(podshm_client { domain: text(client.domain()), member: text(client.member()), client })
        })
    })
}

/// Frees it. Null is nothing to do. What was made of it lives on.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_free(client: Own<podshm_client>) -> podshm_result {
    entry(|| client.free())
}

/// This client's number in the domain, as the agent sees it.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_id(client: Ref<podshm_client>, id: Out<u64>) -> podshm_result {
    entry(|| id.set(client.here()?.client.id()))
}

/// The domain's name. It lives as long as the client's handle.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_domain(client: Ref<podshm_client>, domain: Out<*const c_char>) -> podshm_result {
    entry(|| domain.set(client.here()?.domain.as_ptr()))
}

/// Who this pod is, as the broker knows it: "namespace/pod". It lives as long as the client's handle.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_member(client: Ref<podshm_client>, member: Out<*const c_char>) -> podshm_result {
    entry(|| member.set(client.here()?.member.as_ptr()))
}

/// How many agents have served this domain so far, by the broker's notice page.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_agent_epoch(client: Ref<podshm_client>, epoch: Out<u64>) -> podshm_result {
    entry(|| epoch.set(client.here()?.client.agent_epoch()?))
}

/// Whether the agent that this client is linked to has not hung up. Never so in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_client_agent_present(client: Ref<podshm_client>, present: Out<bool>) -> podshm_result {
    entry(|| present.set(client.get()?.client.agent_present()))
}
