//! Domains that nobody has any more. One that the cluster no longer describes ends: its budget is the others' from here on, and what lies in
//! its /dev/shm goes. One that it describes otherwise begins anew with what it says now; its /dev/shm and System V memory stay as they are.

use super::{VolumeError, Volumes};
use crate::domains::{DomainError, DomainSpec, Mode};
use crate::mounts::Ask;
use crate::report::condition;
use podshm_broker::{BrokerError, DomainConfig};
use podshm_unmodified::Place;
use std::collections::BTreeSet;

impl Volumes {
    /// Looks for them; what is still in the way is tried again with the next look.
    pub fn let_go(&mut self) {
        // A volume that is not served may be of any domain, and a broker that has given way knows nothing any more.
        if !self.unserved.is_empty() || self.has_given_way() {
            return;
        }
        let places = Place::all(&self.root).into_iter().map(|place| place.name());
        let served = self.channels.keys().chain(self.sysv.keys()).chain(self.unmodified.keys()).cloned();
        let mut names: BTreeSet<String> = served.chain(places).collect();
        names.extend(self.broker.unserved().unwrap_or_default());
        for record in self.records.values() {
            names.remove(&record.domain);
        }
        for name in names {
            let done = match self.domains.find(&name) {
                Ok(spec) => self.begin_anew(&name, &spec),
                Err(DomainError::Absent { .. }) => self.end(&name),
                // Nobody has said yet what it is.
                Err(_) => Ok(()),
            };
            match done {
                Ok(()) => {}
                // Those who left it are looked after first.
                Err(VolumeError::Broker(error @ BrokerError::InUse { .. })) => {
                    tracing::debug!(%error, "a domain stays")
                }
                Err(error) => {
                    let found = condition("NotEnded", error.to_string());
                    if self.failed.get(&name) != Some(&found) {
                        tracing::error!(domain = name, %error, "a domain that nobody has can't be ended; trying on");
                        self.failed.insert(name, found);
                    }
                }
            }
        }
    }

    fn end(&mut self, name: &str) -> Result<(), VolumeError> {
        if !self.channels.contains_key(name) && self.broker.unserved()?.iter().any(|left| left == name) {
            // What daemons before this one have left of it goes in order, as if it were served.
            self.add_channel(DomainConfig::new(name), 0)?;
        }
        self.end_channel(name)?;
        self.sysv.remove(name);
        let place = Place::of(&self.root, name)?;
        if self.unmodified.remove(name).is_some() || place.path("domain.json").exists() {
            self.mounter.ask(&Ask::EndDomain { domain: name.to_owned() })?;
            place.tear_down()?;
        }
        self.failed.remove(name);
        tracing::info!(domain = name, "there is no such domain any more, and nobody has it: it has ended");
        Ok(())
    }

    fn begin_anew(&mut self, name: &str, spec: &DomainSpec) -> Result<(), VolumeError> {
        let Some(served) = self.channels.get(name) else { return Ok(()) };
        let is_as_said = served.asked == spec.limits() && spec.modes.contains(&Mode::Channel);
        if is_as_said && !self.clamped.contains_key(name) {
            return Ok(());
        }
        self.end_channel(name)?;
        tracing::info!(domain = name, "nobody has it: it is served as it is described now");
        self.serve(name, spec, false)
    }

    fn end_channel(&mut self, name: &str) -> Result<(), VolumeError> {
        if self.channels.contains_key(name) {
            self.broker.remove_domain(name)?;
            self.channels.remove(name);
            self.clamped.remove(name);
        }
        Ok(())
    }
}
