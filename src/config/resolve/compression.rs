//! What is coded here, and how.

use super::table::Table;
use crate::config::raw::{RawCoding, RawCompression, RawLevels};
use crate::config::report::Report;
use crate::config::shape::join;
use crate::semantics::coding::Coding;
use crate::semantics::fields::is_token_byte;
use crate::semantics::policy::{Compression, Levels};
use std::sync::Arc;

/// What the levels around a route have set so far.
#[derive(Debug, Clone, Default)]
pub struct Base {
    enabled: bool,
    how: Compression,
}

/// Types of one route; each costs time on every request.
const TYPES_MAX: usize = 64;
/// What every client of RFC 9842 can decode (§5: a window of 8 MB), and half of the largest window of brotli, so that dictionary
/// and response are within one.
const DICTIONARY_BYTES_MAX: u64 = 8_000_000;

impl Base {
    /// `None` where nothing is coded.
    pub fn resolved(&self) -> Option<Arc<Compression>> {
        self.enabled.then(|| Arc::new(self.how.clone()))
    }

    pub fn apply(&mut self, at: &str, raw: &RawCompression, report: &mut Report) {
        let (raw, how) = (&raw.0, &mut self.how);
        self.enabled = raw.enabled.unwrap_or(self.enabled);
        how.sensitive = raw.sensitive.unwrap_or(how.sensitive);
        if let Some(codings) = &raw.codings {
            how.codings = distinct(&join(at, "codings"), codings, report);
        }
        if let Some(types) = &raw.types {
            how.types = checked_types(&join(at, "types"), types, report);
        }
        let mut table = Table::new(report, at);
        how.min_bytes = table.size("min_size", raw.min_size.as_ref(), how.min_bytes, 1..=1 << 30);
        how.hot_max_bytes = table.size("hot_max_size", raw.hot_max_size.as_ref(), how.hot_max_bytes, 0..=64 << 20);
        how.hot_hits = table.count("hot_hits", raw.hot_hits, u64::from(how.hot_hits), 0..=u64::from(u32::MAX / 2)) as u32; // as bounded
        let decode = &mut how.decode;
        decode.bytes = table.size("decode_max_size", raw.decode_max_size.as_ref(), decode.bytes, 1 << 20..=1 << 50);
        decode.ratio = table.count("decode_max_ratio", raw.decode_max_ratio, decode.ratio, 1..=1_000_000);
        let dictionaries = &mut how.dictionaries;
        dictionaries.enabled = raw.dictionaries.unwrap_or(dictionaries.enabled);
        let (size, bounds) = (raw.dictionary_max_size.as_ref(), 1 << 10..=DICTIONARY_BYTES_MAX);
        dictionaries.max_bytes = table.size("dictionary_max_size", size, dictionaries.max_bytes, bounds);
        dictionaries.forms_max = table.count("dictionary_forms", raw.dictionary_forms, dictionaries.forms_max as u64, 1..=64) as usize;
        levels(&join(at, "level"), &raw.level, &mut how.level, report);
        levels(&join(at, "hot_level"), &raw.hot_level, &mut how.hot_level, report);
    }
}

fn levels(at: &str, raw: &RawLevels, levels: &mut Levels, report: &mut Report) {
    let mut table = Table::new(report, at);
    let mut level = |key, raw, level: &mut u8, bounds| *level = table.count(key, raw, u64::from(*level), bounds) as u8; // 19 at most
    level("gzip", raw.gzip, &mut levels.gzip, 1..=9);
    level("br", raw.br, &mut levels.brotli, 0..=11);
    level("zstd", raw.zstd, &mut levels.zstd, 1..=19);
}

fn distinct(at: &str, raw: &[RawCoding], report: &mut Report) -> Vec<Coding> {
    let codings: Vec<Coding> = raw
        .iter()
        .map(|coding| match coding {
            RawCoding::Gzip => Coding::Gzip,
            RawCoding::Br => Coding::Brotli,
            RawCoding::Zstd => Coding::Zstd,
        })
        .collect();
    for (index, coding) in codings.iter().enumerate().filter(|(index, coding)| codings[..*index].contains(coding)) {
        let found = format!("\"{}\"", coding.as_str());
        report.problem(&format!("{at}[{index}]"), "named twice", found, "each coding once", "remove it here or there");
    }
    if codings.is_empty() && !report.is_removed(at) {
        report.problem(at, "no coding at all", "[]", "\"zstd\", \"br\", \"gzip\"", "write compression = false to code nothing");
    }
    codings
}

fn checked_types(at: &str, types: &[String], report: &mut Report) -> Vec<String> {
    for (index, text) in types.iter().enumerate().filter(|(_, text)| !is_type(text)) {
        let found = format!("\"{text}\"");
        let allowed = "\"text/html\", \"text/*\" for a kind, \"*+json\" for a suffix";
        report.problem(&format!("{at}[{index}]"), "not a content type", found, allowed, "correct it, or remove it");
    }
    if types.len() > TYPES_MAX {
        report.problem(
            at,
            "too many",
            types.len().to_string(),
            format!("at most {TYPES_MAX}"),
            "name kinds (\"text/*\") or suffixes (\"*+json\")",
        );
    }
    types.iter().map(|text| text.to_ascii_lowercase()).collect()
}

fn is_type(text: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && !name.contains('*') && name.bytes().all(is_token_byte);
    match text.strip_prefix("*+") {
        Some(suffix) => is_name(suffix),
        None => text.split_once('/').is_some_and(|(kind, sub)| is_name(kind) && (sub == "*" || is_name(sub))),
    }
}
