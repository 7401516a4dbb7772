//! A single-producer single-consumer byte ring in shared memory, spinning: trusting its peer (the
//! denominator of all ratios), and the same hardened by hand.
//!
//! ```text
//!   0      128     256            4096
//!   │ head │ tail  │              │ len │ payload … │ len │ payload … │ SKIP │     one direction
//!     ▲      ▲                    ▲ records are contiguous; SKIP: the rest of the lap is unused
//!     │      └ consumer's line
//!     └ producer's line (cursors are byte positions that never wrap)
//! ```
//!
//! Each side keeps its own cursor and the last it saw of its peer's in private memory, and looks
//! at the peer's line only when that isn't enough. Payloads are written in place and, trusting,
//! summed in place.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};

use crate::control::Control;
use crate::metric::{Metric, RAW_RING};
use crate::payload;
use crate::row::{Bound, Target};
use crate::shm::Mapping;
use crate::transport::{Pipe, PipeSession, Session, Transport, serve_pipe};

/// Bytes of one direction: a power of two that holds messages of 1 MiB twice over, so that one can
/// be written while the last is read. Smaller messages are no faster through a smaller ring (16
/// KiB to 1 MiB tried).
const CAPACITY: usize = 4 << 20;
/// The second direction starts here; 512 bytes further into its page, so that the cursors of both
/// don't compete for the same cache sets.
const STRIDE: usize = DATA + CAPACITY + 512;
const REGION: usize = (2 * STRIDE).next_multiple_of(4096);
const HEAD: usize = 0;
const TAIL: usize = 128;
const DATA: usize = 4096;
const LEN: usize = size_of::<u64>();
const SKIP: u64 = u64::MAX;

#[derive(Debug)]
pub struct RingTransport {
    name: &'static str,
    title: &'static str,
    hardened: bool,
    fragment: usize,
    align: u64,
}

impl RingTransport {
    pub const RAW: Self =
        Self { name: RAW_RING, title: "raw ring, trusts its peer", hardened: false, fragment: usize::MAX, align: 8 };
    /// Not the denominator: an upper bound of what pipelining gives, to judge others that do it.
    pub const RAW_FRAGMENTED: Self = Self {
        name: "raw-ring-fragments",
        title: "raw ring, in 16 KiB fragments",
        hardened: false,
        fragment: 16 << 10,
        align: 8,
    };
    /// Not the denominator either: no two records share a cache line, which makes records that are
    /// published one by one faster, and batches (and round trips, a little) slower.
    pub const RAW_ALIGNED: Self = Self {
        name: "raw-ring-aligned",
        title: "raw ring, records on lines of their own",
        hardened: false,
        fragment: usize::MAX,
        align: 64,
    };
    pub const HARDENED: Self = Self {
        name: "hardened-ring",
        title: "raw ring hardened by hand",
        hardened: true,
        fragment: usize::MAX,
        align: 8,
    };

    /// Both directions over fresh memory, as the first or the second process sees them.
    fn pipe(&self, mapping: Mapping, first: bool) -> RingPipe {
        let (ours, theirs) = if first { (0, STRIDE) } else { (STRIDE, 0) };
        RingPipe {
            producer: Producer::new(&mapping, ours, self),
            consumer: Consumer::new(&mapping, theirs, self),
            fragment: self.fragment,
            _mapping: mapping,
        }
    }
}

impl Transport for RingTransport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> String {
        self.title.to_owned()
    }

    fn sizes(&self) -> Vec<usize> {
        let all = crate::metric::SIZES.into_iter();
        match (self.fragment, self.align) {
            (usize::MAX, 8) => all.collect(),
            (usize::MAX, _) => vec![64],
            (fragment, _) => all.filter(|&size| size > fragment).collect(),
        }
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        match (self.fragment, self.align) {
            (usize::MAX, 8) => vec![(64, false), (64, true), (1 << 20, false)],
            (usize::MAX, _) => vec![(64, false), (64, true)],
            _ => vec![(1 << 20, false)],
        }
    }

    fn targets(&self) -> Vec<Target> {
        if self.name != RAW_RING {
            return Vec::new();
        }
        vec![Target { metric: Metric::Rtt { size: 64 }, bound: Bound::AtMost(2.5, "cache-line"), fatal: true }]
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let (mapping, fd) = Mapping::create(REGION)?;
        peer.send_fd(fd)?;
        Ok(Box::new(PipeSession(self.pipe(mapping, true))))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let mapping = Mapping::open(control.recv_fd()?, REGION)?;
        serve_pipe(self.pipe(mapping, false), control)
    }
}

struct RingPipe {
    producer: Producer,
    consumer: Consumer,
    fragment: usize,
    /// Unmapped last: the ends point into it.
    _mapping: Mapping,
}

impl Pipe for RingPipe {
    #[inline]
    fn send(&mut self, len: usize, seed: u64, flush: bool) -> Result<()> {
        if len <= self.fragment {
            return self.producer.push(len, seed, 0, flush);
        }
        for at in (0..len).step_by(self.fragment) {
            self.producer.push(self.fragment.min(len - at), seed, at / 8, true)?;
        }
        Ok(())
    }

    #[inline]
    fn recv(&mut self, len: usize) -> Result<u64> {
        let (mut got, mut sum) = self.consumer.pop()?;
        while got < len {
            let (part, of_part) = self.consumer.pop()?;
            (got, sum) = (got + part, sum.wrapping_add(of_part));
        }
        ensure!(got == len, "expected {len} bytes, found {got}");
        Ok(sum)
    }
}

/// Bytes that a record of `len` payload bytes takes.
#[inline(always)]
fn record_len(len: usize, align: u64) -> u64 {
    ((LEN + len) as u64).next_multiple_of(align)
}

/// Where one direction of a ring lies; valid as long as the mapping.
#[derive(Clone, Copy)]
struct Lines {
    head: *const AtomicU64,
    tail: *const AtomicU64,
    data: *mut u8,
}

impl Lines {
    /// One direction at `offset`; panics unless all of it lies in the mapping.
    fn of(mapping: &Mapping, offset: usize) -> Self {
        mapping.at::<u64>(offset + DATA + CAPACITY - LEN);
        Self { head: mapping.at(offset + HEAD), tail: mapping.at(offset + TAIL), data: mapping.at(offset + DATA) }
    }

    #[inline(always)]
    fn head(&self) -> &AtomicU64 {
        // SAFETY: points to an aligned word in the mapping, which the pipe keeps until after its
        // ends are gone; both processes touch it only as an atomic.
        unsafe { &*self.head }
    }

    #[inline(always)]
    fn tail(&self) -> &AtomicU64 {
        // SAFETY: as for `head`.
        unsafe { &*self.tail }
    }
}

struct Producer {
    lines: Lines,
    hardened: bool,
    align: u64,
    head: u64,
    tail_seen: u64,
}

impl Producer {
    fn new(mapping: &Mapping, offset: usize, of: &RingTransport) -> Self {
        Self { lines: Lines::of(mapping, offset), hardened: of.hardened, align: of.align, head: 0, tail_seen: 0 }
    }

    #[inline]
    fn push(&mut self, len: usize, seed: u64, first: usize, flush: bool) -> Result<()> {
        let place = self.head as usize & (CAPACITY - 1);
        let record = record_len(len, self.align);
        let skipped = if record > (CAPACITY - place) as u64 { (CAPACITY - place) as u64 } else { 0 };
        let needed = skipped + record;
        if self.head + needed - self.tail_seen > CAPACITY as u64 {
            self.wait_for_room(needed)?;
        }
        let mut place = place;
        if skipped > 0 {
            // SAFETY: `place` is a multiple of 8 below CAPACITY, so a word fits; the bytes up to
            // `head + needed` are free, hence not touched by the consumer until published.
            unsafe { self.lines.data.add(place).cast::<u64>().write(SKIP) };
            place = 0;
        }
        // SAFETY: `place + LEN + len <= CAPACITY` and these bytes are free: ours alone until the
        // store of `head` below publishes them.
        let payload = unsafe {
            let record = self.lines.data.add(place);
            record.cast::<u64>().write(len as u64);
            std::slice::from_raw_parts_mut(record.add(LEN), len)
        };
        payload::fill_from(payload, seed, first);
        self.head += needed;
        if flush {
            self.publish();
        }
        Ok(())
    }

    #[inline(always)]
    fn publish(&self) {
        // Pairs with the consumer's acquire load in `wait_for_record`.
        self.lines.head().store(self.head, Ordering::Release);
    }

    /// Waits for an eighth of the ring, not for one record: a full ring would otherwise bounce the
    /// cursor's line once a record.
    #[cold]
    fn wait_for_room(&mut self, needed: u64) -> Result<()> {
        self.publish(); // a batch that isn't published would never be consumed
        let wanted = needed.max(CAPACITY as u64 / 8);
        while self.head + wanted - self.tail_seen > CAPACITY as u64 {
            // Pairs with the consumer's release store of `tail`: it has read what we overwrite.
            let tail = self.lines.tail().load(Ordering::Acquire);
            if self.hardened {
                ensure!(
                    tail >= self.tail_seen && tail <= self.head,
                    "expected a tail from {} to {}, found {tail}",
                    self.tail_seen,
                    self.head
                );
            }
            self.tail_seen = tail;
            std::hint::spin_loop();
        }
        Ok(())
    }
}

struct Consumer {
    lines: Lines,
    hardened: bool,
    align: u64,
    tail: u64,
    head_seen: u64,
    /// Hardened: the payload is copied here before it is looked at.
    private: Vec<u8>,
}

impl Consumer {
    fn new(mapping: &Mapping, offset: usize, of: &RingTransport) -> Self {
        Self {
            lines: Lines::of(mapping, offset),
            hardened: of.hardened,
            align: of.align,
            tail: 0,
            head_seen: 0,
            private: vec![0; if of.hardened { CAPACITY } else { 0 }],
        }
    }

    /// Length and sum of the next record.
    #[inline]
    fn pop(&mut self) -> Result<(usize, u64)> {
        loop {
            if self.tail == self.head_seen {
                self.wait_for_record()?;
            }
            let place = self.tail as usize & (CAPACITY - 1);
            // SAFETY: `place` is a multiple of 8 below CAPACITY, so a word lies there, published
            // by the producer. Volatile: read once, whatever a hostile producer does to it later.
            let len = unsafe { self.lines.data.add(place).cast::<u64>().read_volatile() };
            if len == SKIP {
                self.tail += (CAPACITY - place) as u64;
                continue;
            }
            if self.hardened {
                let most = (self.head_seen - self.tail).min((CAPACITY - place) as u64);
                ensure!(
                    len <= most - LEN as u64 && len.is_multiple_of(8),
                    "expected a length in 8s up to {}, found {len}",
                    most - LEN as u64
                );
            }
            let len = len as usize;
            let sum = self.sum(place + LEN, len);
            self.tail += record_len(len, self.align);
            // Pairs with the producer's acquire load in `wait_for_room`.
            self.lines.tail().store(self.tail, Ordering::Release);
            return Ok((len, sum));
        }
    }

    #[inline]
    fn sum(&mut self, place: usize, len: usize) -> u64 {
        // SAFETY: `place + len <= CAPACITY` (checked when hardened, else promised by the producer).
        let shared = unsafe { self.lines.data.add(place) };
        if self.hardened {
            let private = &mut self.private[..len];
            // SAFETY: `shared` has `len` bytes and `private` is another allocation. A hostile
            // producer may write meanwhile; what is copied is then garbage, which the copy (by the
            // C library, through no reference) gives to `private` without looking at it.
            unsafe { std::ptr::copy_nonoverlapping(shared, private.as_mut_ptr(), len) };
            payload::sum(private)
        } else {
            // SAFETY: published by the trusted producer, which doesn't touch it until `tail` says
            // that it is free again.
            payload::sum(unsafe { std::slice::from_raw_parts(shared, len) })
        }
    }

    #[inline]
    fn wait_for_record(&mut self) -> Result<()> {
        loop {
            // Pairs with the producer's release store in `publish`.
            self.head_seen = self.lines.head().load(Ordering::Acquire);
            if self.head_seen != self.tail {
                break;
            }
            std::hint::spin_loop();
        }
        if self.hardened {
            let used = self.head_seen.wrapping_sub(self.tail);
            ensure!(
                used <= CAPACITY as u64 && used.is_multiple_of(8),
                "expected a head up to {} bytes after {}, found {}",
                CAPACITY,
                self.tail,
                self.head_seen
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(transport: &RingTransport) -> Result<(RingPipe, RingPipe)> {
        let (mapping, fd) = Mapping::create(REGION)?;
        let other = Mapping::open(fd, REGION)?;
        Ok((transport.pipe(mapping, true), transport.pipe(other, false)))
    }

    #[test]
    fn laps_of_odd_lengths_arrive_whole() -> Result<()> {
        for transport in
            [RingTransport::RAW, RingTransport::RAW_FRAGMENTED, RingTransport::RAW_ALIGNED, RingTransport::HARDENED]
        {
            let (mut a, mut b) = pair(&transport)?;
            for seed in 0..200 {
                let len = 8 + (seed as usize * 7919 * 8) % (1 << 20);
                a.send(len, seed, true)?;
                assert_eq!(b.recv(len)?, payload::expected(len, seed));
            }
        }
        Ok(())
    }

    #[test]
    fn the_hardened_ring_refuses_a_lying_peer() -> Result<()> {
        let (a, mut b) = pair(&RingTransport::HARDENED)?;
        a.producer.lines.head().store(CAPACITY as u64 + 8, Ordering::Release);
        assert!(b.recv(64).is_err());

        let (mut a, mut b) = pair(&RingTransport::HARDENED)?;
        a.send(64, 1, true)?;
        // SAFETY: the record's length word, which only this test's two ends see.
        unsafe { a.producer.lines.data.cast::<u64>().write(72) };
        assert!(b.recv(64).is_err());
        Ok(())
    }
}
