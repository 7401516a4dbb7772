//! The wire format: what is written is read, and any bytes at all give an error or a message.

use guard_client::wire::{
    Decision, Question, Verdict, WireError, decode_question, decode_verdict, encode_question, encode_undecided,
    encode_verdict,
};
use proptest::prelude::*;

#[test]
fn the_format_is_as_documented() {
    let question = Question { principal: "P", action: "AA", resource: "RRR", context: "{}" };
    let bytes = encode_question(&question).unwrap();
    assert_eq!(bytes, b"\x01\0\x01\0\x02\0\x03\0\x02\0\0\0PAARRR{}");
    let verdict = Verdict {
        decision: Decision::Allow,
        policies: 0x0102_0304_0506_0708,
        reasons: vec!["a".into(), "b".into()],
        errors: vec!["c: bad\nluck".into()],
    };
    let bytes = encode_verdict(&verdict, 1000);
    let header = b"\x01\x01\x02\0\x16\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01";
    assert_eq!(bytes, [&header[..], b"a\nb\nerror: c: bad luck"].concat());
    let why = decode_verdict(&encode_undecided("no such action", 1, 1000)).unwrap_err();
    assert_eq!(why, WireError::Undecided { why: "no such action".into() });
}

#[test]
fn what_is_no_message_is_named() {
    let good = encode_question(&Question { principal: "P", ..Question::default() }).unwrap();
    assert!(matches!(decode_question(&[]), Err(WireError::Length { expected: 12, found: 0, .. })));
    assert!(matches!(decode_question(&good[..12]), Err(WireError::Length { expected: 13, found: 12, .. })));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert!(matches!(decode_question(&with(0, 2)), Err(WireError::Version { found: 2, .. })));
    assert!(matches!(decode_question(&with(1, 1)), Err(WireError::Field { field: "flags", .. })));
    assert!(matches!(decode_question(&with(11, 255)), Err(WireError::Length { .. })));
    assert!(matches!(decode_question(&with(12, 255)), Err(WireError::NoText { .. })));
    let long = "x".repeat(65536);
    let question = Question { action: &long, ..Question::default() };
    assert!(matches!(encode_question(&question), Err(WireError::TooLong { field: "action", .. })));
    let verdict = encode_undecided("", 0, 100);
    assert!(matches!(decode_verdict(&[&verdict[..], b"x"].concat()), Err(WireError::Length { .. })));
}

proptest! {
    #[test]
    fn questions_come_back(principal in ".{0,40}", action in ".{0,40}", resource in ".{0,40}", context in ".{0,400}") {
        let question = Question { principal: &principal, action: &action, resource: &resource, context: &context };
        let bytes = encode_question(&question).unwrap();
        prop_assert_eq!(decode_question(&bytes).unwrap(), question);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = (decode_question(&bytes), decode_verdict(&bytes));
    }

    #[test]
    fn a_verdict_is_never_longer_than_there_is_room(why in ".{0,200}", longest in 16usize..200) {
        let bytes = encode_undecided(&why, 7, longest);
        prop_assert!(bytes.len() <= longest);
        let undecided = matches!(decode_verdict(&bytes), Err(WireError::Undecided { .. }));
        prop_assert!(undecided);
    }
}
