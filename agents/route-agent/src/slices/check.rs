//! From JSON as it came to a slice that can be relied on.

use std::{net::IpAddr, sync::Arc};

use route_client::wire::{Address, MAX_NAME_LEN, Protocol};

use super::{
    API_VERSION, MAX_ENDPOINTS, MAX_HINTS, MAX_PORTS, MAX_PORTS_TIMES_ENDPOINTS, Port, SERVICE_LABEL, Slice,
    SliceEndpoint, SliceError, SliceName, cut, raw,
};

/// Checks what was parsed.
pub(crate) fn check(raw: raw::Slice) -> Result<Slice, SliceError> {
    let name = SliceName { namespace: raw.metadata.namespace.as_str().into(), name: raw.metadata.name.as_str().into() };
    let wrong = |field, expected, found: &str, action| SliceError::Field {
        name: SliceName { namespace: bounded(&name.namespace), name: bounded(&name.name) },
        field,
        expected,
        found: format!("{:?}", cut(found)),
        action,
    };
    for part in [&name.namespace, &name.name] {
        if part.is_empty() || part.len() > 253 {
            return Err(wrong("metadata.namespace and metadata.name", "1 to 253 bytes", part, "give it both"));
        }
    }
    // Items of a typed list carry neither.
    if let Some(found) = raw.api_version.as_deref().filter(|v| *v != API_VERSION) {
        return Err(wrong("apiVersion", API_VERSION, found, "ask the API server for that version"));
    }
    if let Some(found) = raw.kind.as_deref().filter(|k| *k != "EndpointSlice") {
        return Err(wrong("kind", "EndpointSlice", found, "give the agent EndpointSlices only"));
    }
    let number = raw.metadata.resource_version.as_deref().unwrap_or_default();
    let resource_version = match number {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| wrong("metadata.resourceVersion", "a whole number", text, "look at what wrote it"))?,
    };
    let family = match raw.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => Family::Fqdn,
        found => {
            return Err(wrong(
                "addressType",
                "IPv4, IPv6 or FQDN",
                found,
                "upgrade the agent if Kubernetes has a new type",
            ));
        }
    };
    let (endpoints, ports) = (raw.endpoints.len(), raw.ports.len());
    let limits = [
        ("endpoints", endpoints, MAX_ENDPOINTS, "at most 1000"),
        ("ports", ports, MAX_PORTS, "at most 20000"),
        ("ports times endpoints", endpoints.saturating_mul(ports), MAX_PORTS_TIMES_ENDPOINTS, "at most 200000"),
    ];
    for (field, found, limit, expected) in limits {
        if found > limit {
            return Err(wrong(field, expected, &found.to_string(), "split the slice, as the controller does"));
        }
    }
    let mut ports = Vec::with_capacity(raw.ports.len());
    let mut ports_skipped = 0;
    for port in &raw.ports {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(found) => {
                return Err(wrong(
                    "a port's protocol",
                    "TCP, UDP or SCTP",
                    found,
                    "upgrade the agent if Kubernetes has a new one",
                ));
            }
        };
        let Some(found) = port.port else {
            ports_skipped += 1;
            continue;
        };
        let range = |n: &u16| *n > 0;
        let number = u16::try_from(found).ok().filter(range);
        let number = number.ok_or_else(|| wrong("a port", "from 1 to 65535", &found.to_string(), "correct it"))?;
        let name = port.name.as_deref().filter(|name| !name.is_empty()).map(Arc::from);
        ports.push(Port { name, number, protocol });
    }
    let mut endpoints = Vec::with_capacity(raw.endpoints.len());
    for endpoint in &raw.endpoints {
        let first = endpoint.addresses.first().map_or("", String::as_str);
        let address =
            family.parse(first).ok_or_else(|| wrong("an endpoint's address", family.expects(), first, "correct it"))?;
        let conditions = &endpoint.conditions;
        let ready = conditions.ready.unwrap_or(true);
        let zone = endpoint.zone.as_deref().filter(|zone| !zone.is_empty());
        let hints = &endpoint.hints.for_zones;
        if hints.len() > MAX_HINTS {
            return Err(wrong("an endpoint's hints", "at most 64 zones", &hints.len().to_string(), "correct them"));
        }
        if let Some(long) =
            zone.into_iter().chain(hints.iter().map(|h| h.name.as_str())).find(|z| z.len() > MAX_NAME_LEN)
        {
            return Err(wrong("a zone's name", "at most 255 bytes", long, "shorten the node's zone label"));
        }
        endpoints.push(SliceEndpoint {
            address,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            zone: zone.map(Arc::from),
            hints: hints.iter().filter(|h| !h.name.is_empty()).map(|h| h.name.as_str().into()).collect(),
        });
    }
    let service =
        raw.metadata.labels.get(SERVICE_LABEL).and_then(Option::as_deref).filter(|s| !s.is_empty()).map(Arc::from);
    Ok(Slice { name, service, resource_version, ports, ports_skipped, endpoints })
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
    Fqdn,
}

impl Family {
    fn expects(self) -> &'static str {
        match self {
            Family::V4 => "an IPv4 address, as addressType says",
            Family::V6 => "an IPv6 address, as addressType says",
            Family::Fqdn => "a domain name of at most 253 bytes, as addressType says",
        }
    }

    fn parse(self, text: &str) -> Option<Address> {
        match (self, text.parse::<IpAddr>()) {
            (Family::V4, Ok(IpAddr::V4(ip))) => Some(Address::V4(ip)),
            (Family::V6, Ok(IpAddr::V6(ip))) => Some(Address::V6(ip)),
            (Family::Fqdn, Err(_)) => {
                let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(good);
                let name = text.strip_suffix('.').unwrap_or(text);
                (name.len() <= 253 && name.split('.').all(label)).then(|| Address::Fqdn(name.into()))
            }
            _ => None,
        }
    }
}

/// A name as an object can have it stays whole, so that the slice is found again; only a longer one is cut.
fn bounded(part: &str) -> Arc<str> {
    if part.len() <= 253 { part.into() } else { cut(part).into() }
}
