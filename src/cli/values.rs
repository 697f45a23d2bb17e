//! Values with units.

use std::time::Duration;

/// A size in bytes: a whole number with an optional binary unit, `K`, `M`, `G` or `T`.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("{unit:?} is no unit; use K, M, G or T, as in 2G")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("{digits:?} is not a whole number; use for example 2G"))?;
    number.checked_shl(shift).filter(|n| n >> shift == number).ok_or_else(|| format!("{text} is too large"))
}

/// A length of time: `90`, `90s`, `5m`, `1h 30m`. A bare number is in seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())?,
        Err(_) => humantime::parse_duration(text).map_err(|e| format!("{e}; use for example 90s or 5m"))?,
    };
    if parsed.is_zero() { Err("it must be more than nothing".into()) } else { Ok(parsed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("1k"), Ok(1024));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("7"), Ok(7));
        for wrong in ["", "G", "1.5G", "-1", "1X", "99999999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units_and_are_seconds_without() {
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "0", "-1", "5x"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
