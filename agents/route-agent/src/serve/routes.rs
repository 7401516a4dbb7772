//! What records and requests are turned into: health, and answers.

use podshm::{Answer, Handler, Record, Request};
use route_client::{Report, Route, RouteKey, Trailer, client::MAX_EXPLAIN_LEN, report::REPORT_LEN};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::ECHO;
use crate::{
    Health, Store,
    delivered::{Delivered, Log},
};

/// What records and requests are turned into.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) store: Store,
    pub(super) health: Health,
    pub(super) log: Option<Log>,
    /// Why the log failed: the agent ends with this round, whose records are acknowledged but not all logged.
    pub(super) log_error: Option<std::io::Error>,
    pub(super) now_ns: u64,
    pub(super) records: u64,
    pub(super) bad_records: u64,
}

impl Handler for Routes {
    fn record(&mut self, record: Record<'_>) {
        self.records += 1;
        if let Some(log) = &mut self.log {
            let Record { client, position, maybe_seen, bytes, .. } = record;
            let entry = Delivered { client, position, maybe_seen, trailer: Trailer::of(bytes) };
            if let Err(error) = log.append(&entry) {
                self.log_error.get_or_insert(error);
            }
        }
        let bytes = record.bytes.get(..REPORT_LEN).unwrap_or(record.bytes);
        match Report::decode(bytes) {
            Ok(report) => self.health.record(member_number(record.member), &report, self.now_ns),
            Err(error) => {
                self.bad_records += 1;
                // The first, and then ever fewer: a client that lies must not fill the log.
                if self.bad_records.is_power_of_two() {
                    let (member, bad) = (record.member, self.bad_records);
                    tracing::warn!(%error, member, bad, "a record is no report");
                }
            }
        }
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        if request.bytes.starts_with(ECHO) {
            answer.reply(request.bytes);
        } else {
            answer.reply_owned(self.explain(request.bytes));
        }
    }
}

impl Routes {
    /// A route and the health of its endpoints as JSON; the ejected first, and as many as fit.
    fn explain(&self, name: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(name);
        let key = match text.parse::<RouteKey>() {
            Ok(key) => key,
            Err(error) => return error_json(error.to_string()),
        };
        let Some(value) = self.store.value(&key) else {
            return error_json(format!("expected a route, found none of the name {key}"));
        };
        let route = match Route::decode(&mut &**value) {
            Ok(route) => route,
            Err(error) => return error_json(error.to_string()),
        };
        let mut endpoints = route.endpoints;
        endpoints.sort_by_key(|e| e.weight);
        let (mut listed, mut len) = (Vec::new(), 512 + key.as_bytes().len());
        for e in &endpoints {
            let known = self.health.endpoint(key.id(), e.id());
            let left =
                known.and_then(|h| h.ejected_until_ns).map(|until| until.saturating_sub(self.now_ns) / 1_000_000);
            let entry = json!({
                "address": e.address.to_string(), "port": e.port, "id": format!("{:016x}", e.id()),
                "zone": e.zone.as_deref(), "ready": e.ready, "serving": e.serving, "terminating": e.terminating,
                "weight": e.weight, "ejected": left.is_some(), "ejected_ms": left,
                "ejections": known.map_or(0, |h| h.ejections), "reports": known.map_or(0, |h| h.reports),
                "errors": known.map_or(0, |h| h.errors), "error_rate": known.map_or(0.0, |h| h.error_rate),
                "latency_us": known.map_or(0.0, |h| h.latency_ns / 1000.0),
            })
            .to_string();
            len += entry.len() + 1;
            if len > MAX_EXPLAIN_LEN {
                break;
            }
            listed.push(entry);
        }
        let (route, all) = (json!(key.as_str()), endpoints.len());
        let head = format!("{{\"route\":{route},\"endpoints\":{all},\"ejected\":{}", self.health.ejected(key.id()));
        let cut = all - listed.len();
        format!("{head},\"not_listed\":{cut},\"list\":[{}]}}", listed.join(",")).into_bytes()
    }
}

/// A member's name as a number, which only the broker chooses.
fn member_number(name: &str) -> u64 {
    xxh3_64(name.as_bytes()).max(1)
}

fn error_json(error: String) -> Vec<u8> {
    json!({ "error": error }).to_string().into_bytes()
}
