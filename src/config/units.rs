//! Quantities as they are written: durations, sizes and shares carry a unit, always.

use std::time::Duration;

/// Why a quantity was refused, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError {
    pub what: &'static str,
    pub remedy: String,
}

/// What a duration may be.
pub const DURATION_ALLOWED: &str = r#"a number and a unit: "500ms", "10s", "5m", "1h", "7d" (or several: "1h30m")"#;
/// What a size may be.
pub const SIZE_ALLOWED: &str = r#"a number and a unit: "512B", "64KiB", "512MiB", "2GiB", or decimal "512MB", "2GB""#;
/// What a share may be.
pub const SHARE_ALLOWED: &str = r#"a share in percent: "60%""#;

/// What a rate may be.
pub const RATE_ALLOWED: &str = r#"a number, a slash and a unit of time: "10/s", "100/m", "5000/h", "100000/d", or "off""#;

/// Longest duration that is taken: ten years.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
];

/// Reads `500ms`, `1h30m`; at most [`DURATION_MAX`].
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    let mut total = 0u64;
    let mut rest = text;
    if text.is_empty() {
        return Err(UnitError { what: "an empty duration", remedy: r#"write for example "10s""#.into() });
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or_else(|| not_a_duration(text))?;
        let unit_length = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        if unit.is_empty() {
            return Err(UnitError { what: "a duration needs a unit", remedy: format!("write \"{text}s\" if seconds are meant") });
        }
        let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| unknown_duration_unit(number, unit))?;
        total = number.checked_mul(*factor).and_then(|ms| total.checked_add(ms)).unwrap_or(u64::MAX);
        rest = after;
    }
    match Duration::from_millis(total) {
        length if length > DURATION_MAX => Err(UnitError { what: "longer than ten years", remedy: "write at most \"3650d\"".into() }),
        length => Ok(length),
    }
}

fn not_a_duration(text: &str) -> UnitError {
    UnitError { what: "not a duration", remedy: format!("write a whole number and a unit instead of \"{text}\", for example \"1500ms\"") }
}

fn unknown_duration_unit(number: u64, unit: &str) -> UnitError {
    let meant = match unit.to_ascii_lowercase().as_str() {
        "sec" | "secs" | "second" | "seconds" | "s" => "s",
        "min" | "mins" | "minute" | "minutes" | "m" => "m",
        "hr" | "hrs" | "hour" | "hours" | "h" => "h",
        "day" | "days" | "d" => "d",
        "msec" | "millis" | "milliseconds" | "ms" => "ms",
        "w" | "week" | "weeks" => {
            return UnitError { what: "not a unit of time", remedy: format!("write \"{}d\"", number.saturating_mul(7)) };
        }
        _ => return UnitError { what: "not a unit of time", remedy: "the units are ms, s, m, h, d".into() },
    };
    UnitError { what: "not a unit of time", remedy: format!("write \"{number}{meant}\"") }
}

/// Reads `64KiB`, `512MB`.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let text = text.trim();
    let Some((number, unit)) = leading_number(text) else {
        return Err(UnitError { what: "not a size", remedy: r#"write a whole number and a unit, for example "64MiB""#.into() });
    };
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Err(UnitError {
            what: "a size needs a unit",
            remedy: format!("write \"{number}B\" if bytes are meant, or \"{number}MiB\""),
        });
    }
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else { return Err(unknown_size_unit(number, unit)) };
    number
        .checked_mul(*factor)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or(UnitError { what: "a size beyond reason", remedy: "write less".into() })
}

/// Other servers read `10m` as binary: say so instead of guessing.
fn unknown_size_unit(number: u64, unit: &str) -> UnitError {
    let what = "not a unit of size";
    let letter = unit.chars().next().unwrap_or_default().to_ascii_uppercase();
    match letter {
        'K' | 'M' | 'G' | 'T' => {
            UnitError { what, remedy: format!("write \"{number}{letter}iB\" (binary) or \"{number}{letter}B\" (decimal)") }
        }
        'B' => UnitError { what, remedy: format!("write \"{number}B\"") },
        _ => UnitError { what, remedy: "the units are B, KiB, MiB, GiB, TiB, and KB, MB, GB, TB".into() },
    }
}

/// Reads `60%` as 0.6; 0 to 100.
pub fn share(text: &str) -> Result<f64, UnitError> {
    let what = "not a share";
    let Some(number) = text.trim().strip_suffix('%') else {
        return Err(UnitError { what: "a share needs a percent sign", remedy: r#"write for example "60%""#.into() });
    };
    match number.trim().parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        Ok(_) => Err(UnitError { what: "a share outside 0% to 100%", remedy: r#"write for example "60%""#.into() }),
        Err(_) => Err(UnitError { what, remedy: r#"write for example "60%""#.into() }),
    }
}

/// Reads `100/s`: how many, in how many seconds; `off` is none.
pub fn rate(text: &str) -> Result<Option<(u32, u64)>, UnitError> {
    let text = text.trim();
    if text == "off" {
        return Ok(None);
    }
    let example = || r#"write for example "100/s", or "off""#.to_owned();
    let Some((number, unit)) = leading_number(text) else { return Err(UnitError { what: "not a rate", remedy: example() }) };
    let Some(unit) = unit.strip_prefix('/') else {
        return Err(UnitError {
            what: "a rate needs a unit of time",
            remedy: format!("write \"{number}/s\" if that many a second are meant"),
        });
    };
    let Some((_, seconds)) = RATE_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError { what: "not a unit of time for rates", remedy: "the units are s, m, h, d".into() });
    };
    match u32::try_from(number) {
        Ok(count @ 1..=RATE_MAX) => Ok(Some((count, *seconds))),
        _ => Err(UnitError { what: "a rate out of bounds", remedy: format!("write 1 to {RATE_MAX}, or \"off\"") }),
    }
}

const RATE_UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
/// Most that is taken for a number of a rate.
const RATE_MAX: u32 = 1_000_000_000;

/// A rate as [`rate`] reads it.
pub fn print_rate(count: u32, seconds: u64) -> String {
    let unit = RATE_UNITS.iter().find(|(_, length)| *length == seconds).map_or("s", |(name, _)| name);
    format!("{count}/{unit}")
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// A duration as [`duration`] reads it, in the largest unit that is exact.
pub fn print_duration(length: Duration) -> String {
    let ms = length.as_millis() as u64;
    let (unit, factor) = DURATION_UNITS.iter().find(|(_, factor)| ms != 0 && ms.is_multiple_of(*factor)).unwrap_or(&("s", 1000));
    format!("{}{unit}", ms / factor)
}

/// A size as [`size`] reads it, in the largest binary unit that is exact.
pub fn print_size(bytes: u64) -> String {
    let binary = &SIZE_UNITS[..4];
    let (unit, factor) = binary.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor)).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// A share as [`share`] reads it.
pub fn print_share(share: f64) -> String {
    format!("{}%", (share * 1e6).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_units() {
        for (text, ms) in
            [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("7d", 604_800_000), ("1h30m", 5_400_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("300").unwrap_err().remedy, "write \"300s\" if seconds are meant");
        assert_eq!(duration("5min").unwrap_err().remedy, "write \"5m\"");
        assert_eq!(duration("2w").unwrap_err().remedy, "write \"14d\"");
        for bad in ["", "s", "-1s", "1.5s", "10 s", "1h30", "99999999999999999999s", "36500d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units_and_binary_is_not_decimal() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("512MB"), Ok(512_000_000));
        assert_eq!(size("0B"), Ok(0));
        assert_eq!(size("10m").unwrap_err().remedy, "write \"10MiB\" (binary) or \"10MB\" (decimal)");
        assert_eq!(size("100").unwrap_err().what, "a size needs a unit");
        for bad in ["", "MiB", "-1B", "1.5GiB", "99999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_percent() {
        assert_eq!(share("60%"), Ok(0.6));
        assert_eq!(share("12.5%"), Ok(0.125));
        for bad in ["60", "0.6", "101%", "-1%", "NaN%", "%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_a_number_in_a_time() {
        for (text, count, seconds) in [("1/s", 1, 1), ("100/m", 100, 60), ("5000/h", 5000, 3600), ("7/d", 7, 86_400)] {
            assert_eq!(rate(text), Ok(Some((count, seconds))), "{text}");
            assert_eq!(print_rate(count, seconds), text);
        }
        assert_eq!(rate("off"), Ok(None));
        assert_eq!(rate("100").unwrap_err().remedy, "write \"100/s\" if that many a second are meant");
        for bad in ["", "/s", "0/s", "-1/s", "1.5/s", "10/ms", "10 /s", "10/s/s", "9999999999/s", "on"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(ms in 0u64..DURATION_MAX.as_millis() as u64, bytes in 0u64..i64::MAX as u64, percent in 0u32..=1000) {
            prop_assert_eq!(duration(&print_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
            prop_assert_eq!(size(&print_size(bytes)), Ok(bytes));
            let part = f64::from(percent) / 1000.0;
            prop_assert!((share(&print_share(part)).unwrap() - part).abs() < 1e-9);
        }

        #[test]
        fn no_text_makes_them_panic(text in "\\PC{0,20}") {
            let _ = (duration(&text), size(&text), share(&text), rate(&text));
        }
    }
}
