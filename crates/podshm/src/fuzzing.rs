//! For the project's own fuzz targets: what is private and decodes a peer's bytes. No part of the API.

use crate::frames::{REQUEST, RESPONSE, RequestHead, ResponseHead};

/// A request's head: number, deadline, total, and the head written anew.
pub fn request_head(words: [u64; 3]) -> (u64, u64, u32, [u8; REQUEST]) {
    let head = RequestHead::from_words(words[0], words[1], words[2]);
    (head.id, head.deadline, head.total, head.encode())
}

/// A response's head: number, total, status, and the head written anew.
pub fn response_head(words: [u64; 2]) -> (u64, u32, u32, [u8; RESPONSE]) {
    let head = ResponseHead::from_words(words[0], words[1]);
    (head.id, head.total, head.status, head.encode())
}
