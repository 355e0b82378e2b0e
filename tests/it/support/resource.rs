//! A resource of an origin that answers conditions and ranges as a good one does.

use super::origin::{Recorded, Script};
use std::sync::Arc;

/// One version of it.
#[derive(Clone)]
pub struct Resource {
    pub body: Arc<[u8]>,
    pub tag: String,
    pub cache_control: String,
}

impl Resource {
    /// Bytes of which each tells where it is, and in which version.
    pub fn new(tag: &str, length: usize) -> Self {
        let salt = tag.bytes().map(usize::from).sum::<usize>();
        let body = (0..length).map(|at| (at * 31 + at / 251 + at / 65_521 + salt) as u8).collect();
        Self { body, tag: tag.to_owned(), cache_control: "max-age=3600".to_owned() }
    }

    /// 304, 206, 416 or 200 (RFC 9110 §13.2.2).
    pub fn answer(&self, request: &Recorded) -> Script {
        if request.field("if-none-match").is_some_and(|tags| tags == self.tag) {
            return self.told(Script::status(304, Vec::new()));
        }
        let applies = request.field("if-range").is_none_or(|tag| tag == self.tag);
        match request.field("range").filter(|_| applies) {
            None => self.told(Script::ok(self.body.to_vec())).header("Accept-Ranges", "bytes"),
            Some(range) => match self.part(range) {
                Some((first, end)) => {
                    self.told(Script::status(206, &self.body[first..end])).header("Content-Range", &self.content_range(first, end))
                }
                None => Script::status(416, Vec::new()).header("Content-Range", &format!("bytes */{}", self.body.len())),
            },
        }
    }

    /// The fields of each answer.
    pub fn told(&self, script: Script) -> Script {
        script.header("ETag", &self.tag).header("Cache-Control", &self.cache_control)
    }

    pub fn content_range(&self, first: usize, end: usize) -> String {
        format!("bytes {first}-{}/{}", end - 1, self.body.len())
    }

    /// The bytes of one range, `bytes=a-b` or `bytes=a-`.
    pub fn part(&self, range: &str) -> Option<(usize, usize)> {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let last = last.parse().unwrap_or(usize::MAX).min(self.body.len().checked_sub(1)?);
        (first <= last).then_some((first, last + 1))
    }
}
