//! HTTP dates (RFC 9110 §5.6.7) and how strictly BEHAVIOURS of caches have to read them.

/// Milliseconds since 1970 of an HTTP date in any of the three forms, or `None`.
///
/// IMF-fixdate, rfc850 (two-digit year, 50-year window from `now_wall_ms`) and asctime. Letter case of weekday, month
/// and GMT does not matter, the weekday need not fit; everything else is exact: no other zone, one space, two-digit
/// hour. Years up to 9999.
pub fn parse(value: &[u8], now_wall_ms: i64) -> Option<i64> {
    let _ = (value, now_wall_ms);
    todo!()
}

/// IMF-fixdate of this instant, 29 bytes.
pub fn format(wall_ms: i64) -> [u8; 29] {
    let _ = wall_ms;
    todo!()
}
