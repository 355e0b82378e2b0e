//! What an authority asks to see that a host is ours (ACME's http-01, RFC 8555 §8.3): answered before routes, by whichever
//! listener it comes.
//!
//! A token that nobody knows is a request like any other: another client behind us may be certified the same way.

use super::{Proxy, answer};
use crate::config::settings::Challenge;
use crate::listener::{Handled, InterimSlot, Peer, RequestBody, RequestHead, Response};
use crate::semantics::Method;
use std::sync::Arc;

#[cold]
pub fn answer(proxy: &Arc<Proxy>, token: &str, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
    let is_question = matches!(head.method, Method::GET | Method::HEAD);
    if let Some(text) = proxy.challenges.text(token).filter(|_| is_question) {
        return Handled::Ready(told(proxy, &text));
    }
    if !is_question || !proxy.challenges.has_fleet() {
        return proxy.journey(&proxy.live.load(), peer, head, body, interim, None);
    }
    let interim = (head.minor_version > 0).then(|| interim.sender());
    let (proxy, peer, head, token) = (Arc::clone(proxy), peer.clone(), head.clone(), token.to_owned());
    Handled::Later(Box::pin(async move {
        if let Some(text) = proxy.challenges.text_of_fleet(&token).await {
            return Box::new(told(&proxy, &text));
        }
        let handled = proxy.journey(&proxy.live.load(), &peer, &head, body, &mut InterimSlot::of(interim), None);
        handled.response().await
    }))
}

fn told(proxy: &Proxy, text: &str) -> Response {
    proxy.metrics.acme.answered(Challenge::Http01);
    answer::challenge(&proxy.live.load(), text)
}
