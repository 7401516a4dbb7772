//! Questions and verdicts as bytes. Numbers are little-endian, text is UTF-8.
//!
//! ```text
//! question   0       1       2           4        6          8         12
//!            │ 1 u8  │ 0 u8  │ principal │ action │ resource │ context │ the four texts, one after the other
//!            version  flags    lengths: u16, u16, u16, u32
//!
//! verdict    0       1          2         4          8                16
//!            │ 1 u8  │ decision │ reasons │ message  │ policies       │ message
//!            version   u8         u16       length u32 fingerprint u64
//! ```
//! Decisions: 0 deny, 1 allow, 2 none, because the question can't be decided (the message says why; take it for a deny).
//! For the other two the message names the policies that decided, one a line, and after them, as `error: …`, those that could not be
//! evaluated. *Reasons* is how many policies decided.

/// Of both messages.
pub const VERSION: u8 = 1;
const QUESTION_HEADER: usize = 12;
const VERDICT_HEADER: usize = 16;

/// What is asked, in Cedar's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question<'a> {
    /// Who: `User::"alice"`. Empty: the pod that asks, `Pod::"namespace/name"`, as the broker knows it.
    pub principal: &'a str,
    /// Does what: `Action::"read"`.
    pub action: &'a str,
    /// With what: `Document::"plan"`.
    pub resource: &'a str,
    /// Under which circumstances: a JSON object. Empty: none. The agent adds `podshm`, who asks: it can't be given.
    pub context: &'a str,
}

/// What the policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No policy permits it, or one forbids it.
    Deny,
    /// A policy permits it, and none forbids it.
    Allow,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is.
    pub decision: Decision,
    /// Fingerprint of the policies, schema and entities that decided: equal where those are.
    pub policies: u64,
    /// Policies that decided. None where nothing permits it.
    pub reasons: Vec<String>,
    /// Policies that could not be evaluated for this question, and why.
    pub errors: Vec<String>,
}

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Another version.
    #[error("{what} of version {found}: expected {VERSION}; use a client of the agent's release")]
    Version {
        /// Question or verdict.
        what: &'static str,
        /// What it says.
        found: u8,
    },
    /// Not as long as it says.
    #[error("{what} of {found} bytes: its lengths say {expected}")]
    Length {
        /// Question or verdict.
        what: &'static str,
        /// By its header.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// A field that has no such value.
    #[error("{what}: {field} is {found}, which this release does not know")]
    Field {
        /// Question or verdict.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u8,
    },
    /// A text that is too long for its length.
    #[error("{field} of {found} bytes: expected at most {most}")]
    TooLong {
        /// Which text.
        field: &'static str,
        /// Its length.
        found: usize,
        /// What its length can say.
        most: usize,
    },
    /// A text that is none.
    #[error("{what}: text is not UTF-8")]
    NoText {
        /// Question or verdict.
        what: &'static str,
    },
    /// The agent could not decide.
    #[error("the guard agent could not decide: {why}")]
    Undecided {
        /// In its words.
        why: String,
    },
}

/// Writes a question.
pub fn encode_question(question: &Question<'_>) -> Result<Vec<u8>, WireError> {
    let names = [("principal", question.principal), ("action", question.action), ("resource", question.resource)];
    let mut bytes = vec![VERSION, 0];
    for (field, text) in names {
        let len = u16::try_from(text.len());
        let len = len.map_err(|_| WireError::TooLong { field, found: text.len(), most: u16::MAX.into() })?;
        bytes.extend(len.to_le_bytes());
    }
    let (field, found) = ("context", question.context.len());
    let len = u32::try_from(found).map_err(|_| WireError::TooLong { field, found, most: u32::MAX as usize })?;
    bytes.extend(len.to_le_bytes());
    for (_, text) in names {
        bytes.extend(text.as_bytes());
    }
    bytes.extend(question.context.as_bytes());
    Ok(bytes)
}

/// Reads a question, whatever the bytes are.
pub fn decode_question(bytes: &[u8]) -> Result<Question<'_>, WireError> {
    let what = "question";
    let header = header::<QUESTION_HEADER>(what, bytes)?;
    if header[1] != 0 {
        return Err(WireError::Field { what, field: "flags", found: header[1] });
    }
    let lens =
        [u16_at(header, 2).into(), u16_at(header, 4).into(), u16_at(header, 6).into(), u32_at(header, 8) as usize];
    let expected = lens.iter().fold(QUESTION_HEADER, |all, len| all.saturating_add(*len));
    if bytes.len() != expected {
        return Err(WireError::Length { what, expected, found: bytes.len() });
    }
    let mut rest = &bytes[QUESTION_HEADER..];
    let mut texts = [""; 4];
    for (text, len) in texts.iter_mut().zip(lens) {
        let (head, tail) = rest.split_at(len);
        *text = str::from_utf8(head).map_err(|_| WireError::NoText { what })?;
        rest = tail;
    }
    let [principal, action, resource, context] = texts;
    Ok(Question { principal, action, resource, context })
}

/// Writes a verdict, shortened so that it is no longer than `longest`.
pub fn encode_verdict(verdict: &Verdict, longest: usize) -> Vec<u8> {
    let mut message = verdict.reasons.join("\n");
    for error in &verdict.errors {
        let line = error.replace('\n', " ");
        message.push_str(if message.is_empty() { "error: " } else { "\nerror: " });
        message.push_str(&line);
    }
    let decision = match verdict.decision {
        Decision::Deny => 0,
        Decision::Allow => 1,
    };
    encode(decision, verdict.reasons.len(), verdict.policies, &message, longest)
}

/// Writes that a question can't be decided.
pub fn encode_undecided(why: &str, policies: u64, longest: usize) -> Vec<u8> {
    encode(2, 0, policies, why, longest)
}

fn encode(decision: u8, reasons: usize, policies: u64, message: &str, longest: usize) -> Vec<u8> {
    let mut end = message.len().min(longest.saturating_sub(VERDICT_HEADER));
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = &message[..end];
    let mut bytes = vec![VERSION, decision];
    bytes.extend(u16::try_from(reasons).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend((message.len() as u32).to_le_bytes());
    bytes.extend(policies.to_le_bytes());
    bytes.extend(message.as_bytes());
    bytes
}

/// Reads a verdict.
pub fn decode_verdict(bytes: &[u8]) -> Result<Verdict, WireError> {
    let what = "verdict";
    let header = header::<VERDICT_HEADER>(what, bytes)?;
    let len = u32_at(header, 4) as usize;
    let message = &bytes[VERDICT_HEADER..];
    if message.len() != len {
        return Err(WireError::Length { what, expected: VERDICT_HEADER.saturating_add(len), found: bytes.len() });
    }
    let message = str::from_utf8(message).map_err(|_| WireError::NoText { what })?;
    let decision = match header[1] {
        0 => Decision::Deny,
        1 => Decision::Allow,
        2 => return Err(WireError::Undecided { why: message.to_owned() }),
        found => return Err(WireError::Field { what, field: "decision", found }),
    };
    let (mut reasons, mut errors) = (Vec::new(), Vec::new());
    for line in message.lines() {
        match line.strip_prefix("error: ") {
            Some(error) => errors.push(error.to_owned()),
            None => reasons.push(line.to_owned()),
        }
    }
    let mut policies = [0; 8];
    policies.copy_from_slice(&header[8..16]);
    Ok(Verdict { decision, policies: u64::from_le_bytes(policies), reasons, errors })
}

fn header<'a, const LEN: usize>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8; LEN], WireError> {
    let header = bytes.first_chunk::<LEN>().ok_or(WireError::Length { what, expected: LEN, found: bytes.len() })?;
    if header[0] == VERSION { Ok(header) } else { Err(WireError::Version { what, found: header[0] }) }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
