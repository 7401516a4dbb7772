//! Domains that the cluster no longer describes, or describes otherwise.

use super::*;
use std::time::Instant;

/// Looks for domains that nobody has until one is as expected: who was there last may be seen to be gone a moment later.
fn let_go(volumes: &mut Volumes, is_done: impl Fn(&Volumes) -> bool) {
    let begin = Instant::now();
    loop {
        volumes.let_go();
        if is_done(volumes) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{:?}", volumes.view());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_domain_that_is_described_no_longer_ends_when_nobody_has_it_and_its_budget_is_the_others() {
    on_a_node("ended", |node| {
        let described = fs::read(node.path("domains/routing")).unwrap();
        fs::write(node.path("domains/audit"), &described).unwrap();
        // Two of 8 MiB, and room for one and a half.
        let memory = Memory { limit: Some(14 << 20), reserve: 2 << 20 };
        fs::rename(node.path("domains/audit"), node.path("later")).unwrap();
        let mut volumes = node.daemon_with(memory);
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        volumes.publish(&agent).unwrap();
        volumes.publish(&member).unwrap();
        let serving = serve(agent.target.path());
        let client = join(member.target.path()).unwrap();
        fs::write(agent.target.path().join("shm/routes"), "10.0.0.1").unwrap();
        fs::remove_file(node.path("domains/routing")).unwrap();
        fs::rename(node.path("later"), node.path("domains/audit")).unwrap();

        // Pods that have it keep it, also with the next daemon.
        volumes.let_go();
        drop(volumes);
        let mut volumes = node.daemon_with(memory);
        volumes.let_go();
        let mut value = [0; 8];
        assert_eq!(client.table("values").unwrap().get(b"key", &mut value).unwrap(), Some(5));
        let audit = Wanted { domain: "audit".into(), ..node.wanted("check", Role::Agent) };
        let refused = volumes.publish(&audit).unwrap_err();
        assert_eq!(refused.rule(), Some("over_limit"), "{refused}");
        assert!(node.path("run/domains/routing/shm/routes").exists());

        // Drained by its agent; one that is not would be waited for, for a minute.
        drop(client);
        let_go(&mut volumes, |volumes| volumes.view().domains["routing"].stats.as_ref().unwrap().clients.is_empty());
        drop(serving);
        volumes.unpublish(&member.volume, &member.target).unwrap();
        volumes.let_go();
        assert!(node.path("run/domains/routing/shm/routes").exists(), "its agent's pod has it");
        volumes.unpublish(&agent.volume, &agent.target).unwrap();
        let_go(&mut volumes, |volumes| !volumes.view().domains.contains_key("routing"));
        assert!(!node.path("run/domains/routing").exists());
        volumes.publish(&audit).unwrap();
        // Described again it is a new one.
        fs::remove_file(node.path("domains/audit")).unwrap();
        fs::write(node.path("domains/routing"), &described).unwrap();
        volumes.unpublish(&audit.volume, &audit.target).unwrap();
        let_go(&mut volumes, |volumes| !volumes.view().domains.contains_key("audit"));
        volumes.publish(&agent).unwrap();
        assert_eq!(volumes.view().domains["routing"].stats.as_ref().unwrap().epoch, 0);
        assert!(!node.path("run/domains/routing/shm/routes").exists());
    });
}

#[test]
fn what_daemons_before_have_left_of_a_domain_that_is_gone_ends_too() {
    on_a_node("left", |node| {
        let mut volumes = node.daemon();
        let agent = node.wanted("agent", Role::Agent);
        volumes.publish(&agent).unwrap();
        drop(serve(agent.target.path()));
        volumes.unpublish(&agent.volume, &agent.target).unwrap();
        assert!(volumes.view().domains["routing"].stats.as_ref().unwrap().domain_bytes > 0, "its table");
        drop(volumes);
        let described = fs::read(node.path("domains/routing")).unwrap();
        fs::remove_file(node.path("domains/routing")).unwrap();
        let memory = Memory { limit: Some(10 << 20), reserve: 2 << 20 };
        let mut volumes = node.daemon_with(memory);
        let_go(&mut volumes, |_| !node.path("run/domains/routing").exists());
        assert!(volumes.view().domains.is_empty());
        // All the room that there is.
        fs::write(node.path("domains/routing"), described).unwrap();
        volumes.publish(&agent).unwrap();
    });
}

#[test]
fn a_domain_is_served_as_it_is_described_now_once_nobody_has_it() {
    on_a_node("anew", |node| {
        let mut volumes = node.daemon();
        let budget = |volumes: &Volumes| volumes.view().domains["routing"].budget;
        let member = node.wanted("cart", Role::Member);
        volumes.publish(&member).unwrap();
        let before = budget(&volumes);
        let described = fs::read_to_string(node.path("domains/routing")).unwrap();
        fs::write(node.path("domains/routing"), described.replace("8Mi", "9Mi")).unwrap();
        volumes.let_go();
        assert_eq!(budget(&volumes), before, "a pod has it");
        volumes.unpublish(&member.volume, &member.target).unwrap();
        let_go(&mut volumes, |volumes| budget(volumes) == 9 << 20);
    });
}
