//! iceoryx2's request-response, polled without a pause: a service for every size.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use iceoryx2::port::client::Client;
use iceoryx2::port::server::Server;
use iceoryx2::prelude::*;

use super::iceoryx2_pubsub::{initialized, quiet_node};
use crate::control::Control;
use crate::payload;
use crate::transport::{Latencies, Order, Session, Transport, answer_seed, check_answer, timed_rtt};

pub struct RequestResponse;

impl Transport for RequestResponse {
    fn name(&self) -> &'static str {
        "iceoryx2-reqres"
    }

    fn title(&self) -> String {
        "iceoryx2 request-response, busy".to_owned()
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        Vec::new() // nothing goes one way
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let prefix = format!("podshm-bench/{}", std::process::id());
        let node = quiet_node()?;
        let client = |size: usize| -> Result<(usize, BytesClient)> {
            let client = service(&node, &prefix, size)?
                .client_builder()
                .initial_max_slice_len(size)
                .create()
                .map_err(|error| anyhow!("iceoryx2 client: {error:?}"))?;
            Ok((size, client))
        };
        let clients = self.sizes().into_iter().map(client).collect::<Result<_>>()?;
        peer.send(&prefix)?;
        peer.recv::<()>()?;
        Ok(Box::new(Clients { clients, _node: node }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let prefix: String = control.recv()?;
        let node = quiet_node()?;
        let server = |size: usize| -> Result<(usize, BytesServer)> {
            let server = service(&node, &prefix, size)?
                .server_builder()
                .initial_max_slice_len(size)
                .create()
                .map_err(|error| anyhow!("iceoryx2 server: {error:?}"))?;
            Ok((size, server))
        };
        let servers: HashMap<usize, BytesServer> = self.sizes().into_iter().map(server).collect::<Result<_>>()?;
        control.send(&())?;
        loop {
            match control.recv()? {
                Order::Echo { size, count } => {
                    let server = servers.get(&size).context("no server of that size")?;
                    for _ in 0..count {
                        answer(server, size)?;
                    }
                }
                Order::Drain { .. } => bail!("request-response has no one-way rate"),
                Order::End => return Ok(()),
            }
        }
    }
}

type BytesClient = Client<ipc::Service, [u8], (), [u8], ()>;
type BytesServer = Server<ipc::Service, [u8], (), [u8], ()>;
type Service = iceoryx2::service::port_factory::request_response::PortFactory<ipc::Service, [u8], (), [u8], ()>;

fn service(node: &Node<ipc::Service>, prefix: &str, size: usize) -> Result<Service> {
    let name: ServiceName =
        format!("{prefix}/{size}").as_str().try_into().map_err(|error| anyhow!("iceoryx2 service name: {error:?}"))?;
    let alignment = Alignment::new(64).context("64 is an alignment")?;
    node.service_builder(&name)
        .request_response::<[u8], [u8]>()
        .request_payload_alignment(alignment)
        .response_payload_alignment(alignment)
        .max_clients(1)
        .max_servers(1)
        .open_or_create()
        .map_err(|error| anyhow!("iceoryx2 service {name}: {error:?}"))
}

#[inline]
fn answer(server: &BytesServer, size: usize) -> Result<()> {
    let request = loop {
        let request = server.receive().map_err(|error| anyhow!("iceoryx2 receive: {error:?}"))?;
        match request {
            Some(request) => break request,
            None => std::hint::spin_loop(),
        }
    };
    let sum = payload::sum(request.payload());
    let mut response = request.loan_slice_uninit(size).map_err(|error| anyhow!("iceoryx2 loan: {error:?}"))?;
    payload::fill(initialized(response.payload_mut()), answer_seed(sum));
    // SAFETY: `fill` wrote every byte.
    let response = unsafe { response.assume_init() };
    response.send().map_err(|error| anyhow!("iceoryx2 send: {error:?}"))
}

struct Clients {
    clients: HashMap<usize, BytesClient>,
    _node: Node<ipc::Service>,
}

impl Session for Clients {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        let client = self.clients.get(&size).context("no client of that size")?;
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                let mut request =
                    client.loan_slice_uninit(size).map_err(|error| anyhow!("iceoryx2 loan: {error:?}"))?;
                payload::fill(initialized(request.payload_mut()), seed);
                // SAFETY: `fill` wrote every byte.
                let request = unsafe { request.assume_init() };
                let pending = request.send().map_err(|error| anyhow!("iceoryx2 send: {error:?}"))?;
                loop {
                    let response = pending.receive().map_err(|error| anyhow!("iceoryx2 receive: {error:?}"))?;
                    if let Some(response) = response {
                        return check_answer(payload::sum(response.payload()), size, seed);
                    }
                    std::hint::spin_loop();
                }
            },
        )
    }

    fn oneway(&mut self, _peer: &mut Control, _size: usize, _batched: bool, _budget: Duration) -> Result<f64> {
        bail!("request-response has no one-way rate")
    }
}
