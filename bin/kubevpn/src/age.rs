//! Durations in kubectl's format of ages: `45s`, `3m20s`, `5h`, `2d3h`.

/// At most two units; only one if the second would be zero or too small.
pub(crate) fn age(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let two = |big: u64, unit: &str, small: u64, of: &str| {
        let (whole, rest) = (seconds / big, seconds % big / small);
        match rest {
            0 => format!("{whole}{unit}"),
            rest => format!("{whole}{unit}{rest}{of}"),
        }
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => two(MINUTE, "m", 1, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(HOUR, "h", MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(DAY, "d", HOUR, "h"),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000..252_288_000 => two(YEAR, "y", DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubectl_has_it() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (700, "11m"),
            (3 * 3600, "3h"),
            (5 * 3600 + 61, "5h1m"),
            (30 * 3600, "30h"),
            (51 * 3600, "2d3h"),
            (10 * 86_400, "10d"),
            (3 * 365 * 86_400, "3y"),
            (9 * 365 * 86_400, "9y"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
