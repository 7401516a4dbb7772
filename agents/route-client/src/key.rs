//! The name of a route: `namespace/service:port`.
//!
//! `port` is the **name** of the port as the EndpointSlice gives it. A port without a name (allowed for a service with
//! a single port) goes by its **number** in the slice, which is the port the pods listen on, not the service's own. The
//! two never collide: Kubernetes wants at least one letter in a port name.

use std::{fmt, str::FromStr};

use xxhash_rust::xxh3::xxh3_64;

/// The longest key in bytes, as a podshm table takes it.
pub const MAX_KEY_LEN: usize = 255;

/// A route's name, checked once: three non-empty parts of printable ASCII without `/`, `:` or spaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    text: String,
    slash: usize,
    colon: usize,
}

/// Why a text is no route key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not of the shape `namespace/service:port`.
    #[error("expected a route key `namespace/service:port`, found {found:?}; write it as in `shop/cart:http`")]
    Shape {
        /// The text, cut to 80 characters.
        found: String,
    },
    /// One of the parts is empty or has a character that it must not have.
    #[error(
        "expected {part} of a route key to be printable ascii without `/`, `:` or spaces, found {found:?}; use the name that \
         the cluster gives it"
    )]
    Part {
        /// Which part: `namespace`, `service` or `port`.
        part: &'static str,
        /// The part, cut to 80 characters.
        found: String,
    },
    /// Longer than a table key can be.
    #[error(
        "expected a route key of at most {MAX_KEY_LEN} bytes, found {found}; shorten the service's or the port's name"
    )]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
}

impl RouteKey {
    /// Puts a key together from its parts; `port` is the port's name, or its number if it has none.
    pub fn new(namespace: &str, service: &str, port: &str) -> Result<Self, KeyError> {
        for (part, text) in [("namespace", namespace), ("service", service), ("port", port)] {
            let good = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
            if text.is_empty() || !text.bytes().all(good) {
                return Err(KeyError::Part { part, found: cut(text) });
            }
        }
        let found = namespace.len().saturating_add(service.len()).saturating_add(port.len()).saturating_add(2);
        if found > MAX_KEY_LEN {
            return Err(KeyError::TooLong { found });
        }
        let slash = namespace.len();
        Ok(Self { text: format!("{namespace}/{service}:{port}"), slash, colon: slash + 1 + service.len() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.text[..self.slash]
    }

    /// The service's name.
    pub fn service(&self) -> &str {
        &self.text[self.slash + 1..self.colon]
    }

    /// The port's name, or its number if it has none.
    pub fn port(&self) -> &str {
        &self.text[self.colon + 1..]
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The bytes under which the agent's table holds the route.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// The route's id: xxh3 of the key's bytes. Reports and route values name the route by it.
    pub fn id(&self) -> u64 {
        xxh3_64(self.as_bytes())
    }
}

impl FromStr for RouteKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let shape = || KeyError::Shape { found: cut(text) };
        let (namespace, rest) = text.split_once('/').ok_or_else(shape)?;
        let (service, port) = rest.split_once(':').ok_or_else(shape)?;
        Self::new(namespace, service, port)
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteKey({})", self.text)
    }
}

/// Foreign text in an error stays short.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        let key: RouteKey = "shop/cart:http".parse().unwrap();
        assert_eq!((key.namespace(), key.service(), key.port()), ("shop", "cart", "http"));
        assert_eq!(key, RouteKey::new("shop", "cart", "http").unwrap());
        assert_eq!(key.to_string(), "shop/cart:http");
    }

    #[test]
    fn bad_keys_say_what_was_expected() {
        for bad in [
            "",
            "cart",
            "shop/cart",
            "shop:http",
            "/cart:http",
            "shop/:http",
            "shop/cart:",
            "a/b/c:d",
            "a/b:c:d",
            "a/b :c",
            "a/bé:c",
        ] {
            let error = bad.parse::<RouteKey>().unwrap_err().to_string();
            assert!(error.starts_with("expected") && error.contains("found") && error.contains(';'), "{error}");
        }
        let long = "x".repeat(254);
        assert_eq!(RouteKey::new("n", &long, "p").unwrap_err(), KeyError::TooLong { found: 258 });
        assert_eq!(RouteKey::new("n", &"x".repeat(251), "p").unwrap().as_bytes().len(), MAX_KEY_LEN);
    }
}
