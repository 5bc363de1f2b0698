//! Quantities of resources, converted to numbers for `resourceFieldRef`.

/// The quantity in billionths, of `100m`, `1.5`, `128Mi`, `1e3`; `None` if it is invalid or too large.
fn nanos(text: &str) -> Option<u128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let places = u32::try_from(fraction.len()).ok()?;
    let (factor, exponent) = match suffix {
        "n" => (1, 0),
        "u" => (1, 3),
        "m" => (1, 6),
        "" => (1, 9),
        "k" => (1, 12),
        "M" => (1, 15),
        "G" => (1, 18),
        "T" => (1, 21),
        "P" => (1, 24),
        "E" => (1, 27),
        "Ki" => (1 << 10, 9),
        "Mi" => (1 << 20, 9),
        "Gi" => (1 << 30, 9),
        "Ti" => (1 << 40, 9),
        "Pi" => (1 << 50, 9),
        "Ei" => (1 << 60, 9),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (1, u32::try_from(power.checked_add(9)?).ok()?)
        }
    };
    let scaled = digits
        .checked_mul(factor)?
        .checked_mul(10u128.checked_pow(exponent)?)?;
    Some(scaled.div_ceil(10u128.checked_pow(places)?))
}

/// The quantity divided by the divisor, rounded up as in the kubelet. A divisor of 0 counts as 1.
pub(super) fn divided(quantity: &str, divisor: Option<&str>) -> Option<u128> {
    let divisor = match divisor.map(nanos) {
        None | Some(Some(0)) => nanos("1")?,
        Some(divisor) => divisor?,
    };
    Some(nanos(quantity)?.div_ceil(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_kubelet_rounds() {
        for (quantity, divisor, wanted) in [
            ("1", None, Some(1)),
            ("100m", None, Some(1)),
            ("100m", Some("1m"), Some(100)),
            ("1.5", Some("1m"), Some(1500)),
            ("1.5", Some("0"), Some(2)),
            ("0", None, Some(0)),
            ("128Mi", None, Some(134_217_728)),
            ("128Mi", Some("1Mi"), Some(128)),
            ("1Gi", Some("1M"), Some(1074)),
            ("1e3", None, Some(1000)),
            ("15E-1", None, Some(2)),
            ("500k", Some("1k"), Some(500)),
            (".5", Some("1m"), Some(500)),
            ("1.", None, Some(1)),
            ("8Ei", None, Some(9_223_372_036_854_775_808)),
            ("", None, None),
            ("-1", None, None),
            ("1.2.3", None, None),
            ("1x", None, None),
            ("1e999999", None, None),
            ("99999999999999999999999999999999999999E", None, None),
            ("1", Some("x"), None),
        ] {
            assert_eq!(
                divided(quantity, divisor),
                wanted,
                "{quantity} / {divisor:?}"
            );
        }
    }
}
