//! The error log: `tracing` to standard error, one line per event, as text or JSON.

use crate::config::settings::{self, LogFormat};
use crate::observe::time::rfc3339;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Why the error log was not set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log level `{level}` is not understood: {problem}; use error, warn, info, debug or trace, or `info,tiercel::proxy=debug`")]
    Level { level: String, problem: String },
    #[error("a log was set up before")]
    Twice,
}

/// Changes the level while the program runs.
#[derive(Debug, Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Takes the level of new settings; the format stays until a restart.
    pub fn set_level(&self, settings: &settings::Log) -> Result<(), LogError> {
        let filter = filter(&settings.level)?;
        self.0.reload(filter).map_err(|error| LogError::Level { level: settings.level.clone(), problem: error.to_string() })
    }
}

/// Sets up the process's error log on standard error. Once per process.
pub fn init(settings: &settings::Log) -> Result<LogHandle, LogError> {
    let (subscriber, handle) = subscriber(settings, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
    Ok(handle)
}

/// What [`init`] sets up, with another writer.
pub fn subscriber<W>(settings: &settings::Log, writer: W) -> Result<(impl Subscriber + Send + Sync, LogHandle), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_timer(Utc).with_writer(OneLine(writer));
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    Ok((tracing_subscriber::registry().with(filter).with(lines), LogHandle(handle)))
}

/// Unless the level names h2: it warns of what peers do frame by frame, so that a client could fill the log.
const QUIET: &str = "h2=error";

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{level}"))
        .map_err(|error| LogError::Level { level: level.to_owned(), problem: error.to_string() })
}

struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        writer.write_str(&rfc3339(crate::clock::now().wall_ms))
    }
}

/// Escapes control characters in what is written but for a last line feed: a field that came from outside can neither
/// begin a line of its own nor move a terminal's cursor. Events arrive here whole, one per write.
struct OneLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end): (&[u8], &[u8]) = match event.strip_suffix(b"\n") {
            Some(line) => (line, b"\n"),
            None => (event, b""),
        };
        if line.iter().any(u8::is_ascii_control) {
            let mut safe = Vec::with_capacity(line.len() + 16);
            for byte in line {
                match byte.is_ascii_control() {
                    true => safe.extend(byte.escape_ascii()),
                    false => safe.push(*byte),
                }
            }
            safe.extend_from_slice(end);
            self.0.write_all(&safe)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lets a repeated warning through at most once per interval, and says how many were held back.
#[derive(Debug)]
pub struct RateLimit {
    interval_ms: u64,
    /// When the next one may pass; monotonic milliseconds.
    next_ms: AtomicU64,
    held_back: AtomicU64,
}

impl RateLimit {
    pub const fn new(interval_ms: u64) -> Self {
        Self { interval_ms, next_ms: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// `Some` with the number held back since the last, where this one may be logged. `mono_ms` is [`crate::clock`]'s.
    pub fn pass(&self, mono_ms: u64) -> Option<u64> {
        let next = self.next_ms.load(Relaxed);
        let mine =
            mono_ms >= next && self.next_ms.compare_exchange(next, mono_ms.saturating_add(self.interval_ms), Relaxed, Relaxed).is_ok();
        if mine {
            return Some(self.held_back.swap(0, Relaxed));
        }
        self.held_back.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{AccessFormat, AccessLog, LogTarget};
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn settings(level: &str, format: LogFormat) -> settings::Log {
        let access = AccessLog { target: LogTarget::Off, format: AccessFormat::Json, queue: 1 };
        settings::Log { level: level.into(), format, access }
    }

    fn logged(settings: &settings::Log, act: impl FnOnce(&LogHandle)) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let (subscriber, handle) = subscriber(settings, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || act(&handle));
        String::from_utf8(captured.0.lock().clone()).unwrap()
    }

    #[test]
    fn a_field_from_outside_cannot_begin_a_line() {
        let hostile = "x\r\n2026-11-21T22:04:05.123Z ERROR forged\x1b[2J";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(&settings("info", format), |_| {
                tracing::warn!(site = "shop", error = %hostile, "upstream failed {hostile}");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.ends_with('\n'));
            assert!(!text.trim_end_matches('\n').contains(|c: char| c.is_control()), "{text:?}");
            assert!(text.contains("upstream failed"), "{text}");
        }
    }

    #[test]
    fn json_events_parse_and_have_their_fields_at_the_top() {
        let text = logged(&settings("info", LogFormat::Json), |_| tracing::info!(site = "shop", tries = 3, "reloaded"));
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (name, want) in [("level", "INFO".into()), ("message", "reloaded".into()), ("site", "shop".into()), ("tries", 3.into())] {
            assert_eq!(event[name], serde_json::Value::clone(&want), "{name}");
        }
        let timestamp = event["timestamp"].as_str().unwrap();
        assert_eq!((timestamp.len(), &timestamp[23..]), (24, "Z"));
    }

    #[test]
    fn the_level_is_taken_from_settings_and_from_new_ones() {
        let text = logged(&settings("warn", LogFormat::Text), |handle| {
            tracing::info!("before");
            handle.set_level(&settings("debug", LogFormat::Text)).unwrap();
            tracing::debug!("after");
            assert!(matches!(handle.set_level(&settings("lo=ud", LogFormat::Text)), Err(LogError::Level { .. })));
            tracing::debug!("still");
        });
        assert!(!text.contains("before") && text.contains("after") && text.contains("still"), "{text}");
    }

    #[test]
    fn what_clients_make_h2_say_is_logged_only_where_that_is_asked_for() {
        for (level, is_heard) in [("info", false), ("debug", false), ("info,h2=warn", true), ("info,h2::proto=warn", true)] {
            let text = logged(&settings(level, LogFormat::Text), |_| {
                tracing::warn!(target: "h2::proto::ping_pong", "recv PING ack that we never sent");
                tracing::warn!(target: "tiercel::listener", "ours");
            });
            assert_eq!((text.contains("PING"), text.contains("ours")), (is_heard, true), "{level}: {text}");
        }
    }

    #[test]
    fn repeated_warnings_pass_once_per_interval_and_are_counted() {
        let limit = RateLimit::new(1000);
        assert_eq!([5, 6, 1004, 1005, 1006, 5000].map(|ms| limit.pass(ms)), [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
