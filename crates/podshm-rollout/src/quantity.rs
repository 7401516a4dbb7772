//! Quantities of Kubernetes as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths (of a core, of a byte, of a pod), rounded up; 0 for what is no quantity, which the API server admits nowhere.
pub(crate) fn milli(quantity: &Quantity) -> i128 {
    let text = quantity.0.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && !"+-.".contains(letter)).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let Ok(number) = number.parse::<f64>() else { return 0 };
    let binary = |power: i32| 1024f64.powi(power) * 1000.0;
    let factor = match unit {
        "n" => 1e-6,
        "u" => 1e-3,
        "m" => 1.0,
        "" => 1e3,
        "k" => 1e6,
        "M" => 1e9,
        "G" => 1e12,
        "T" => 1e15,
        "P" => 1e18,
        "E" => 1e21,
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        // 1e3, 5E2
        _ => match unit.get(1..).and_then(|power| power.parse::<i32>().ok()) {
            Some(power) if unit.starts_with(['e', 'E']) => 10f64.powi(power) * 1000.0,
            _ => return 0,
        },
    };
    (number * factor).ceil() as i128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_what_the_api_means() {
        for (text, expected) in [
            ("100m", 100),
            ("2", 2_000),
            ("0.5", 500),
            ("1Ki", 1_024_000),
            ("64Mi", 67_108_864_000),
            ("1G", 1_000_000_000_000),
            ("1e3", 1_000_000),
            ("5E2", 500_000),
            ("500u", 1),
            ("many", 0),
            ("", 0),
        ] {
            assert_eq!(milli(&Quantity(text.into())), expected, "{text}");
        }
    }
}
