//! What iceoryx2 needs before its first read where podshm joins: a node, three services of a peer that is there already (a
//! blackboard for the table, publish-subscribe for the queue, request-response for the call), and a port of each.

use anyhow::{Context, Result, anyhow};
use iceoryx2::prelude::*;

use super::iceoryx2_pubsub::quiet_node;
use super::podshm::{FIRST, in_new_processes};
use crate::control::Control;
use crate::machine;
use crate::metric::Metric;
use crate::outcome::median;
use crate::row::{Plan, Row, Sample};
use crate::task;
use crate::transport::Order;

/// Processes a round.
const PROCESSES: usize = 4;

/// See above.
pub struct Join;

impl Row for Join {
    fn name(&self) -> &'static str {
        "iceoryx2-join"
    }

    fn title(&self) -> String {
        "iceoryx2 (syncs files under /tmp)".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![FIRST]
    }

    fn measure(&self, peer: &mut Control, _plan: Plan) -> Result<Vec<Sample>> {
        let prefix: String = peer.recv()?;
        let first = in_new_processes(self.name(), &prefix, PROCESSES)?;
        Ok(vec![Sample { metric: FIRST, value: median(&first) }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let prefix = format!("podshm-bench/{}", std::process::id());
        let node = quiet_node()?;
        let board = node
            .service_builder(&name(&prefix, "table")?)
            .blackboard_creator::<u64>()
            .add::<[u8; 200]>(1, [7; 200])
            .create()
            .map_err(said("blackboard"))?;
        let _writer = board.writer_builder().create().map_err(said("writer"))?;
        let records = node
            .service_builder(&name(&prefix, "queue")?)
            .publish_subscribe::<[u8]>()
            .open_or_create()
            .map_err(said("publish-subscribe"))?;
        let _subscriber = records.subscriber_builder().create().map_err(said("subscriber"))?;
        let calls = node
            .service_builder(&name(&prefix, "call")?)
            .request_response::<[u8], [u8]>()
            .open_or_create()
            .map_err(said("request-response"))?;
        let _server = calls.server_builder().initial_max_slice_len(1024).create().map_err(said("server"))?;
        control.send(&prefix)?;
        while !matches!(control.recv()?, Order::End) {}
        Ok(())
    }

    fn task(&self, arguments: &[String]) -> Result<()> {
        let prefix = arguments.first().context("a prefix of service names")?;
        machine::unpin()?;
        set_log_level(LogLevel::Error);
        let begun = std::time::Instant::now();
        let node = quiet_node()?;
        let board = node
            .service_builder(&name(prefix, "table")?)
            .blackboard_opener::<u64>()
            .open()
            .map_err(said("blackboard"))?;
        let reader = board.reader_builder().create().map_err(said("reader"))?;
        let records = node
            .service_builder(&name(prefix, "queue")?)
            .publish_subscribe::<[u8]>()
            .open()
            .map_err(said("publish-subscribe"))?;
        let _publisher = records.publisher_builder().initial_max_slice_len(1024).create().map_err(said("publisher"))?;
        let calls = node
            .service_builder(&name(prefix, "call")?)
            .request_response::<[u8], [u8]>()
            .open()
            .map_err(said("request-response"))?;
        let _client = calls.client_builder().initial_max_slice_len(1024).create().map_err(said("client"))?;
        let entry = reader.entry::<[u8; 200]>(&1).map_err(said("entry"))?;
        let value = *entry.get();
        let took = begun.elapsed().as_nanos();
        anyhow::ensure!(value == [7; 200], "the first look-up found something else");
        task::say(took)?;
        task::until_told();
        Ok(())
    }
}

fn name(prefix: &str, service: &str) -> Result<ServiceName> {
    format!("{prefix}/{service}").as_str().try_into().map_err(said("service name"))
}

fn said<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> anyhow::Error {
    move |error| anyhow!("iceoryx2 {what}: {error:?}")
}
