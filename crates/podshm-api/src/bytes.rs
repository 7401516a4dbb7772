//! Sizes as Kubernetes writes them: `256Mi`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A size as Kubernetes writes it: a whole number of bytes, or of Ki, Mi, Gi or Ti. Never 0 where it was read: a tmpfs of size 0 has no
/// bound at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

const UNITS: [(&str, u32); 4] = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || {
            format!(
                "size {text:?}: expected a whole number of bytes that is not 0, or of Ki, Mi, Gi or Ti, as in \"256Mi\""
            )
        };
        let unit = UNITS.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (number, shift) = unit.unwrap_or((&text, 0));
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes != 0).map(Bytes).ok_or_else(bad)
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        let fits = UNITS.into_iter().find(|(_, shift)| bytes.0 != 0 && bytes.0.is_multiple_of(1 << shift));
        fits.map_or_else(|| bytes.0.to_string(), |(unit, shift)| format!("{}{unit}", bytes.0 >> shift))
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// Whatever passes is one that the node daemon reads: below 2^64.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[1-9]([0-9]{0,14}|[0-9]{0,5}(Ki|Mi|Gi|Ti))$')",
                "message": "expected a whole number of bytes that is not 0, or of Ki, Mi, Gi or Ti, as in 256Mi",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_kubernetes_own() {
        for (text, bytes) in [("4096", 4096), ("3Ki", 3 << 10), ("256Mi", 256 << 20), ("2Gi", 2 << 30)] {
            assert_eq!(Bytes::try_from(text.to_owned()), Ok(Bytes(bytes)));
        }
        assert_eq!(String::from(Bytes(256 << 20)), "256Mi");
        for text in ["", "0", "0Gi", "-1", "1.5Gi", "1 Mi", "99999999999Gi", "1MB", "Mi"] {
            assert!(Bytes::try_from(text.to_owned()).unwrap_err().contains("256Mi"), "{text}");
        }
        // The longest that the schema lets through.
        for text in ["999999Ti", "999999999999999"] {
            Bytes::try_from(text.to_owned()).unwrap();
        }
    }
}
