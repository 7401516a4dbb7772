//! The broker of both domains, in a pod of its own; it writes its books to a file several times a second.

use crate::entry::now;
use crate::schedule::Domain;
use podshm_broker::{Broker, BrokerConfig, DomainConfig, DomainStats, Identity, Limits, Rights};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the books are written down.
const EVERY: Duration = Duration::from_millis(10);
/// The same where that takes long.
const AT_LEAST_EVERY: Duration = Duration::from_millis(100);

/// A domain's books, as the broker wrote them down last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// How many agents have served.
    pub epoch: u64,
    /// Whether one serves now.
    pub agent: u64,
    /// Clients, dead ones that are not drained included.
    pub clients: u64,
    /// Clients that keep too many old generations.
    pub stale: u64,
    /// Bytes reserved of the budget.
    pub reserved: u64,
    /// Bytes of regions, all domains.
    pub region_bytes: u64,
    /// Regions, all domains.
    pub regions: u64,
    /// Joins refused.
    pub refused: u64,
    /// Clients whose records were discarded.
    pub discarded: u64,
    /// What a successor waits for, from 1 on, in the order of [`podshm_broker::SuccessorWaits`].
    pub successor: u64,
}

impl Books {
    fn words(stats: &DomainStats) -> [u64; 10] {
        let stale = stats.clients.iter().filter(|c| c.stale).count() as u64;
        [
            stats.epoch,
            stats.agent.into(),
            stats.clients.len() as u64,
            stale,
            stats.reserved,
            stats.region_bytes,
            stats.regions as u64,
            stats.refused,
            stats.discarded,
            stats.successor.map_or(0, |waits| waits as u64 + 1),
        ]
    }

    fn of(words: [u64; 10]) -> Books {
        let [epoch, agent, clients, stale, reserved, region_bytes, regions, refused, discarded, successor] = words;
        Books { epoch, agent, clients, stale, reserved, region_bytes, regions, refused, discarded, successor }
    }
}

/// When the broker wrote down what it had, and that; `None` before it did.
pub fn read_books(file: &Path) -> Option<(u64, [Books; 2])> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    let at = lines.next()?.parse().ok()?;
    let mut all = lines.map(|line| {
        let words: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        Some(Books::of(words.try_into().ok()?))
    });
    Some((at, [all.next()??, all.next()??]))
}

/// Serves pods in directories below `root` until it is killed: `agent-DOMAIN/DOMAIN` for agents, `client-N/DOMAIN` for clients.
pub fn run(root: &Path, books: &Path, clients: u32, processes: u32) -> anyhow::Result<()> {
    // The next one goes on from here.
    let (state, rejoin_grace) = (Some(books.with_extension("state")), BrokerConfig::LEAST_GRACE);
    let broker = Broker::start_with(BrokerConfig { state, rejoin_grace })?;
    let limits = Limits {
        budget: 4 << 30,
        member_share: 2 << 30,
        // Dead ones count until they are drained, and a pod may die faster than its stopped agent drains.
        clients: clients * processes * 16,
        member_clients: processes.max(Limits::default().member_clients),
        ..Limits::default()
    };
    for domain in Domain::ALL {
        let config = DomainConfig {
            limits,
            close_grace: Duration::from_millis(400),
            map_deadline: Duration::from_secs(60),
            ..DomainConfig::new(domain.name())
        };
        broker.add_domain(config)?;
        add(&broker, root, domain, &format!("agent-{}", domain.name()), Rights { join: false, serve: true })?;
        for number in 0..clients {
            add(&broker, root, domain, &format!("client-{number}"), Rights { join: true, serve: false })?;
        }
    }
    println!("ready");
    let next = books.with_extension("next");
    loop {
        let began = Instant::now();
        let mut text = format!("{}\n", now());
        for domain in Domain::ALL {
            let words = Books::words(&broker.stats(domain.name())?).map(|word| word.to_string());
            text.push_str(&words.join(" "));
            text.push('\n');
        }
        fs::write(&next, text)?;
        fs::rename(&next, books)?;
        // What it takes grows with the clients; the broker has other things to do. It may have been stopped meanwhile.
        std::thread::sleep((20 * began.elapsed()).clamp(EVERY, AT_LEAST_EVERY));
    }
}

fn add(broker: &Broker, root: &Path, domain: Domain, pod: &str, rights: Rights) -> anyhow::Result<()> {
    let directory = root.join(pod).join(domain.name());
    if !directory.exists() {
        fs::create_dir_all(&directory)?;
    }
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    let who =
        Identity { namespace: "chaos".into(), pod: pod.into(), uid: pod.into(), service_account: "default".into() };
    broker.add_socket(domain.name(), &directory, who, rights)?;
    Ok(())
}
