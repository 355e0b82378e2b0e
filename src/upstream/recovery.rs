//! The line of fetches that a purge caused: so many at a time reach the upstream (`purge_concurrency`), the others wait,
//! first come first served. So a purge of much does not bring down the origin that has to make up for it.

use super::{FetchError, settings};
use crate::clock;
use crate::observe::metrics::{Bound, Metrics, RecoveryGauges};
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct Recovery {
    settings: Arc<settings::Upstream>,
    metrics: Arc<Metrics>,
    gauges: RecoveryGauges,
    /// `None`: any number.
    places: Option<Arc<Semaphore>>,
}

/// A place among the fetches at a time; given back when dropped.
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Recovery {
    pub(super) fn new(settings: &Arc<settings::Upstream>, metrics: &Arc<Metrics>) -> Self {
        Self {
            gauges: metrics.recovery_gauges(&settings.name),
            places: (settings.purge_concurrency > 0).then(|| Arc::new(Semaphore::new(settings.purge_concurrency))),
            settings: Arc::clone(settings),
            metrics: Arc::clone(metrics),
        }
    }

    /// Waits for a place, as long and with as many others as the settings say. Who leaves the line leaves nothing behind.
    pub(super) async fn place(&self) -> Result<Place, FetchError> {
        let Some(places) = &self.places else { return Ok(Place { _permit: None }) };
        self.gauges.fetches.inc();
        if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
            return Ok(Place { _permit: Some(permit) });
        }
        let waiting = Waiting::begin(self)?;
        let turn = clock::timeout(self.settings.purge_queue_timeout, pin!(Arc::clone(places).acquire_owned())).await;
        drop(waiting);
        match turn {
            Ok(permit) => Ok(Place { _permit: permit.ok() }), // it is never closed
            Err(_) => {
                self.metrics.bound(Bound::UpstreamPurgeQueueTimeout);
                Err(FetchError::QueueTimeout)
            }
        }
    }
}

/// One in line, counted while it is.
struct Waiting<'a>(&'a Recovery);

impl<'a> Waiting<'a> {
    fn begin(recovery: &'a Recovery) -> Result<Self, FetchError> {
        let waiting = Self(recovery);
        recovery.gauges.waiting.inc();
        if usize::try_from(recovery.gauges.waiting.get()).is_ok_and(|count| count > recovery.settings.queue) {
            recovery.metrics.bound(Bound::UpstreamPurgeQueue);
            return Err(FetchError::QueueFull);
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.gauges.waiting.dec();
    }
}
