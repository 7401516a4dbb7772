//! For the project's own fuzz targets: what is private and decodes a peer's bytes. No part of the API.

use crate::frames::{REQUEST, RESPONSE, RequestHead, ResponseHead};

/// A request's head: number, deadline, total, and the head written anew.
pub fn request_head(bytes: &[u8]) -> Option<(u64, u64, u32, [u8; REQUEST])> {
    RequestHead::decode(bytes).map(|head| (head.id, head.deadline, head.total, head.encode()))
}

/// A response's head: number, total, status, and the head written anew.
pub fn response_head(bytes: &[u8]) -> Option<(u64, u32, u32, [u8; RESPONSE])> {
    ResponseHead::decode(bytes).map(|head| (head.id, head.total, head.status, head.encode()))
}
