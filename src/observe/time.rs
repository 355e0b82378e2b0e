//! Instants as text for logs: RFC 3339 in UTC, and the form of the combined log format.

/// An instant of the calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// 9999-12-31T23:59:59.999Z: the last instant with a year of four digits.
const LAST_MS: i64 = 253_402_300_799_999;
const MONTHS: [&[u8; 3]; 12] = [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

impl Civil {
    /// `seconds` since 1970, within what [`Stamp`] lets in. The proleptic Gregorian calendar by counting in eras of 400
    /// years that begin in March, so that the leap day is a year's last.
    fn from_seconds(seconds: i64) -> Self {
        let (days, within) = (seconds / 86_400 + 719_468, seconds % 86_400);
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: (year_of_era + era * 400 + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (within / 3_600) as u8,
            minute: (within / 60 % 60) as u8,
            second: (within % 60) as u8,
        }
    }
}

/// Writes instants, and remembers the text of the last second: lines of a log share it.
#[derive(Debug, Default)]
pub struct Stamp {
    rfc3339: Option<(i64, [u8; 19])>,
    combined: Option<(i64, [u8; 26])>,
}

impl Stamp {
    /// `2026-11-21T22:04:05.123Z`. Instants before 1970 and after 9999 are written as the nearest within.
    pub fn rfc3339(&mut self, wall_ms: i64, out: &mut Vec<u8>) {
        let wall_ms = wall_ms.clamp(0, LAST_MS);
        let (second, ms) = (wall_ms / 1000, (wall_ms % 1000) as u16);
        let text = match self.rfc3339 {
            Some((known, text)) if known == second => text,
            _ => self.rfc3339.insert((second, rfc3339_second(Civil::from_seconds(second)))).1,
        };
        out.extend_from_slice(&text);
        out.push(b'.');
        out.extend_from_slice(&[digit(ms / 100), digit(ms / 10), digit(ms), b'Z']);
    }

    /// `21/Nov/2026:22:04:05 +0000`, as in the combined log format. Clamped likewise.
    pub fn combined(&mut self, wall_ms: i64, out: &mut Vec<u8>) {
        let second = wall_ms.clamp(0, LAST_MS) / 1000;
        let text = match self.combined {
            Some((known, text)) if known == second => text,
            _ => self.combined.insert((second, combined_second(Civil::from_seconds(second)))).1,
        };
        out.extend_from_slice(&text);
    }
}

/// [`Stamp::rfc3339`] for a single instant.
pub fn rfc3339(wall_ms: i64) -> String {
    let mut out = Vec::with_capacity(24);
    Stamp::default().rfc3339(wall_ms, &mut out);
    String::from_utf8(out).expect("digits and separators are ASCII")
}

fn rfc3339_second(at: Civil) -> [u8; 19] {
    let mut text = *b"0000-00-00T00:00:00";
    text[0..2].copy_from_slice(&two((at.year / 100) as u8));
    text[2..4].copy_from_slice(&two((at.year % 100) as u8));
    text[5..7].copy_from_slice(&two(at.month));
    text[8..10].copy_from_slice(&two(at.day));
    text[11..13].copy_from_slice(&two(at.hour));
    text[14..16].copy_from_slice(&two(at.minute));
    text[17..19].copy_from_slice(&two(at.second));
    text
}

fn combined_second(at: Civil) -> [u8; 26] {
    let mut text = *b"00/Jan/0000:00:00:00 +0000";
    text[0..2].copy_from_slice(&two(at.day));
    text[3..6].copy_from_slice(MONTHS[usize::from(at.month) - 1]);
    text[7..9].copy_from_slice(&two((at.year / 100) as u8));
    text[9..11].copy_from_slice(&two((at.year % 100) as u8));
    text[12..14].copy_from_slice(&two(at.hour));
    text[15..17].copy_from_slice(&two(at.minute));
    text[18..20].copy_from_slice(&two(at.second));
    text
}

const fn digit(value: u16) -> u8 {
    b'0' + (value % 10) as u8
}

const fn two(value: u8) -> [u8; 2] {
    [b'0' + value / 10 % 10, b'0' + value % 10]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants_are_written_as_date_does() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_795_298_645_123, "2026-11-21T22:04:05.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (LAST_MS, "9999-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
        let mut out = Vec::new();
        Stamp::default().combined(1_795_298_645_123, &mut out);
        assert_eq!(out, b"21/Nov/2026:22:04:05 +0000");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let days_of = |year: u16, month| match month {
            2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..200_000 {
            let civil = Civil::from_seconds(number * 86_400);
            assert_eq!((civil.year, civil.month, civil.day), (year, month, day));
            day += 1;
            if day > days_of(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    proptest! {
        #[test]
        fn a_used_stamp_writes_what_a_new_one_does(instants in proptest::collection::vec(0..5_000_i64, 1..20)) {
            let mut stamp = Stamp::default();
            for ms in instants {
                let (mut used, mut new) = (Vec::new(), Vec::new());
                stamp.rfc3339(ms, &mut used);
                stamp.combined(ms, &mut used);
                Stamp::default().rfc3339(ms, &mut new);
                Stamp::default().combined(ms, &mut new);
                prop_assert_eq!(used, new);
            }
        }
    }
}
