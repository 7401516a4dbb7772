//! Doing one fault.

use super::{Run, Whom};
use crate::agents::Variant;
use crate::entry::now;
use crate::schedule::{Domain, Kind, Planned, Target};
use podshm::steps::Step;
use rustix::process::Signal;
use std::time::Duration;

impl Run<'_> {
    pub(super) fn inject(&mut self, planned: &Planned) -> anyhow::Result<()> {
        match planned.target {
            Target::Agent(domain) => self.inject_agent(planned, domain),
            Target::Client(number) => self.inject_client(planned, number),
            Target::Broker => self.inject_broker(planned),
        }
    }

    fn inject_client(&mut self, planned: &Planned, number: u32) -> anyhow::Result<()> {
        let client = number as usize;
        match planned.kind {
            Kind::ClientStop => {
                self.clients[client].signal(Signal::STOP);
                self.stop(planned, Whom::Client(number), planned.length);
            }
            Kind::ClientSqueeze => {
                // Written down when it is dead.
                self.clients[client].squeeze();
            }
            _ => {
                let at = now();
                self.clients[client].kill()?;
                self.clients[client].next(&self.place)?;
                self.note(planned.kind, planned.target, at);
            }
        }
        Ok(())
    }

    fn inject_agent(&mut self, planned: &Planned, domain: Domain) -> anyhow::Result<()> {
        let (at, usual) = (now(), Variant::default());
        let agents = &mut self.agents[domain as usize];
        match planned.kind {
            Kind::AgentStop => {
                agents.signal(Signal::STOP);
                let generation = agents.generation();
                self.stop(planned, Whom::Agent(domain, generation), planned.length);
                return Ok(());
            }
            Kind::StoppedUpgrade => {
                let generation = agents.generation();
                self.next_agent(domain, &usual)?;
                self.agents[domain as usize].signal_generation(generation, Signal::STOP);
                // It wakes up before its successor has given it up, or after.
                self.stop(planned, Whom::Agent(domain, generation), planned.length * (1 + (planned.dice % 6) as u32));
                return Ok(());
            }
            Kind::StepKill => {
                // Written down when it dies.
                return self.next_agent(domain, &Variant { step: Some(step(planned.dice)), ..usual });
            }
            Kind::SuccessorKill => {
                self.next_agent(domain, &usual)?;
                self.pass(Duration::from_micros(planned.dice % 60_000))?;
                let at = now();
                self.agents[domain as usize].kill()?;
                self.next_agent(domain, &usual)?;
                self.note(planned.kind, planned.target, at);
                return Ok(());
            }
            Kind::Surge => {
                self.hand_over_soon(domain)?;
                self.next_agent(domain, &usual)?;
            }
            Kind::RollBack => {
                self.hand_over_soon(domain)?;
                self.next_agent(domain, &Variant { is_old: true, ..usual })?;
            }
            Kind::Replace => {
                self.hand_over_soon(domain)?;
                // The next one is started when it has ended.
                self.agents[domain as usize].terminate();
            }
            Kind::AgentSqueeze => {
                // Written down when it is dead.
                agents.squeeze();
                return Ok(());
            }
            _ => {
                agents.kill()?;
                if planned.dice.is_multiple_of(3) {
                    self.pass(planned.length / 4)?;
                }
                self.next_agent(domain, &usual)?;
            }
        }
        self.note(planned.kind, planned.target, at);
        Ok(())
    }

    /// The agent of domain `work` keeps a call in its handler from now on, so that there is one when it is asked to close.
    fn hand_over_soon(&mut self, domain: Domain) -> anyhow::Result<()> {
        if domain == Domain::Work {
            let agents = &mut self.agents[domain as usize];
            agents.signal(Signal::USR2);
            agents.is_to_hand_over();
            self.pass(Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn inject_broker(&mut self, planned: &Planned) -> anyhow::Result<()> {
        match planned.kind {
            Kind::BrokerStop => {
                self.broker.signal(Signal::STOP)?;
                self.stop(planned, Whom::Broker, planned.length);
            }
            _ => {
                let at = now();
                self.broker.kill()?;
                if planned.kind == Kind::BrokerAbsent {
                    self.pass(planned.length * 4)?;
                }
                self.broker.run()?;
                self.note(planned.kind, planned.target, at);
            }
        }
        Ok(())
    }
}

/// One of the steps that agents pass, and at which passing it is the last.
fn step(dice: u64) -> String {
    let steps: Vec<&Step> = Step::ALL.iter().filter(|step| step.side().is_agents()).collect();
    let (step, nth) = (steps[dice as usize % steps.len()], 1 + (dice >> 32) % 40);
    format!("{}:{nth}:kill", step.name())
}
