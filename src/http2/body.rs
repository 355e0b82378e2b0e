//! The body of a message that comes in over HTTP/2.

use crate::body::{BodyError, BodyStream, Chunk};
use http_body::Body;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A body as it comes: its end is that of its stream, and its length was compared with what was announced, by hyper. The
/// other side may send no faster than this is read (flow control). Dropping it resets the stream.
pub struct Incoming {
    incoming: hyper::body::Incoming,
    /// Between two reads that bring something.
    read_timeout: Duration,
    /// Bytes that may still come; `None`: any number.
    left: Option<u64>,
    /// Made when the first read has to wait.
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Incoming {
    pub const fn new(incoming: hyper::body::Incoming, read_timeout: Duration, most: Option<u64>) -> Self {
        Self { incoming, read_timeout, left: most, timer: None, waits: false }
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
        if !self.waits {
            self.waits = true;
            timer.as_mut().reset(Instant::now() + self.read_timeout);
        }
        timer.as_mut().poll(context)
    }
}

impl BodyStream for Incoming {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
                return self.poll_timer(context).map(|()| Some(Err(BodyError::Timeout)));
            };
            self.waits = false;
            let frame = match frame {
                None => return Poll::Ready(None),
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::Reset))),
                Some(Ok(frame)) => frame,
            };
            let trailers = match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => {
                    if let Some(left) = &mut self.left {
                        let Some(rest) = left.checked_sub(data.len() as u64) else {
                            return Poll::Ready(Some(Err(BodyError::TooLarge)));
                        };
                        *left = rest;
                    }
                    return Poll::Ready(Some(Ok(Chunk::Data(data))));
                }
                Err(frame) => frame.into_trailers().ok(),
            };
            let Some(trailers) = trailers else { continue };
            if let Some(chunk) = super::trailers(&trailers).transpose() {
                return Poll::Ready(Some(chunk));
            }
        }
    }
}
