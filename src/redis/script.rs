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

    pub(super) fn by_digest<K: ToRedisArgs, A: ToRedisArgs>(&self, keys: &[K], arguments: &[A]) -> Cmd {
        call("EVALSHA", &self.digest, keys, arguments)
    }

    /// The call to make where Redis does not know it, which makes it known.
    pub(super) fn whole<K: ToRedisArgs, A: ToRedisArgs>(&self, keys: &[K], arguments: &[A]) -> Cmd {
        call("EVAL", self.code, keys, arguments)
    }
}

fn call<K: ToRedisArgs, A: ToRedisArgs>(name: &str, script: &str, keys: &[K], arguments: &[A]) -> Cmd {
    let mut call = ::redis::cmd(name);
    call.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    call
}
