//! A route's value and a report, as the other side reads them: also while they change between two reads.

use crate::input::Input;
use route_client::report::{MAX_LATENCY_NS, NUMBERED_LEN, REPORT_LEN};
use route_client::wire::{Header, OutOfBounds, checksum, encode};
use route_client::{Locality, MAX_VALUE_LEN, PickError, ReadAt, Report, Route, SmallRandom, Trailer, WireError, pick};

/// A value of which some bytes change with each read.
struct Torn<'a> {
    value: Vec<u8>,
    changes: Input<'a>,
    reads: u32,
    bytes: usize,
}

impl ReadAt for Torn<'_> {
    type Error = OutOfBounds;

    fn len(&self) -> usize {
        self.value.len()
    }

    fn read_at(&mut self, offset: usize, buf: &mut [u8]) -> Result<(), OutOfBounds> {
        self.reads += 1;
        self.bytes += buf.len();
        (&self.value[..]).read_at(offset, buf)?;
        if !self.changes.is_empty() && !self.value.is_empty() {
            let at = self.changes.below(self.value.len());
            self.value[at] = self.changes.u8();
        }
        Ok(())
    }
}

/// The target.
pub fn route(data: &[u8]) {
    let mut input = Input::new(data);
    match input.choice(3) {
        0 => return report(input.rest()),
        1 => {
            // Torn while it is read.
            let changes = input.below(256);
            let changes = Input::new(input.bytes(changes));
            let mut value = input.rest().to_vec();
            fix(&mut value);
            let mut torn = Torn { value, changes, reads: 0, bytes: 0 };
            let locality = Locality::zone("a").prefer_local_from(1);
            let _ = pick(&mut torn, &locality, &mut SmallRandom::new(1));
            assert!(torn.reads <= 20 && torn.bytes <= 64 + 64 * 32 + 48, "{} reads for one pick", torn.reads);
            (torn.reads, torn.bytes) = (0, 0);
            let _ = Route::decode(&mut torn);
            assert!(torn.reads <= 2 && torn.bytes <= 64 + MAX_VALUE_LEN, "decode copies once and looks at its copy");
            return;
        }
        _ => {}
    }
    let mut value = input.rest().to_vec();
    if value.len() >= 64 && value[0] == b'r' {
        fix(&mut value);
    }
    let decoded = Route::decode(&mut &value[..]);
    match &decoded {
        Ok(route) => whole(route, &value),
        Err(error) => named(error),
    }
    for (seed, locality) in
        [Locality::ANYWHERE, Locality::zone("a"), Locality::zone("b").prefer_local_from(1)].into_iter().enumerate()
    {
        match pick(&mut &value[..], &locality, &mut SmallRandom::new(seed as u64)) {
            Ok(picked) => {
                let header = Header::read(&mut &value[..]).expect("as pick read it");
                assert_eq!(picked.header, header);
                let of = (0..header.endpoints()).any(|n| header.read_record(&mut &value[..], n) == Ok(picked.record));
                assert!(of, "picked {:?}, which is none of its records", picked.record);
                if let Err(error) = picked.record.address(&header, &mut &value[..]) {
                    assert!(decoded.is_err(), "{error}");
                }
            }
            Err(PickError::Wire(error)) => named(&error),
            Err(other) => assert!(other.to_string().contains("expected"), "{other}"),
        }
    }
}

/// Makes the magic, the length and the checksum fit, so that what is behind them is reached.
fn fix(value: &mut Vec<u8>) {
    if value.len() < 64 {
        return;
    }
    value[..4].copy_from_slice(b"RTE\x01");
    let number = |value: &[u8], at: usize| usize::from(value[at]) | usize::from(value[at + 1]) << 8;
    for (at, most) in [(6, 40), (8, 70), (12, 80), (16, 600)] {
        let fit = number(value, at) % most;
        value[at..at + 2].copy_from_slice(&(fit as u16).to_le_bytes());
        if at >= 12 {
            value[at + 2..at + 4].fill(0);
        }
    }
    let need = 64 + number(value, 8) * 32 + number(value, 12) * 8 + number(value, 6) * 40 + number(value, 16);
    value.resize(need, 0);
    let sum = checksum(value);
    value[32..40].copy_from_slice(&sum.to_le_bytes());
}

/// A value that was read whole agrees with its own header, and its endpoints make a value again.
fn whole(route: &Route, value: &[u8]) {
    let header = Header::read(&mut &value[..]).expect("as decode read it");
    assert_eq!(route.endpoints.len(), usize::from(header.endpoints()));
    assert_eq!(route.zones.len(), usize::from(header.zones()));
    let again = encode(route.route, &route.endpoints);
    let read = Route::decode(&mut &again[..]).expect("what is encoded is decoded");
    assert_eq!(read.route, route.route);
    assert_eq!(read.endpoints.len() + read.left_out as usize, route.endpoints.len());
}

fn named<E: std::error::Error>(error: &WireError<E>) {
    let text = error.to_string();
    assert!(text.contains("expected") && text.contains("found"), "{text}");
}

fn report(bytes: &[u8]) {
    match Report::decode(bytes) {
        Ok(report) => assert_eq!(report.encode(), bytes),
        Err(error) => assert!(error.to_string().contains("expected"), "{error}"),
    }
    if bytes.len() >= REPORT_LEN {
        // The same with a checksum that fits.
        let mut fixed = bytes[..REPORT_LEN].to_vec();
        fixed[..4].copy_from_slice(b"RPT\x01");
        let sum = xxhash_rust::xxh3::xxh3_64(&fixed[..40]);
        fixed[40..].copy_from_slice(&sum.to_le_bytes());
        match Report::decode(&fixed) {
            Ok(report) => {
                assert_eq!(report.encode()[..], fixed[..]);
                let trailer = Trailer { sender: report.seq as u32, seq: report.latency_ns.min(MAX_LATENCY_NS) };
                let record = trailer.encode(&report);
                assert_eq!((Trailer::of(&record), record.len()), (Some(trailer), NUMBERED_LEN));
            }
            Err(error) => assert!(fixed[4..8] > [3, 0, 0, 0][..] || fixed[5..8] != [0; 3], "{error}"),
        }
    }
    if let Some(trailer) = Trailer::of(bytes) {
        assert!(bytes.len() >= NUMBERED_LEN, "a trailer in {} bytes: {trailer:?}", bytes.len());
    }
}
