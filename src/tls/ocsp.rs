//! What an authority says of a certificate (OCSP, RFC 6960), to be stapled to it. Pure: what was read comes in, and the time.
//!
//! The signature is left to clients, who verify it in any case; here is asked whether they could like what it says.

use super::x509::{ENUMERATED, INTEGER, OBJECT, OCTET_STRING, Reader, SEQUENCE};

/// Until when a response about the certificate with this serial number may be shown, milliseconds since 1970.
pub fn good_until(response: &[u8], serial: &[u8], now: i64) -> Result<i64, StapleError> {
    let single = single(response, serial)?;
    match single.status {
        GOOD if single.next_update.is_some_and(|until| until < now) => Err(StapleError::OutOfDate),
        GOOD if single.this_update > now => Err(StapleError::Early),
        GOOD => single.next_update.ok_or(StapleError::NoEnd),
        REVOKED => Err(StapleError::Revoked),
        _ => Err(StapleError::Unknown),
    }
}

/// Why a response is not stapled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StapleError {
    #[error("is no OCSP response in DER")]
    Malformed,
    #[error("is the refusal of an OCSP responder")]
    Refusal,
    #[error("is not about this certificate")]
    Other,
    #[error("is out of date")]
    OutOfDate,
    #[error("is not valid yet")]
    Early,
    #[error("does not say when the next one is due")]
    NoEnd,
    #[error("says that the certificate was revoked")]
    Revoked,
    #[error("says that the certificate is not known")]
    Unknown,
}

impl StapleError {
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Malformed => "write it with openssl ocsp ... -respout FILE",
            Self::Refusal | Self::Unknown => "ask the responder again, with the issuer of the certificate",
            Self::Other => "fetch the response for the certificate of cert_file, after each renewal",
            Self::OutOfDate | Self::NoEnd => "fetch a new response before this one ends, or remove ocsp_file",
            Self::Early => "look at the clock of this machine",
            Self::Revoked => "have a new certificate issued",
        }
    }
}

const GOOD: u8 = 0x80;
const REVOKED: u8 = 0xa1;
/// `[0]` and `[1]`, `[2]` around something else.
const FIRST: u8 = 0xa0;
const BY_NAME: u8 = 0xa1;
const BY_KEY: u8 = 0xa2;
/// The one type of responses (RFC 6960 §4.2.1): id-pkix-ocsp-basic.
const BASIC: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];

/// What is said of one certificate.
struct Single {
    status: u8,
    this_update: i64,
    next_update: Option<i64>,
}

fn single(response: &[u8], serial: &[u8]) -> Result<Single, StapleError> {
    const MALFORMED: StapleError = StapleError::Malformed;
    let mut whole = Reader(Reader(response).take(SEQUENCE).ok_or(MALFORMED)?);
    if whole.take(ENUMERATED).ok_or(MALFORMED)? != [0] {
        return Err(StapleError::Refusal);
    }
    let mut list = responses(whole).ok_or(MALFORMED)?;
    while !list.0.is_empty() {
        let (about, single) = one(Reader(list.take(SEQUENCE).ok_or(MALFORMED)?)).ok_or(MALFORMED)?;
        if about == serial {
            return Ok(single);
        }
    }
    Err(StapleError::Other)
}

/// The list of what is said of single certificates (RFC 6960 §4.2.1).
fn responses(mut whole: Reader<'_>) -> Option<Reader<'_>> {
    let mut bytes = Reader(Reader(whole.take(FIRST)?).take(SEQUENCE)?);
    if bytes.take(OBJECT)? != BASIC {
        return None;
    }
    let mut basic = Reader(Reader(bytes.take(OCTET_STRING)?).take(SEQUENCE)?);
    let mut data = Reader(basic.take(SEQUENCE)?);
    let (mut tag, _) = data.element()?;
    if tag == FIRST {
        tag = data.element()?.0; // behind the version
    }
    if tag != BY_NAME && tag != BY_KEY {
        return None;
    }
    data.time()?; // produced at
    data.take(SEQUENCE).map(Reader)
}

fn one(mut single: Reader<'_>) -> Option<(&[u8], Single)> {
    let mut about = Reader(single.take(SEQUENCE)?);
    about.take(SEQUENCE)?; // algorithm of the digests
    about.take(OCTET_STRING)?; // of the issuer's name
    about.take(OCTET_STRING)?; // of the issuer's key
    let serial = about.take(INTEGER)?;
    let status = single.element()?.0;
    let this_update = single.time()?;
    let next_update = match single.0.first() {
        Some(&FIRST) => Some(Reader(single.take(FIRST)?).time()?),
        _ => None,
    };
    Some((serial, Single { status, this_update, next_update }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
        assert!(contents.len() < 128);
        [&[tag, contents.len() as u8], contents].concat()
    }

    const TIME: u8 = 0x18;

    fn response(serial: u8, status: u8, next_update: bool) -> Vec<u8> {
        let about = [element(SEQUENCE, b""), element(OCTET_STRING, b"n"), element(OCTET_STRING, b"k"), element(INTEGER, &[serial])];
        let next = element(FIRST, &element(TIME, b"20300101000000Z"));
        let single = [
            element(SEQUENCE, &about.concat()),
            element(status, b""),
            element(TIME, b"20200101000000Z"),
            if next_update { next } else { Vec::new() },
        ];
        let data = [element(BY_KEY, b"k"), element(TIME, b"20200101000000Z"), element(SEQUENCE, &element(SEQUENCE, &single.concat()))];
        let basic = element(SEQUENCE, &element(SEQUENCE, &data.concat()));
        let bytes = element(SEQUENCE, &[element(OBJECT, BASIC), element(OCTET_STRING, &basic)].concat());
        element(SEQUENCE, &[element(ENUMERATED, &[0]), element(FIRST, &bytes)].concat())
    }

    const IN_2025: i64 = 1_735_689_600_000;
    const IN_2030: i64 = 1_893_456_000_000;

    #[test]
    fn only_what_clients_could_like_is_good() {
        use StapleError::*;
        for (response, now, want) in [
            (response(7, GOOD, true), IN_2025, Ok(IN_2030)),
            (response(8, GOOD, true), IN_2025, Err(Other)),
            (response(7, REVOKED, true), IN_2025, Err(Revoked)),
            (response(7, 0x82, true), IN_2025, Err(Unknown)),
            (response(7, GOOD, false), IN_2025, Err(NoEnd)),
            (response(7, GOOD, true), IN_2030 + 1, Err(OutOfDate)),
            (response(7, GOOD, true), 0, Err(Early)),
            (element(SEQUENCE, &element(ENUMERATED, &[6])), IN_2025, Err(Refusal)),
            (b"-----BEGIN OCSP RESPONSE-----".to_vec(), IN_2025, Err(Malformed)),
        ] {
            assert_eq!(good_until(&response, &[7], now), want);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0..300_usize, byte: u8) {
            let mut response = response(7, GOOD, true);
            let at = cut % response.len();
            response[at] = byte;
            let _ = good_until(&response, &[7], IN_2025);
            prop_assert!(good_until(&response[..at], &[7], IN_2025).is_err());
        }
    }
}
