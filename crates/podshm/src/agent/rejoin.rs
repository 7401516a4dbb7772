//! An agent whose broker was started anew goes back to it with everything that it holds.

use super::{Agent, BROKER};
use crate::absence::Returning;
use crate::broker_socket::{BrokerSocket, Received};
use crate::error::Error;
use podshm_layout::step::{self, Step};
use podshm_proto::{Offer, RefusalKind, Rejoin, Rejoined, Use};
use podshm_region::Memory;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Agent {
    /// The broker has hung up, or has said no.
    pub(super) fn broker_is_away(&mut self, error: Error) -> Result<(), Error> {
        if let Some(broker) = self.broker.take() {
            let _ = epoll::delete(&self.poll, broker.as_fd());
        }
        match error {
            Error::Refused { kind, message } if !self.absence.is_asked => {
                return Err(Error::Refused { kind, message });
            }
            Error::Refused { kind: RefusalKind::Superseded, .. } => return Err(Error::Superseded),
            Error::Refused { kind: RefusalKind::OverLimit, message } => {
                tracing::warn!(message, "the broker has no room for this agent now");
                self.absence.begin();
            }
            Error::Refused { kind: RefusalKind::NotAllowed | RefusalKind::Version, message } => {
                tracing::error!(message, "the broker does not know this agent; it goes on with the clients it has");
                self.absence.give_up();
            }
            // Whoever is known and can't come back has no business with the clients any more: another agent gets them.
            Error::Refused { kind, message } => return Err(Error::Refused { kind, message }),
            error => {
                if self.absence.next().is_none() {
                    tracing::warn!(%error, "the broker is away; open channels go on");
                }
                self.absence.begin();
            }
        }
        Ok(())
    }

    /// Whether the broker is here and knows this agent.
    pub(super) fn has_broker(&self) -> bool {
        self.broker.is_some() && !self.absence.is_asked
    }

    /// Goes back to the broker where one listens again.
    pub(super) fn look_for_broker(&mut self) -> Result<(), Error> {
        let Some(broker) = self.absence.look() else { return Ok(()) };
        let offers = self.offers();
        let serves = self.state.is_some();
        let epoch = if serves { self.epoch } else { 0 };
        let rejoin = Rejoin { epoch, ready: self.said_ready, ..Rejoin::default() };
        let services = self.services.to_message();
        let who = Returning { is_agent: true, services, layouts: self.layouts, rejoin };
        let sent = broker.present(who, offers);
        step::at(Step::RejoinPresented);
        match sent.and_then(|()| self.listen_to(&broker)) {
            Ok(()) => self.broker = Some(broker),
            Err(error) => return self.broker_is_away(error),
        }
        Ok(())
    }

    fn listen_to(&self, broker: &BrokerSocket) -> Result<(), Error> {
        let events = if broker.is_clogged() { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        epoll::add(&self.poll, broker.as_fd(), EventData::new_u64(BROKER), events)
            .map_err(|e| Error::system("epoll_ctl")(e.into()))
    }

    /// Sends on what had no room.
    pub(super) fn flush_broker(&mut self) {
        let Some(broker) = self.broker.as_ref().filter(|broker| broker.is_clogged()) else { return };
        // A failure shows where it is read from.
        if let Ok(true) = broker.flush() {
            let _ = epoll::modify(&self.poll, broker.as_fd(), EventData::new_u64(BROKER), EventFlags::IN);
        }
    }

    /// Everything that is held here and sealed. What is not, a broker that was started anew knows nothing of.
    fn offers(&mut self) -> Vec<(Offer, Arc<Memory>)> {
        let held = std::mem::take(self.held.get_mut());
        let (held, unsealed): (std::collections::HashMap<_, _>, std::collections::HashMap<_, _>) =
            held.into_iter().partition(|(_, memory)| memory.check(memory.bytes()).is_ok());
        let unsealed: Vec<u64> = unsealed.into_keys().collect();
        *self.held.get_mut() = held;
        self.drop_unsealed(&unsealed);
        let mut offers = Vec::new();
        let held = self.held.borrow();
        let mut offer = |id: u64, used: Use, client: u64, hung_up: bool| {
            offers.extend(
                held.get(&id).map(|memory| (Offer { id, used: used.into(), client, hung_up }, Arc::clone(memory))),
            );
        };
        for client in self.clients.iter_mut() {
            let hung_up = client.doorbell().is_none();
            offer(client.c, Use::Own, client.id, hung_up);
            offer(client.answer.id, Use::Answer, client.id, hung_up);
            if let Some(next) = &client.next {
                offer(next.region.id, Use::Next, client.id, hung_up);
            }
        }
        for id in self.pool.keys() {
            offer(*id, Use::Pool, 0, false);
        }
        for slot in self.tables.values() {
            offer(slot.region(), Use::Table, 0, false);
            if let Some(next) = slot.next_region() {
                offer(next, Use::NextTable, 0, false);
            }
        }
        offers
    }

    fn drop_unsealed(&mut self, ids: &[u64]) {
        for id in ids {
            self.pool.remove(id);
            self.held.get_mut().remove(id);
        }
        for slot in self.tables.values_mut() {
            slot.drop_next(ids);
        }
        let mut moving = 0;
        for client in self.clients.iter_mut() {
            moving += usize::from(client.next.take_if(|next| ids.contains(&next.region.id)).is_some());
        }
        self.moving -= moving;
    }

    pub(super) fn rejoined(&mut self, rejoined: &Rejoined, received: &mut Received) -> Result<(), Error> {
        let notice = Memory::from_fd(received.fd("the notice page")?)?;
        self.notice.replace(&notice)?;
        step::at(Step::RejoinMapped);
        self.absence.end();
        self.returns += 1;
        self.drop_unsealed(&rejoined.dropped);
        tracing::info!(epoch = rejoined.epoch, "back at the broker");
        // What the broker has taken is sealed, whether or not that was heard.
        let ids: Vec<u64> = self.held.get_mut().keys().copied().collect();
        self.tables_sealed(&ids)
    }

    /// Waits for a broker that is away until `deadline`.
    pub(super) fn await_broker(&mut self, what: &'static str, deadline: Instant) -> Result<(), Error> {
        while !self.has_broker() {
            self.look_for_broker()?;
            self.flush_broker();
            let asked = if self.absence.is_asked { self.broker.as_mut() } else { None };
            let received = match asked {
                Some(broker) => broker.await_message(what, deadline.min(Instant::now() + Duration::from_millis(50))),
                None if self.absence.next().is_none() => return Err(Error::BrokerAway { what }),
                None => {
                    crate::stop::check()?;
                    std::thread::sleep(Duration::from_millis(5));
                    Err(Error::Deadline { what, waited: Duration::ZERO })
                }
            };
            match received {
                Ok(received) => self.follow(received)?,
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(Error::Deadline { .. }) if Instant::now() < deadline => {}
                Err(Error::Deadline { .. }) => return Err(Error::BrokerAway { what }),
                Err(error) => self.broker_is_away(error)?,
            }
        }
        Ok(())
    }
}
