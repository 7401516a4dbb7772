//! What a program uses to ask the guard agent for a decision.
//!
//! ```text
//!   Question ─ wire::encode_question ─▶ call "decide" ─▶ guard agent: Cedar policies
//!   Verdict  ◀─ wire::decode_verdict ───────────────────┘
//! ```
//! The bytes are in [`wire`]: eight numbers and some text, so that C and Python ask without a library of their own (`docs/guard.md`).
//! Who gets no verdict decides for himself what that means; a guard would deny.
#![forbid(unsafe_code)]

mod client;
pub mod wire;

pub use client::{DECIDE, GuardClient, GuardError, HEALTH, MAX_HEALTH_LEN, MAX_QUESTION_LEN};
pub use wire::{Decision, Question, Verdict, WireError};
