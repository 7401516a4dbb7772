//! A broker that is away: looked for again and again until it is back, or says that it knows nothing of this participant.

use crate::broker_socket::BrokerSocket;
use crate::error::Error;
use podshm_layout::Layouts;
use podshm_proto::{Hello, Offer, PROTOCOL, PROTOCOL_REJOINS, Present, Rejoin, Service, Up};
use podshm_region::Memory;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks: what a restart of the broker costs at most on top of itself.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(250);
/// Regions in one message: as many descriptors as the kernel passes at once, and some to spare.
const AT_ONCE: usize = 128;

/// Where the broker is, and when to look for it next.
#[derive(Debug)]
pub(crate) struct Absence {
    directory: PathBuf,
    next: Option<Instant>,
    pause: Duration,
    /// It was found and has not answered yet.
    pub(crate) is_asked: bool,
    is_given_up: bool,
    /// Nobody listened there when it was looked for last.
    nobody: bool,
}

impl Absence {
    pub(crate) fn new(directory: &Path) -> Self {
        Absence {
            directory: directory.to_owned(),
            next: None,
            pause: SHORTEST,
            is_asked: false,
            is_given_up: false,
            nobody: false,
        }
    }

    /// The broker has hung up, or has no room now.
    pub(crate) fn begin(&mut self) {
        self.is_asked = false;
        self.next = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST);
    }

    /// It is back.
    pub(crate) fn end(&mut self) {
        (self.next, self.pause, self.is_asked) = (None, SHORTEST, false);
    }

    /// It is there, and will never know this participant.
    pub(crate) fn give_up(&mut self) {
        (self.next, self.is_asked, self.is_given_up) = (None, false, true);
    }

    /// Whether no broker can have let anybody else serve in the place of this participant since the last look: none was there, or
    /// none that knows it. Asked once for each look.
    pub(crate) fn is_alone(&mut self) -> bool {
        std::mem::take(&mut self.nobody) || self.is_given_up
    }

    /// When to look for it next; `None` where it is here or given up.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Connects where it is time to, and somebody listens.
    pub(crate) fn look(&mut self) -> Option<BrokerSocket> {
        if self.next.is_none_or(|next| next > Instant::now()) {
            return None;
        }
        match BrokerSocket::connect_now(&self.directory) {
            Ok(socket) => {
                (self.next, self.is_asked) = (None, true);
                Some(socket)
            }
            Err(error) => {
                use std::io::ErrorKind::{ConnectionRefused, NotFound};
                self.nobody = matches!(error.kind(), ConnectionRefused | NotFound);
                self.begin();
                None
            }
        }
    }
}

/// Who comes back.
pub(crate) struct Returning {
    pub(crate) is_agent: bool,
    pub(crate) services: Vec<Service>,
    pub(crate) layouts: Layouts,
    pub(crate) rejoin: Rejoin,
}

impl BrokerSocket {
    /// Says who comes back, with what. Sent as far as there is room; the rest with [`BrokerSocket::flush`].
    pub(crate) fn present(&self, who: Returning, held: Vec<(Offer, Arc<Memory>)>) -> Result<(), Error> {
        let hello = Hello {
            // An older broker would take it for a newcomer.
            protocol_oldest: PROTOCOL_REJOINS,
            protocol_newest: PROTOCOL,
            layout_oldest: who.layouts.oldest().number(),
            layout_newest: who.layouts.newest().number(),
            agent: who.is_agent,
            software: concat!("podshm ", env!("CARGO_PKG_VERSION")).to_owned(),
            services: who.services,
            rejoin: Some(who.rejoin),
        };
        self.queue(Up::Hello(hello), Vec::new());
        for some in held.chunks(AT_ONCE) {
            let (offers, memories) = some.iter().cloned().unzip();
            self.queue(Up::Present(Present { offers }), memories);
        }
        self.queue(Up::Presented(podshm_proto::Nothing {}), Vec::new());
        self.flush().map(drop)
    }
}
