//! A Lua script, called by its digest.

use super::Cmd;
use ::redis::ToRedisArgs;

pub struct Script {
    code: &'static str,
    digest: String,
}

impl Script {
    pub fn new(code: &'static str) -> Self {
        Self { code, digest: ::redis::Script::new(code).get_hash().to_owned() }
    }

    /// The call by digest, and the one to make where Redis does not know it (which makes it known).
    pub(super) fn calls<K: ToRedisArgs, A: ToRedisArgs>(&self, keys: &[K], arguments: &[A]) -> [Cmd; 2] {
        let call = |name: &str, script: &str| {
            let mut call = ::redis::cmd(name);
            call.arg(script).arg(keys.len()).arg(keys).arg(arguments);
            call
        };
        [call("EVALSHA", &self.digest), call("EVAL", self.code)]
    }
}
