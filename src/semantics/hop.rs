//! Fields that belong to one connection (RFC 9110 §7.6.1).

use super::Fields;

/// Removes Connection, every field it names, and those that belong to one connection by definition: Keep-Alive,
/// Proxy-Connection, TE, Trailer, Transfer-Encoding, Upgrade, Proxy-Authenticate is kept (it is end to end for us as
/// reverse proxy... see RFC 9110 §11.7), Proxy-Authentication-Info likewise. A Connection option never removes
/// Cache-Control, Host, Content-Length, Content-Type, Date, ETag, Set-Cookie, Authorization or Vary.
pub fn strip(fields: &mut Fields) {
    let _ = fields;
    todo!()
}
