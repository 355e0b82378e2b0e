//! Channels: messages that reach who listens at the time, and nobody else.

use super::connect::pushed_message;
use super::link::Counted;
use super::{RedisError, Shared, Use};
use ::redis::aio::{MultiplexedConnection, SendError};
use ::redis::{PushInfo, PushKind};
use rand::RngExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Between two attempts, shortened by chance to a half at most.
const RETRY: Duration = Duration::from_millis(500);
/// How often a quiet connection is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(5);

/// A message, or that messages may have been missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// On a channel.
    Published { channel: String, message: Vec<u8> },
    /// Listening began, or began again: what was published before did not come.
    Listening,
}

/// Listens, and goes on when the connection was lost. Dropping it ends that.
pub struct Subscription {
    messages: Receiver<Message>,
    listener: AbortHandle,
}

impl Subscription {
    pub(super) fn new(shared: Arc<Shared>, channels: Vec<String>, capacity: usize) -> Self {
        let (sender, messages) = mpsc::channel(capacity.max(2));
        Self { messages, listener: tokio::spawn(listen(shared, channels, sender)).abort_handle() }
    }

    /// The next message; cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(shared: Arc<Shared>, channels: Vec<String>, messages: Sender<Message>) {
    loop {
        let (lost, mut gone) = mpsc::channel(1);
        let forward = messages.clone();
        let pushed = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                let _ = lost.try_send(()); // one word is enough
            } else if let Some((channel, message)) = pushed_message(push) {
                let _ = forward.try_send(Message::Published { channel, message }); // beyond the capacity: dropped
            }
            Ok::<(), SendError>(())
        };
        let subscribed = subscribe(&shared, &channels, pushed).await;
        shared.metrics.redis.connect(Use::Subscribe, subscribed.is_ok());
        match subscribed {
            Ok(mut connection) => {
                if messages.send(Message::Listening).await.is_err() {
                    return;
                }
                let _counted = Counted::new(shared.metrics.redis.connections(Use::Subscribe));
                while timeout(PING_EVERY, gone.recv()).await.is_err() {
                    let ping = timeout(shared.target.connect_timeout(), ::redis::cmd("PING").query_async::<()>(&mut connection)).await;
                    if !matches!(ping, Ok(Ok(()))) {
                        break;
                    }
                }
            }
            Err(error) => tracing::debug!(redis = %shared.target, %error, "not listening to channels of Redis; trying on"),
        }
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(RETRY.mul_f64(share)).await;
    }
}

async fn subscribe(
    shared: &Shared,
    channels: &[String],
    pushed: impl Fn(PushInfo) -> Result<(), SendError> + Send + Sync + 'static,
) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = shared.target.connect_for_channels(pushed).await?;
    timeout(shared.target.connect_timeout(), connection.subscribe(channels))
        .await
        .unwrap_or_else(|_| Err((::redis::ErrorKind::Io, "no answer to SUBSCRIBE").into()))?;
    Ok(connection)
}
