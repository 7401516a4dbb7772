//! Messages between broker and participants, and the services and geometry that come in them.

use crate::input::Input;
use podshm_layout::{CACHE_LINE, Layout, PAGE};
use podshm_proto::{Down, Service, ServiceKind, Services, Up, Written, decode_down, decode_up, encode_down, encode_up};

/// The target.
pub fn messages(data: &[u8]) {
    let mut input = Input::new(data);
    let (spread, place) = (input.word(), input.word());
    if input.choice(2) == 0 {
        let services = (0..input.choice(64)).map(|n| any_service(&mut input, n)).collect();
        return check(services, spread, place);
    }
    let bytes = input.rest();
    match decode_up(bytes) {
        Ok(message) => {
            let again = encode_up(message.clone());
            assert_eq!(decode_up(&again).expect("what was written is read"), message);
            if let Up::Hello(hello) = message {
                check(hello.services, spread, place);
            }
        }
        Err(error) => named(&error, bytes),
    }
    match decode_down(bytes) {
        Ok(message) => {
            let again = encode_down(message.clone());
            assert_eq!(decode_down(&again).expect("what was written is read"), message);
            if let Down::Welcome(welcome) = message {
                check(welcome.services, spread, place);
            }
        }
        Err(error) => named(&error, bytes),
    }
}

fn named(error: &podshm_proto::BadMessage, bytes: &[u8]) {
    assert_eq!(error.bytes, bytes.len());
    assert!(!error.reason.is_empty() && error.to_string().contains(&bytes.len().to_string()), "{error}");
}

/// A service near what one may be.
fn any_service(input: &mut Input<'_>, n: u8) -> Service {
    let name = match input.choice(8) {
        0 => String::from_utf8_lossy(input.bytes(70)).into_owned(),
        1 => "twice".to_owned(),
        _ => format!("s{n}"),
    };
    let size = |input: &mut Input<'_>| match input.choice(4) {
        0 => input.u32(),
        1 => (1 << input.choice(32)) | u32::from(input.choice(2)),
        _ => 4096 << input.choice(15),
    };
    Service {
        name,
        kind: u32::from(input.choice(5)),
        keys: input.word(),
        bytes: input.word(),
        ring: size(input),
        longest: size(input) >> input.choice(4),
        response_ring: size(input),
        longest_response: size(input),
        idempotent: input.choice(2) == 0,
    }
}

/// Services that pass the check have a geometry for every client, in which nothing lies over anything else.
fn check(offered: Vec<Service>, spread: u64, place: u64) {
    let services = match Services::check(offered.clone()) {
        Ok(services) => services,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("expected") || text.contains("give each") || text.contains("at most"), "{text}");
            return;
        }
    };
    assert_eq!(services.to_message(), offered);
    let newest = services.newest_layout().expect("checked services fit some layout");
    for layout in Layout::ALL {
        let written = Written::both(layout);
        if layout > newest {
            assert!(services.channel(spread, place, written).is_err(), "more rings than layout {layout} holds");
        } else {
            check_at(&services, spread, place, written);
        }
    }
}

fn check_at(services: &Services, spread: u64, place: u64, written: Written) {
    let geometry = services.channel(spread, place, written).expect("checked services have a geometry");
    geometry.check().expect("a geometry that is laid out here passes its own check");
    let of = |kind| services.iter().filter(|(_, k)| *k == kind).count();
    let (queues, calls) = (of(ServiceKind::Queue), of(ServiceKind::Call));
    assert_eq!((geometry.to_agent.len(), geometry.to_client.len()), (queues + calls, calls));
    for (rings, bytes) in [(&geometry.to_agent, geometry.client_bytes), (&geometry.to_client, geometry.agent_bytes)] {
        let mut end = PAGE as u64;
        for ring in rings {
            assert_eq!(u64::from(ring.offset), end, "rings lie one behind another");
            end += u64::from(ring.bytes);
            assert!(ring.cursor as usize + CACHE_LINE <= PAGE && ring.start > 0 && ring.start < u64::from(ring.bytes));
        }
        assert_eq!(end, bytes);
    }
    for (index, (service, kind)) in services.iter().enumerate() {
        assert_eq!(services.find(&service.name), Some((index, kind)));
        match kind {
            ServiceKind::Table => {}
            ServiceKind::Queue => {
                let ring = &geometry.to_agent[services.ring_to_agent(index)];
                assert_eq!((ring.bytes, ring.max_record), (service.ring, service.longest));
            }
            ServiceKind::Call => {
                assert_eq!(geometry.to_agent[services.ring_to_agent(index)].bytes, service.ring);
                assert_eq!(geometry.to_client[services.ring_to_client(index)].bytes, service.response_ring);
            }
        }
    }
}
