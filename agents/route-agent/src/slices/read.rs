//! Lists and watch events out of streams: item by item, line by line, so that one bad object costs only itself.

use std::{
    cell::Cell,
    fmt,
    io::{self, BufRead, Read},
    rc::Rc,
};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::{RawValue, Value};

use super::{Slice, SliceError, SliceName, check::check, cut, raw};

/// The longest single object in bytes. An API server stores no more than about 1.5 MiB.
pub const MAX_OBJECT_LEN: usize = 16 << 20;

/// What a list said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    /// The slices that can be used.
    pub slices: Vec<Slice>,
    /// What could not.
    pub bad: Vec<SliceError>,
    /// Whether the list was read to its end. Only a complete list says that a slice is gone.
    pub complete: bool,
}

/// Reads a list: the output of `kubectl get endpointslices -A -o json`, or a typed `EndpointSliceList`.
///
/// Each item is parsed by itself and never more than one is held as text. A broken item inside sound JSON is one entry in
/// [`List::bad`]; broken JSON ends the list there, and it is not [`complete`](List::complete).
pub fn parse_list(input: impl Read) -> List {
    let left = Rc::new(Cell::new(MAX_OBJECT_LEN));
    let input = io::BufReader::new(Bounded { input, left: left.clone() });
    let mut json = serde_json::Deserializer::from_reader(input);
    let mut list = List::default();
    let read =
        TopLevel { list: &mut list, left: &left }.deserialize(&mut json).and_then(|items| json.end().map(|()| items));
    let what = "endpointslice list".to_owned();
    match read {
        Ok(true) => list.complete = true,
        Ok(false) => {
            list.bad.push(SliceError::Json { what, name: None, expected: "an `items` array", found: "none".into() })
        }
        Err(_) if left.get() == 0 => {
            let what = format!("endpointslice list, item {}", list.slices.len() + list.bad.len());
            list.bad.push(SliceError::TooLong { what, limit: MAX_OBJECT_LEN });
        }
        Err(e) if e.is_io() => list.bad.push(SliceError::Input { what, found: e.to_string() }),
        Err(e) => list.bad.push(SliceError::Json {
            what,
            name: None,
            expected: "a whole json list of EndpointSlices",
            found: cut(&e.to_string()),
        }),
    }
    list
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A slice is new or changed; both are the same to the agent, as a watch may repeat itself.
    Applied(Slice),
    /// A slice is gone.
    Deleted {
        /// Which slice.
        name: SliceName,
        /// The version at which it went, or 0.
        resource_version: u64,
    },
    /// Nothing changed up to this version.
    Bookmark {
        /// The version, or 0.
        resource_version: u64,
    },
    /// The API server ends the watch; 410 means that it must start over from a list.
    Error {
        /// The HTTP code, or 0.
        code: u16,
        /// What it says.
        message: String,
    },
}

/// Parses one watch event, `{"type":"MODIFIED","object":{…}}`. `what` names the place in errors.
pub fn parse_event(line: &[u8], what: &str) -> Result<WatchEvent, SliceError> {
    #[derive(serde::Deserialize)]
    struct Envelope<'a> {
        r#type: String,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let what = || what.to_owned();
    let json = |e: serde_json::Error, name, expected| SliceError::Json {
        what: what(),
        name,
        expected,
        found: cut(&e.to_string()),
    };
    if line.len() > MAX_OBJECT_LEN {
        return Err(SliceError::TooLong { what: what(), limit: MAX_OBJECT_LEN });
    }
    let event: Envelope<'_> =
        serde_json::from_slice(line).map_err(|e| json(e, None, "a watch event with a type and an object"))?;
    match event.r#type.as_str() {
        "ADDED" | "MODIFIED" => parse_slice(event.object, &what()).map(WatchEvent::Applied),
        "DELETED" => {
            // Whatever else is wrong with it, it is gone.
            let (name, resource_version) = named(event.object);
            let missing = SliceError::Json {
                what: what(),
                name: None,
                expected: "a deleted slice's namespace and name",
                found: "none".into(),
            };
            name.map(|name| WatchEvent::Deleted { name, resource_version }).ok_or(missing)
        }
        "BOOKMARK" => Ok(WatchEvent::Bookmark { resource_version: named(event.object).1 }),
        "ERROR" => {
            let status: raw::Status =
                serde_json::from_str(event.object.get()).map_err(|e| json(e, None, "a Status"))?;
            Ok(WatchEvent::Error { code: status.code.unwrap_or(0), message: cut(&status.message.unwrap_or_default()) })
        }
        found => Err(SliceError::Json {
            what: what(),
            name: named(event.object).0,
            expected: "type ADDED, MODIFIED, DELETED, BOOKMARK or ERROR",
            found: format!("{:?}", cut(found)),
        }),
    }
}

/// Watch events of a stream, one JSON object a line. Empty lines are passed over; a line that can't be used is an error,
/// and the next call goes on with the next line. After an error of the input itself it ends.
#[derive(Debug)]
pub struct WatchLines<R> {
    input: R,
    what: String,
    line: u64,
    buffer: Vec<u8>,
    ended: bool,
}

impl<R: BufRead> WatchLines<R> {
    /// Reads events from `input`, which errors call `what`.
    pub fn new(input: R, what: impl Into<String>) -> Self {
        Self { input, what: what.into(), line: 0, buffer: Vec::new(), ended: false }
    }

    fn step(&mut self) -> Result<Option<WatchEvent>, SliceError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let limit = MAX_OBJECT_LEN as u64 + 1;
            let read = (&mut self.input).take(limit).read_until(b'\n', &mut self.buffer);
            let what = format!("{} line {}", self.what, self.line);
            let n = match read {
                Ok(n) => n,
                Err(e) => {
                    self.ended = true;
                    return Err(SliceError::Input { what, found: e.to_string() });
                }
            };
            if n == 0 {
                self.ended = true;
                return Ok(None);
            }
            if n as u64 == limit && self.buffer.last() != Some(&b'\n') {
                self.buffer = Vec::new();
                self.ended = self.input.skip_until(b'\n').is_err();
                return Err(SliceError::TooLong { what, limit: MAX_OBJECT_LEN });
            }
            let line = self.buffer.trim_ascii();
            if !line.is_empty() {
                return parse_event(line, &what).map(Some);
            }
        }
    }
}

impl<R: BufRead> Iterator for WatchLines<R> {
    type Item = Result<WatchEvent, SliceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended { None } else { self.step().transpose() }
    }
}

/// Takes an EndpointSlice that was parsed already, as far as JSON goes.
pub fn parse_value(object: &Value) -> Result<Slice, SliceError> {
    let raw = raw::Slice::deserialize(object);
    check(raw.map_err(|e| no_slice(&e, named_in(raw::Named::deserialize(object)).0, "an object of the API server"))?)
}

fn parse_slice(object: &RawValue, what: &str) -> Result<Slice, SliceError> {
    let raw = serde_json::from_str(object.get());
    check(raw.map_err(|e| no_slice(&e, named(object).0, what))?)
}

fn no_slice(error: &serde_json::Error, name: Option<SliceName>, what: &str) -> SliceError {
    let what = name.as_ref().map_or_else(|| what.to_owned(), |name| format!("slice {name}"));
    SliceError::Json { what, name, expected: "an EndpointSlice", found: cut(&error.to_string()) }
}

/// Name and version, as far as they can be made out.
fn named(object: &RawValue) -> (Option<SliceName>, u64) {
    named_in(serde_json::from_str(object.get()))
}

fn named_in(read: Result<raw::Named, serde_json::Error>) -> (Option<SliceName>, u64) {
    let Ok(raw::Named { metadata }) = read else {
        return (None, 0);
    };
    let version = metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or(0);
    let part = |text: Option<String>| text.filter(|t| (1..=253).contains(&t.len()));
    let name = part(metadata.namespace).zip(part(metadata.name));
    (name.map(|(namespace, name)| SliceName { namespace: namespace.into(), name: name.into() }), version)
}

/// Lets through at most `left` bytes, which is set anew for each item.
struct Bounded<R> {
    input: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(self.left.get());
        if most == 0 && !buf.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "object too long"));
        }
        let n = self.input.read(&mut buf[..most])?;
        self.left.set(self.left.get() - n);
        Ok(n)
    }
}

/// The list's object: says whether it had `items`.
struct TopLevel<'a> {
    list: &'a mut List,
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for TopLevel<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of EndpointSlices")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items { list: &mut *self.list, left: self.left })?;
                seen = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(seen)
    }
}

/// The items, each by itself.
struct Items<'a> {
    list: &'a mut List,
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of EndpointSlices")
    }

    /// An empty list may be null.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut item = 0u64;
        while let Some(object) = items.next_element::<Box<RawValue>>()? {
            match parse_slice(&object, &format!("endpointslice list, item {item}")) {
                Ok(slice) => self.list.slices.push(slice),
                Err(error) => self.list.bad.push(error),
            }
            item += 1;
            self.left.set(MAX_OBJECT_LEN);
        }
        Ok(())
    }
}
