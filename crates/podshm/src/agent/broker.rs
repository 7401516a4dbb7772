//! What an agent tells its broker, and what it hears: regions to write, clients to serve, that it takes over or is to close.

use super::client::AgentClient;
use super::{Agent, ROUNDS, moving};
use crate::broker_socket::Received;
use crate::error::Error;
use podshm_layout::step::{self, Step};
use podshm_proto::{ClientId, Down, RegionIds, Serve, Up};
use rustix::event::epoll;

impl Agent {
    /// Tells the broker, if it is there. If it is not, that is noticed where it is listened to; open channels go on.
    pub(super) fn tell(&self, message: Up) -> Result<(), Error> {
        self.check_fork()?;
        if let Up::Release(released) = &message {
            let mut held = self.held.borrow_mut();
            released.ids.iter().for_each(|id| drop(held.remove(id)));
        }
        match self.broker.as_ref().map(|broker| broker.send(message)) {
            Some(Err(error)) if error.is_hang_up() => Ok(()),
            other => other.unwrap_or(Ok(())),
        }
    }

    pub(super) fn read_broker(&mut self) -> Result<(), Error> {
        loop {
            let Some(broker) = &mut self.broker else { return Ok(()) };
            match broker.receive() {
                Ok(Some(received)) => self.follow(received)?,
                Ok(None) => return Ok(()),
                Err(error) => return self.broker_is_away(error),
            }
        }
    }

    pub(super) fn follow(&mut self, mut received: Received) -> Result<(), Error> {
        match received.message.clone() {
            Down::Write(regions) => self.map_for_writing(regions.regions, &mut received),
            Down::TakeOver(take) => {
                self.epoch = take.epoch;
                self.state = Some(take.state);
                // The next poll is to look at this before it serves.
                (self.state_is_new, self.rounds) = (true, ROUNDS);
                step::at(Step::HandoverTaken);
                Ok(())
            }
            Down::Serve(serve) => self.take_client(&serve, &mut received),
            Down::Left(left) => {
                if let Some(client) = self.clients.get_mut(left.client) {
                    client.gone = true;
                    if left.held_open {
                        client.name_held_open();
                        self.wakes.held_open += 1;
                    }
                    self.clients.heat_up(left.client);
                    return Ok(());
                }
                // One that was given up before: there is nothing to drain.
                self.tell(Up::Drained(ClientId { client: left.client }))
            }
            Down::Drop(unused) => {
                for id in &unused.ids {
                    self.pool.remove(id);
                }
                self.tell(Up::Release(unused))
            }
            Down::Close(_) => {
                self.close_asked = true;
                step::at(Step::HandoverAsked);
                Ok(())
            }
            Down::Sealed(sealed) => {
                step::at(Step::JoinSealed);
                self.tables_sealed(&sealed.ids)
            }
            Down::Next(next) => self.expect_move(&next, &mut received),
            Down::Rejoined(rejoined) => self.rejoined(&rejoined, &mut received),
            Down::Rewrite(table) => self.map_for_rewriting(table, &mut received),
            other => Err(Error::Protocol(format!("{other:?} is not for an agent"))),
        }
    }

    fn take_client(&mut self, serve: &Serve, received: &mut Received) -> Result<(), Error> {
        self.epoch = serve.epoch;
        let (answer, map) = self
            .pool
            .remove(&serve.answer)
            .ok_or_else(|| Error::Protocol(format!("answer region {} is not in the pool", serve.answer)))?;
        let next = serve.next.map(|next| next.id);
        let ids: Vec<u64> = serve.regions.iter().map(|r| r.id).chain([answer.id]).chain(next).collect();
        let reading = moving::Reading { services: &self.services, layouts: self.layouts, held: &self.held };
        // Where a broker that was started anew gives it once more: there the new one goes on.
        let before = self.clients.remove(serve.client);
        self.moving -= usize::from(before.is_some_and(|before| before.next.is_some()));
        let client = match AgentClient::new(serve, received, answer, map, reading) {
            Ok(client) => client,
            Err(error) => {
                // Its own fault or a broken predecessor's: nobody else must notice.
                tracing::error!(member = serve.member, client = serve.client, %error, "client is not served");
                self.tell(Up::Release(RegionIds { ids }))?;
                return if serve.gone { self.tell(Up::Drained(ClientId { client: serve.client })) } else { Ok(()) };
            }
        };
        self.scratch.resize(self.scratch.len().max(client.longest_record()), 0);
        if let Some(doorbell) = client.doorbell() {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            epoll::add(&self.poll, doorbell, epoll::EventData::new_u64(serve.client + 2), flags)
                .map_err(|e| Error::system("epoll_ctl")(e.into()))?;
        }
        if let Some(next) = next {
            self.moving += 1;
            step::at(Step::FollowMapped);
            self.tell(Up::Taken(RegionIds { ids: vec![next] }))?;
        }
        if let Some(id) = client.released_at_once() {
            self.tell(Up::Release(RegionIds { ids: vec![id] }))?;
        }
        self.clients.insert(client);
        step::at(Step::HandoverClient);
        Ok(())
    }
}
