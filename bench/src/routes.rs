//! The routes that every look-up row holds and asks for: same keys, same values, same order of
//! queries, from arithmetic alone.

/// The sizes of table that are measured.
pub const COUNTS: [usize; 2] = [10_000, 100_000];

/// No value is longer.
pub const MAX_VALUE: usize = 212;

/// The key of route `index`: `namespace/service:port`, 20 to 45 bytes, unique.
pub fn key(index: usize) -> Vec<u8> {
    const TEAMS: [&str; 8] = ["checkout", "search", "payments", "catalog", "identity", "media", "logistics", "ads"];
    const ROLES: [&str; 6] = ["api", "worker", "gateway", "cache", "frontend", "batch-runner"];
    const PORTS: [&str; 5] = ["http", "grpc", "8080", "metrics", "9443"];
    let mix = scramble(index as u64);
    format!(
        "{team}-{space:03}/{role}-{index:06}:{port}",
        team = TEAMS[(mix % 8) as usize],
        space = (mix >> 8) % 200,
        role = ROLES[((mix >> 20) % 6) as usize],
        port = PORTS[((mix >> 32) % 5) as usize],
    )
    .into_bytes()
}

/// The value of route `index`: 188 to 212 bytes.
pub fn value(index: usize) -> Vec<u8> {
    let mut state = scramble(index as u64 ^ 0xABCD);
    let len = MAX_VALUE - 24 + (state % 25) as usize;
    (0..len)
        .map(|_| {
            state = scramble(state);
            state as u8
        })
        .collect()
}

/// Keys in a random order over all routes, lying one after the other, so that reading the query
/// itself is never the cache miss that is measured.
#[derive(Debug)]
pub struct Queries {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    order: Vec<u32>,
}

impl Queries {
    /// One query for each of `count` routes, shuffled.
    pub fn shuffled(count: usize) -> Self {
        let mut order: Vec<u32> = (0..count as u32).collect();
        let mut state = 0x5EED;
        for left in (1..count).rev() {
            state = scramble(state);
            order.swap(left, (state % (left as u64 + 1)) as usize);
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(count));
        for &index in &order {
            bytes.extend(key(index as usize));
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends, order }
    }

    /// How many queries there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The keys, in query order.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let key = &self.bytes[start..end as usize];
            start = end as usize;
            key
        })
    }

    /// Which route query number `at` asks for.
    pub fn route(&self, at: usize) -> usize {
        self.order[at] as usize
    }

    /// Looks every key up with `lookup`, which copies the value into the buffer and returns its
    /// length, and checks each against [`value`]. Untimed.
    pub fn verify(&self, mut lookup: impl FnMut(&[u8], &mut [u8]) -> Option<usize>) -> anyhow::Result<()> {
        let mut buffer = [0; MAX_VALUE];
        for (at, key) in self.keys().enumerate() {
            let expected = value(self.route(at));
            let found = lookup(key, &mut buffer).map(|len| &buffer[..len]);
            anyhow::ensure!(
                found == Some(&expected[..]),
                "route {}: expected its {} byte value, found {:?} bytes",
                String::from_utf8_lossy(key),
                expected.len(),
                found.map(<[u8]>::len),
            );
        }
        Ok(())
    }

    /// Nanoseconds a look-up takes: whole passes over all queries for about `budget`, the first
    /// pass not counted.
    pub fn time(&self, budget: std::time::Duration, mut lookup: impl FnMut(&[u8], &mut [u8]) -> Option<usize>) -> f64 {
        let mut buffer = [0; MAX_VALUE];
        let mut pass = || {
            let start = std::time::Instant::now();
            for key in self.keys() {
                std::hint::black_box(lookup(key, &mut buffer));
                std::hint::black_box(&mut buffer);
            }
            start.elapsed()
        };
        pass();
        let (mut spent, mut passes) = (std::time::Duration::ZERO, 0_u32);
        while passes == 0 || spent < budget {
            spent += pass();
            passes += 1;
        }
        spent.as_nanos() as f64 / (f64::from(passes) * self.count() as f64)
    }
}

/// SplitMix64's finalizer.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_unique_and_routes() {
        let keys: HashSet<_> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
        assert!(keys.iter().all(|key| (18..=48).contains(&key.len())));
        assert!(keys.iter().all(|key| key.contains(&b'/') && key.contains(&b':')));
    }

    #[test]
    fn queries_cover_every_route_once() {
        let queries = Queries::shuffled(1000);
        let routes: HashSet<_> = (0..1000).map(|at| queries.route(at)).collect();
        assert_eq!(routes.len(), 1000);
        for (at, found) in queries.keys().enumerate() {
            assert_eq!(found, key(queries.route(at)));
        }
    }

    #[test]
    fn a_wrong_value_is_noticed() {
        let queries = Queries::shuffled(10);
        assert!(queries.verify(|_, _| Some(3)).is_err());
    }
}
