//! Reading the values of one table: quantities with bounds, problems under the table's path.

use crate::config::raw::{RawDuration, RawDurationOrOff, RawShare, RawSize};
use crate::config::report::{Report, shown};
use crate::config::shape::join;
use crate::config::units::{self, UnitError};
use serde_json::Value;
use std::ops::RangeInclusive;
use std::time::Duration;

pub struct Table<'r> {
    report: &'r mut Report,
    path: &'r str,
}

impl<'r> Table<'r> {
    pub fn new(report: &'r mut Report, path: &'r str) -> Self {
        Self { report, path }
    }

    /// A duration, zero included.
    pub fn duration(&mut self, key: &str, raw: Option<&RawDuration>, default: Duration) -> Duration {
        raw.and_then(|raw| self.quantity(key, &raw.0, units::duration, units::DURATION_ALLOWED)).unwrap_or(default)
    }

    /// A duration that zero would turn into "never works".
    pub fn timeout(&mut self, key: &str, raw: Option<&RawDuration>, default: Duration) -> Duration {
        let length = self.duration(key, raw, default);
        if length.is_zero() {
            self.wrong_text(key, "a timeout of zero", "\"0s\"".into(), "more than zero", "write for example \"10s\"");
        }
        length
    }

    /// The same, or `None` where it says `off`.
    pub fn timeout_or_off(&mut self, key: &str, raw: Option<&RawDurationOrOff>, default: Option<Duration>) -> Option<Duration> {
        const ALLOWED: &str = r#"a duration such as "30s", or "off""#;
        let Some(RawDurationOrOff(value)) = raw else { return default };
        if value == "off" {
            return None;
        }
        let length = self.quantity(key, value, units::duration, ALLOWED)?;
        if length.is_zero() {
            self.wrong(key, "a timeout of zero", value, ALLOWED, "write \"off\" for no bound");
        }
        Some(length)
    }

    pub fn size(&mut self, key: &str, raw: Option<&RawSize>, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let size = raw.and_then(|raw| self.quantity(key, &raw.0, units::size, units::SIZE_ALLOWED)).unwrap_or(default);
        if !bounds.contains(&size) {
            let allowed = format!("{} to {}", units::print_size(*bounds.start()), units::print_size(*bounds.end()));
            self.wrong_text(key, "out of bounds", format!("\"{}\"", units::print_size(size)), &allowed, "");
        }
        size
    }

    pub fn share(&mut self, key: &str, raw: Option<&RawShare>, default: f64) -> f64 {
        raw.and_then(|raw| self.quantity(key, &raw.0, units::share, units::SHARE_ALLOWED)).unwrap_or(default)
    }

    pub fn count(&mut self, key: &str, raw: Option<u64>, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let count = raw.unwrap_or(default);
        if !bounds.contains(&count) {
            self.wrong_text(key, "out of bounds", count.to_string(), &format!("{} to {}", bounds.start(), bounds.end()), "");
        }
        count
    }

    /// Reads text with a unit; a bare number is told which unit it lacks.
    pub fn quantity<T>(&mut self, key: &str, value: &Value, parse: fn(&str) -> Result<T, UnitError>, allowed: &str) -> Option<T> {
        let parsed = match value {
            Value::String(text) => parse(text),
            Value::Number(number) => parse(&number.to_string()),
            _ => Err(UnitError { what: "wrong type", remedy: "write a number and a unit in quotes".into() }),
        };
        let error = match parsed {
            Ok(quantity) if value.is_string() => return Some(quantity),
            Ok(_) => UnitError { what: "a bare number", remedy: "write it in quotes, with a unit".into() },
            Err(error) => error,
        };
        self.wrong(key, error.what, value, allowed, &error.remedy);
        None
    }

    /// Reports a value as wrong.
    pub fn wrong(&mut self, key: &str, what: &str, found: &Value, allowed: &str, remedy: &str) {
        self.wrong_text(key, what, shown(found), allowed, remedy);
    }

    pub fn wrong_text(&mut self, key: &str, what: &str, found: String, allowed: &str, remedy: &str) {
        self.report.problem(&join(self.path, key), what, found, allowed, remedy);
    }
}
