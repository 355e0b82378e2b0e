//! Why Redis gave no answer that could be used.

use redis::ErrorKind;
use std::error::Error;
use std::io;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// There is no connection at present: failed without waiting.
    #[error("not connected to Redis")]
    Away,
    /// No answer in the time given. The command may have been carried out, or may still be.
    #[error("Redis did not answer in time")]
    Timeout,
    /// Redis answered with an error: its code (`OOM`, `READONLY`, `NOPERM`, ...) and text.
    #[error("Redis refused: {code} {detail}")]
    Refused { code: String, detail: String },
    /// The connection failed, or what came over it was no answer. A command may have been carried out.
    #[error("connection to Redis failed: {0}")]
    Broken(String),
    /// An answer of another type than the command has.
    #[error("answer of Redis not understood: {0}")]
    Unexpected(String),
    /// The configuration cannot be used.
    #[error("Redis cannot be used as configured: {0}")]
    Misconfigured(String),
}

impl RedisError {
    /// Out of memory: the server takes no writes that need some.
    pub fn is_out_of_memory(&self) -> bool {
        self.has_code("OOM")
    }

    /// The server is a replica, or has too few.
    pub fn is_read_only(&self) -> bool {
        self.has_code("READONLY") || self.has_code("NOREPLICAS")
    }

    /// The server does not know a script by its digest.
    pub fn is_unknown_script(&self) -> bool {
        self.has_code("NOSCRIPT")
    }

    /// Whether another connection might do better than this one.
    pub(super) fn wants_another_connection(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Refused { code, .. } => matches!(code.as_str(), "READONLY" | "MASTERDOWN" | "NOAUTH"),
            Self::Away | Self::Timeout | Self::Unexpected(_) | Self::Misconfigured(_) => false,
        }
    }

    fn has_code(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => Self::Refused {
                code: error.code().unwrap_or("ERR").to_owned(),
                detail: error.detail().map_or_else(|| error.to_string(), str::to_owned),
            },
            ErrorKind::UnexpectedReturnType => Self::Unexpected(error.to_string()),
            ErrorKind::InvalidClientConfig => Self::Misconfigured(error.to_string()),
            _ => Self::Broken(tls_failure(&error).map_or_else(|| error.to_string(), remedy)),
        }
    }
}

/// What TLS says, where it is at the bottom of an error.
fn tls_failure(error: &redis::RedisError) -> Option<&rustls::Error> {
    let cause: &Arc<dyn Error + Send + Sync> = error.source()?.downcast_ref()?;
    cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

/// The same with what helps; `tls` is that of `[cache.redis]` or `[journal.redis]`.
fn remedy(error: &rustls::Error) -> String {
    use rustls::CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    let remedy = match error {
        // The second where an authority of the same name is trusted.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            "its certificate was issued by an authority that is not trusted here: name that one's certificate in tls.roots"
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is not for the host in url: write a name there that it is for"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "its certificate has expired: have it renewed there",
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => "look at the clocks",
        rustls::Error::AlertReceived(_) => {
            "it refused the handshake: it wants a client certificate (tls.certificate, tls.key), or another than that"
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS on this port: write redis://, or its TLS port",
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}
