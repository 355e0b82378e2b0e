//! HTTP dates (RFC 9110 §5.6.7): strict in grammar, tolerant of letter case only.
//!
//! A date that is nearly right is not a date: Expires then means "already expired" (RFC 9111 §5.3) and a Date counts
//! as absent, both of which are the safe side.

const DAY_MS: i64 = 86_400_000;
/// The first millisecond that [`format()`] can write: 0000-01-01.
const FIRST_MS: i64 = -62_167_219_200_000;
/// The last millisecond that [`format()`] can write, in 9999-12-31.
const LAST_MS: i64 = 253_402_300_799_999;
/// Fifty mean Gregorian years: how far ahead a two-digit year may point (RFC 9110 §5.6.7).
const FIFTY_YEARS_MS: i64 = 50 * 31_556_952_000;

const MONTHS: [&[u8; 3]; 12] = [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
const WEEKDAYS: [&[u8]; 7] = [b"Sunday", b"Monday", b"Tuesday", b"Wednesday", b"Thursday", b"Friday", b"Saturday"];

/// Milliseconds since 1970 of an HTTP date in any of the three forms, or `None`.
///
/// IMF-fixdate, rfc850 (two-digit year, 50-year window from `now_wall_ms`) and asctime. Letter case of weekday, month
/// and GMT does not matter, the weekday need not fit; everything else is exact: no other zone, one space, two-digit
/// hour. Years up to 9999.
pub fn parse(value: &[u8], now_wall_ms: i64) -> Option<i64> {
    // The lengths of the three forms do not overlap.
    match value.len() {
        29 => imf_fixdate(value),
        24 => asctime(value),
        30..=33 => rfc850(value, now_wall_ms),
        _ => None,
    }
}

/// IMF-fixdate of this instant, 29 bytes. Instants before the year 0 and after 9999 become the nearest that can be written.
pub fn format(wall_ms: i64) -> [u8; 29] {
    let wall_ms = wall_ms.clamp(FIRST_MS, LAST_MS);
    let (days, second) = (wall_ms.div_euclid(DAY_MS), wall_ms.rem_euclid(DAY_MS) / 1000);
    let (year, month, day) = civil(days);
    let mut out = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    out[..3].copy_from_slice(&WEEKDAYS[(days + 4).rem_euclid(7) as usize][..3]);
    put_two(&mut out, 5, day);
    out[8..11].copy_from_slice(MONTHS[month as usize - 1]);
    put_two(&mut out, 12, year / 100);
    put_two(&mut out, 14, year % 100);
    put_two(&mut out, 17, second / 3600);
    put_two(&mut out, 20, second / 60 % 60);
    put_two(&mut out, 23, second % 60);
    out
}

fn put_two(out: &mut [u8; 29], at: usize, number: i64) {
    out[at] = b'0' + (number / 10) as u8;
    out[at + 1] = b'0' + (number % 10) as u8;
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(value: &[u8]) -> Option<i64> {
    let (weekday, rest) = value.split_at(3);
    let shape = matches!(rest, [b',', b' ', _, _, b' ', _, _, _, b' ', _, _, _, _, b' ', ..]);
    if !shape || !is_weekday(weekday, 3) || !is_gmt(&rest[22..]) {
        return None;
    }
    let year = two(&rest[9..11])? * 100 + two(&rest[11..13])?;
    instant(year, month(&rest[5..8])?, two(&rest[2..4])?, time_of_day(&rest[14..22])?)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(value: &[u8], now_wall_ms: i64) -> Option<i64> {
    let (weekday, rest) = value.split_at(value.len() - 24);
    let shape = matches!(rest, [b',', b' ', _, _, b'-', _, _, _, b'-', _, _, b' ', ..]);
    if !shape || !is_weekday(weekday, usize::MAX) || !is_gmt(&rest[20..]) {
        return None;
    }
    let (day, month, time) = (two(&rest[2..4])?, month(&rest[5..8])?, time_of_day(&rest[12..20])?);
    let now_wall_ms = now_wall_ms.clamp(FIRST_MS, LAST_MS);
    let latest = civil(now_wall_ms.div_euclid(DAY_MS)).0 + 50;
    let year = latest - (latest - two(&rest[9..11])?).rem_euclid(100);
    let ahead = |year| instant(year, month, day, time).filter(|ms| *ms <= now_wall_ms + FIFTY_YEARS_MS);
    ahead(year).or_else(|| instant(year - 100, month, day, time))
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(value: &[u8]) -> Option<i64> {
    let shape = matches!(value, [_, _, _, b' ', _, _, _, b' ', _, _, b' ', _, _, b':', _, _, b':', _, _, b' ', ..]);
    if !shape || !is_weekday(&value[..3], 3) {
        return None;
    }
    let day = match value[8] {
        b' ' => two(&[b'0', value[9]])?,
        _ => two(&value[8..10])?,
    };
    let year = two(&value[20..22])? * 100 + two(&value[22..24])?;
    instant(year, month(&value[4..7])?, day, time_of_day(&value[11..19])?)
}

fn is_weekday(text: &[u8], letters: usize) -> bool {
    WEEKDAYS.iter().any(|name| name[..letters.min(name.len())].eq_ignore_ascii_case(text))
}

fn is_gmt(text: &[u8]) -> bool {
    text.eq_ignore_ascii_case(b" GMT")
}

fn month(text: &[u8]) -> Option<i64> {
    MONTHS.iter().position(|name| name.eq_ignore_ascii_case(text)).map(|at| at as i64 + 1)
}

fn two(text: &[u8]) -> Option<i64> {
    match text {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(i64::from(tens - b'0') * 10 + i64::from(ones - b'0')),
        _ => None,
    }
}

/// Seconds of `08:49:37`; the leap second 60 is in the grammar.
fn time_of_day(text: &[u8]) -> Option<i64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = *text else { return None };
    let (hour, minute, second) = (two(&[h1, h2])?, two(&[m1, m2])?, two(&[s1, s2])?);
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Milliseconds since 1970 of a date and the seconds of its day; `None` where there is no such date.
pub fn instant(year: i64, month: i64, day: i64, second: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    ((1..=12).contains(&month) && (1..=last).contains(&day)).then(|| days(year, month, day) * DAY_MS + second * 1000)
}

/// Days since 1970 of a date of the proleptic Gregorian calendar. Years begin in March here, so that the leap day is
/// the last one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of this many days since 1970: the inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-03-01T00:00:00Z
    const NOW: i64 = 1_772_323_200_000;
    /// The example of RFC 9110 §5.6.7.
    const EXAMPLE: i64 = 784_111_777_000;

    #[test]
    fn the_three_forms_are_read() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sUN, 06 nOV 1994 08:49:37 gmt",
            "SUNDAY, 06-NOV-94 08:49:37 gmt",
            "sun nov  6 08:49:37 1994",
            "Mon, 06 Nov 1994 08:49:37 GMT", // the weekday need not fit
            "Thu Nov 06 08:49:37 1994",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(EXAMPLE), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not_a_date() {
        for text in [
            "",
            "0",
            "-1",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994  08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:37 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 30 Feb 1994 08:49:37 GMT",
            "Sun, 29 Feb 1900 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Foo, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Foosday, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06 Nov 94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 G\u{b5}",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    #[test]
    fn a_two_digit_year_is_at_most_fifty_years_ahead() {
        let year = |text: &str, now| civil(parse(text.as_bytes(), now).unwrap().div_euclid(DAY_MS)).0;
        assert_eq!(year("Friday, 01-Jan-27 00:00:00 GMT", NOW), 2027);
        assert_eq!(year("Friday, 01-Jan-76 00:00:00 GMT", NOW), 2076);
        assert_eq!(year("Friday, 01-Jun-76 00:00:00 GMT", NOW), 1976);
        assert_eq!(year("Friday, 01-Jan-77 00:00:00 GMT", NOW), 1977);
        assert_eq!(year("Friday, 01-Jan-05 00:00:00 GMT", EXAMPLE), 2005);
        assert_eq!(year("Thursday, 29-Feb-96 00:00:00 GMT", NOW), 1996);
    }

    #[test]
    fn instants_are_written_and_clamped() {
        assert_eq!(&format(EXAMPLE + 999), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&format(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&format(-1), b"Wed, 31 Dec 1969 23:59:59 GMT");
        assert_eq!(&format(951_782_400_000), b"Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(&format(i64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(&format(i64::MIN), b"Sat, 01 Jan 0000 00:00:00 GMT");
    }

    #[test]
    fn years_far_ahead_are_read() {
        assert_eq!(parse(b"Thu, 18 Aug 2286 02:01:18 GMT", NOW), Some(9_991_821_678_000));
        assert_eq!(parse(b"Fri, 31 Dec 9999 23:59:59 GMT", NOW), Some(LAST_MS - 999));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(second in FIRST_MS / 1000..=LAST_MS / 1000) {
            prop_assert_eq!(parse(&format(second * 1000), NOW), Some(second * 1000));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), now in any::<i64>()) {
            let _ = parse(&bytes, now);
        }

        #[test]
        fn no_date_like_text_panics(
            text in "[A-Za-z]{3,9},? ?[0-9 ]{2}[- ][A-Za-z]{3}[- ][0-9]{2,4} [0-9:.]{7,8} ?[A-Z0-9]{3,4}", now in any::<i64>()
        ) {
            let _ = parse(text.as_bytes(), now);
        }
    }
}
