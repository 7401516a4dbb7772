//! Everything that is measured, one file a row.

mod cache_line;
mod hashbrown_map;
#[cfg(feature = "iceoryx2")]
mod iceoryx2_join;
#[cfg(feature = "iceoryx2")]
mod iceoryx2_pubsub;
#[cfg(feature = "iceoryx2")]
mod iceoryx2_reqres;
mod memcpy;
mod paced;
mod podshm;
mod ring;
mod route;
mod seqlock;
mod unix_seqpacket;
mod unix_stream;

use crate::row::Row;
use crate::transport::TransportRow;

/// All rows, in the order of the report and of the rounds.
pub fn all() -> Vec<Box<dyn Row>> {
    let mut all: Vec<Box<dyn Row>> = vec![
        Box::new(cache_line::CacheLine),
        Box::new(TransportRow(ring::RingTransport::RAW)),
        Box::new(TransportRow(ring::RingTransport::RAW_FRAGMENTED)),
        Box::new(TransportRow(ring::RingTransport::RAW_ALIGNED)),
        Box::new(TransportRow(ring::RingTransport::HARDENED)),
        Box::new(TransportRow(podshm::PodshmTransport::DEFAULT)),
        Box::new(TransportRow(podshm::PodshmTransport::LARGE)),
        Box::new(TransportRow(podshm::CTransport)),
        Box::new(TransportRow(podshm::Calls)),
        Box::new(TransportRow(podshm::CCalls)),
        Box::new(podshm::Threads),
        #[cfg(feature = "iceoryx2")]
        Box::new(TransportRow(iceoryx2_pubsub::PubSub)),
        #[cfg(feature = "iceoryx2")]
        Box::new(TransportRow(iceoryx2_reqres::RequestResponse)),
        Box::new(TransportRow(unix_stream::UnixStreamPair)),
        Box::new(TransportRow(unix_seqpacket::UnixSeqpacket)),
        Box::new(seqlock::Seqlock),
        Box::new(podshm::PodshmHandle),
        Box::new(podshm::CHandle),
        Box::new(podshm::Get),
        Box::new(podshm::CGet),
        Box::new(hashbrown_map::BOXED),
        Box::new(hashbrown_map::INLINE),
        Box::new(podshm::PodshmTable),
        Box::new(paced::PacedUnix),
        Box::new(podshm::Paced::DEFAULT),
        Box::new(podshm::Paced::SLEEPS),
        Box::new(podshm::Join),
        #[cfg(feature = "iceoryx2")]
        Box::new(iceoryx2_join::Join),
        Box::new(podshm::ClientCost),
        Box::new(podshm::Crowd),
        Box::new(route::RouteCost),
        Box::new(memcpy::Memcpy),
    ];
    for ring in podshm::PodshmTransport::RINGS {
        all.push(Box::new(TransportRow(ring)));
    }
    all
}
