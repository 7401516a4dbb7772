//! Where the agent before the one that takes over stood with a client.

use crate::clients::Client;
use crate::regions::{ConnId, Held, Owner};
use crate::state::State;
use podshm_layout::cursor::Cursors;
use podshm_layout::header::HEADER_BYTES;
use podshm_layout::mem::Load;
use podshm_layout::sync::Ordering;
use podshm_layout::{CACHE_LINE, Layout, Layouts, PAGE, RegionKind};
use podshm_proto::{Region, Services, Stood, Written};
use podshm_region::RegionError;

/// Where to look for it, the newest first.
#[derive(Debug)]
pub(super) struct Known {
    /// The A that the client was given last, and the one before that if its agent may not have begun.
    last: Option<u64>,
    before: Option<u64>,
    /// One of these two is gone with agent and broker.
    lost: bool,
    /// What the client came back with: the A of an agent, and where the last stood that had begun, if that one has not.
    linked: Option<u64>,
    began: Vec<Stood>,
    /// For how many services the last had rings.
    services: u32,
}

impl Known {
    /// All that there is; the next agent is given `answer`.
    pub(super) fn take(client: &mut Client, answer: u64) -> Known {
        Known {
            last: client.answer.replace(answer),
            before: client.before.take(),
            lost: std::mem::take(&mut client.lost),
            linked: client.linked.take(),
            began: std::mem::take(&mut client.began),
            services: client.handed,
        }
    }
}

impl State {
    /// The region with the cursors that count; and whether some later ones may be lost. An agent that died while it took over has begun
    /// on some clients and not on others, and a client that slept through one has never got its A.
    pub(super) fn last_that_began(&mut self, conn: ConnId, client: u64, known: Known) -> (Option<u64>, bool) {
        let here = |id: &u64| self.regions.at(*id).is_some_and(Held::is_here);
        let lost = known.lost || known.last.iter().chain(&known.before).any(|id| !here(id));
        let mut found: Vec<u64> = [known.last, known.before, known.linked].into_iter().flatten().filter(here).collect();
        found.dedup();
        let began = found.iter().copied().find(|id| self.has_begun(conn, *id, known.services));
        let stood = if began.is_none() { self.as_it_stood(conn, client, &known) } else { None };
        // None has begun: the client has sent nothing.
        let kept = began.or(stood).or(found.last().copied());
        let given = [known.last, known.before];
        for id in found.into_iter().map(Some).filter(|id| given.contains(id) && *id != kept).flatten() {
            self.regions.unwant(id);
        }
        kept.iter().for_each(|id| self.regions.want(*id));
        (kept, lost && kept != known.last)
    }

    /// What the client says of an agent whose A nobody has any more, as a region that a successor can read.
    fn as_it_stood(&mut self, conn: ConnId, client: u64, known: &Known) -> Option<u64> {
        if known.began.is_empty() {
            return None;
        }
        let to = self.next_layout(conn);
        let mut page = [0; PAGE];
        for (ring, stood) in known.began.iter().take(to.max_rings()).enumerate() {
            let Stood { acked, claim, closed } = *stood;
            for (index, word) in (Cursors { acked, claim, closed }).words().into_iter().enumerate() {
                page[to.cursor(ring) + 8 * index..][..8].copy_from_slice(&word.to_ne_bytes());
            }
        }
        let services = known.services;
        let region = Region { kind: RegionKind::Agent as u32, owner: client, services, ..Region::default() };
        let domain = self.home(conn)?;
        let member = domain.clients.get(&client).map(|c| &c.member);
        let owner = Owner::new(&domain.config.name, member);
        self.made_page(region, owner, to, &page)
            .inspect_err(
                |error| tracing::error!(client, %error, "where its last agent stood could not be written down"),
            )
            .ok()
    }

    fn made_page(&mut self, like: Region, owner: Owner, at: Layout, page: &[u8; PAGE]) -> Result<u64, RegionError> {
        let region = Region { bytes: PAGE as u64, layout: at.number(), ..like };
        let id = self.regions.make_with(region, owner, &page[HEADER_BYTES..])?;
        self.regions.seal(id).map(|()| id)
    }

    /// The region with the predecessor's cursors, or what they say at a layout that this agent reads.
    pub(super) fn readable_cursors(&mut self, conn: ConnId, old: u64) -> u64 {
        let Some((region, owner)) = self.regions.at(old).map(|held| (held.region, held.owner.clone())) else {
            return old;
        };
        let owner = Owner { writer: None, ..owner };
        let speaks = self.connections.get(&conn).map(|c| c.layouts);
        if speaks.is_none_or(|speaks| speaks.reads(region.layout)) {
            return old;
        }
        let (Ok(from), to) = (Layouts::ALL.parse(region.layout), self.next_layout(conn)) else { return old };
        let rings = from.max_rings().min(to.max_rings());
        let Some(read) = self.regions.at(old).map(Held::read) else { return old };
        let copy = read.and_then(|map| {
            let mut page = [0; PAGE];
            for ring in 0..rings {
                for word in (0..CACHE_LINE).step_by(8) {
                    let value = map.load(from.cursor(ring) + word, Ordering::Acquire);
                    let at = to.cursor(ring) + word;
                    page[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                }
            }
            self.made_page(region, owner, to, &page)
        });
        copy.unwrap_or_else(|error| {
            tracing::error!(%error, "a predecessor's cursors could not be written at another layout");
            old
        })
    }

    /// Whether an agent has begun on the client that it got this answer region for, with rings for so many services: it starts every
    /// ring before it looks into one.
    fn has_begun(&self, conn: ConnId, answer: u64, services: u32) -> bool {
        let Some(held) = self.regions.at(answer) else { return false };
        let (Ok(layout), Ok(map)) = (Layouts::ALL.parse(held.region.layout), Held::read(held)) else { return false };
        let offered = self.home(conn).and_then(|d| d.services.as_ref());
        let known = |s: &Services| s.first(services as usize).of(&held.region);
        offered
            .and_then(|s| known(s).channel(0, 0, Written::both(layout)).ok())
            .is_some_and(|g| g.to_agent.iter().all(|ring| ring.cursor_line().started(&map).is_some()))
    }
}
