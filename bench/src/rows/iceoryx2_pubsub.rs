//! iceoryx2's publish-subscribe, polled without a pause: a service each way for every size.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use crate::control::Control;
use crate::payload;
use crate::transport::{
    Latencies, Order, Session, Transport, answer_seed, check_answer, check_drained, timed_oneway, timed_rtt,
};

pub struct PubSub;

impl Transport for PubSub {
    fn name(&self) -> &'static str {
        "iceoryx2-pubsub"
    }

    fn title(&self) -> String {
        "iceoryx2 pub-sub, busy".to_owned()
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let prefix = format!("podshm-bench/{}", std::process::id());
        let node = quiet_node()?;
        let ends = self.ends(&node, &prefix, ["there", "back"])?;
        peer.send(&prefix)?;
        peer.recv::<()>()?;
        Ok(Box::new(Ends { ends, _node: node }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let prefix: String = control.recv()?;
        let node = quiet_node()?;
        let ends = self.ends(&node, &prefix, ["back", "there"])?;
        control.send(&())?;
        loop {
            match control.recv()? {
                Order::Echo { size, count } => {
                    let end = pick(&ends, size, false)?;
                    for _ in 0..count {
                        let sum = end.recv()?;
                        end.send(size, answer_seed(sum))?;
                    }
                }
                Order::Drain { size, count, .. } => {
                    let end = pick(&ends, size, true)?;
                    let mut sum = 0_u64;
                    for _ in 0..count {
                        sum = sum.wrapping_add(end.recv()?);
                    }
                    control.send(&sum)?;
                }
                Order::End => return Ok(()),
            }
        }
    }
}

impl PubSub {
    /// Ports for round trips of each size (default queue lengths) and for one way (deep queues).
    fn ends(
        &self,
        node: &Node<ipc::Service>,
        prefix: &str,
        [ours, theirs]: [&str; 2],
    ) -> Result<HashMap<(usize, bool), End>> {
        let trips = self.sizes().into_iter().map(|size| (size, false));
        let rates = self.rates().into_iter().map(|(size, _)| (size, true));
        trips
            .chain(rates)
            .map(|(size, deep)| {
                let depth = match (deep, size) {
                    (false, _) => 2,
                    (true, 64) => 64,
                    (true, _) => 4,
                };
                let name = |way: &str| format!("{prefix}/{size}/{deep}/{way}");
                let end = End {
                    publisher: publisher(node, &name(ours), size, depth)?,
                    subscriber: subscriber(node, &name(theirs), depth)?,
                };
                Ok(((size, deep), end))
            })
            .collect()
    }
}

/// A node that prints only errors and leaves signals alone.
pub fn quiet_node() -> Result<Node<ipc::Service>> {
    set_log_level(LogLevel::Error);
    NodeBuilder::new()
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .create::<ipc::Service>()
        .map_err(|error| anyhow!("iceoryx2 node: {error:?}"))
}

type Service = iceoryx2::service::port_factory::publish_subscribe::PortFactory<ipc::Service, [u8], ()>;

fn service(node: &Node<ipc::Service>, name: &str, depth: usize) -> Result<Service> {
    let name: ServiceName = name.try_into().map_err(|error| anyhow!("iceoryx2 service name {name}: {error:?}"))?;
    node.service_builder(&name)
        .publish_subscribe::<[u8]>()
        .payload_alignment(Alignment::new(64).context("64 is an alignment")?)
        .enable_safe_overflow(false)
        .history_size(0)
        .subscriber_max_buffer_size(depth)
        .max_publishers(1)
        .max_subscribers(1)
        .open_or_create()
        .map_err(|error| anyhow!("iceoryx2 service {name}: {error:?}"))
}

fn publisher(
    node: &Node<ipc::Service>,
    name: &str,
    size: usize,
    depth: usize,
) -> Result<Publisher<ipc::Service, [u8], ()>> {
    service(node, name, depth)?
        .publisher_builder()
        .initial_max_slice_len(size)
        .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
        .create()
        .map_err(|error| anyhow!("iceoryx2 publisher {name}: {error:?}"))
}

fn subscriber(node: &Node<ipc::Service>, name: &str, depth: usize) -> Result<Subscriber<ipc::Service, [u8], ()>> {
    service(node, name, depth)?
        .subscriber_builder()
        .create()
        .map_err(|error| anyhow!("iceoryx2 subscriber {name}: {error:?}"))
}

fn pick(ends: &HashMap<(usize, bool), End>, size: usize, deep: bool) -> Result<&End> {
    ends.get(&(size, deep)).with_context(|| format!("no iceoryx2 ports for {size} bytes"))
}

struct Ends {
    ends: HashMap<(usize, bool), End>,
    _node: Node<ipc::Service>,
}

impl Session for Ends {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        let end = pick(&self.ends, size, false)?;
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                end.send(size, seed)?;
                check_answer(end.recv()?, size, seed)
            },
        )
    }

    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64> {
        let end = pick(&self.ends, size, true)?;
        timed_oneway(budget, |count| {
            peer.send(&Order::Drain { size, count, batched })?;
            for seed in 0..count {
                end.send(size, seed)?;
            }
            check_drained(peer.recv()?, size, count)
        })
    }
}

struct End {
    publisher: Publisher<ipc::Service, [u8], ()>,
    subscriber: Subscriber<ipc::Service, [u8], ()>,
}

impl End {
    #[inline]
    fn send(&self, size: usize, seed: u64) -> Result<()> {
        let mut sample = self.publisher.loan_slice_uninit(size).map_err(|error| anyhow!("iceoryx2 loan: {error:?}"))?;
        payload::fill(initialized(sample.payload_mut()), seed);
        // SAFETY: `fill` wrote every byte.
        let sample = unsafe { sample.assume_init() };
        sample.send().map_err(|error| anyhow!("iceoryx2 send: {error:?}"))?;
        Ok(())
    }

    #[inline]
    fn recv(&self) -> Result<u64> {
        loop {
            let sample = self.subscriber.receive().map_err(|error| anyhow!("iceoryx2 receive: {error:?}"))?;
            if let Some(sample) = sample {
                return Ok(payload::sum(sample.payload()));
            }
            std::hint::spin_loop();
        }
    }
}

/// Loaned memory as bytes to be written in place.
pub fn initialized(loaned: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    // SAFETY: same address, length and lifetime; the memory is a shared mapping, which the kernel
    // handed out zeroed, so there are no uninitialised bytes in it.
    unsafe { std::slice::from_raw_parts_mut(loaned.as_mut_ptr().cast(), loaned.len()) }
}
