//! What a certificate says of itself, as far as rustls does not tell: who issued it, and how long it is valid
//! (RFC 5280 §4.1).
//!
//! Whether a signature is right is not asked here. Anything that is not DER as the standard has it is `None`.

use crate::semantics::date;

/// A part of a certificate. Names are DER, compared byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    pub serial: &'a [u8],
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    /// Milliseconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

impl Facts<'_> {
    /// Issued by itself: a root, or a certificate for tests.
    pub fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }
}

/// Reads a certificate in DER.
pub fn facts(der: &[u8]) -> Option<Facts<'_>> {
    let mut certificate = Reader(Reader(der).take(SEQUENCE)?);
    let mut fields = Reader(certificate.take(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.take(VERSION)?;
    }
    let serial = fields.take(INTEGER)?;
    fields.take(SEQUENCE)?; // algorithm of the signature
    let issuer = fields.take(SEQUENCE)?;
    let mut validity = Reader(fields.take(SEQUENCE)?);
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let subject = fields.take(SEQUENCE)?;
    Some(Facts { serial, issuer, subject, not_before, not_after })
}

/// When a revocation list in DER says that the next one is due (RFC 5280 §5.1.2.5), milliseconds since 1970.
pub fn next_update(der: &[u8]) -> Option<i64> {
    let mut list = Reader(Reader(der).take(SEQUENCE)?);
    let mut fields = Reader(list.take(SEQUENCE)?);
    fields.take(INTEGER)?; // version 2: such without nextUpdate are of version 1
    fields.take(SEQUENCE)?; // algorithm of the signature
    fields.take(SEQUENCE)?; // issuer
    fields.time()?; // this update
    fields.time()
}

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT: u8 = 0x06;
pub(super) const ENUMERATED: u8 = 0x0a;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Elements of DER, one after the other.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The contents of the next element, which must have this tag.
    pub fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, contents) = self.element()?;
        (found == tag).then_some(contents)
    }

    /// Tag and contents of the next element.
    pub fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, contents))
    }

    /// UTCTime or GeneralizedTime, both to the second and in UTC (RFC 5280 §4.1.2.5).
    pub fn time(&mut self) -> Option<i64> {
        let (tag, text) = self.element()?;
        let digits = text.strip_suffix(b"Z")?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = digits.split_at_checked(2)?;
                let year = number(year)?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = digits.split_at_checked(4)?;
                (number(year)?, rest)
            }
            _ => return None,
        };
        let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| rest.get(at..at + 2).and_then(number));
        let (hour, minute, second) = (hour?, minute?, second?);
        let is_time = rest.len() == 10 && hour < 24 && minute < 60 && second < 60;
        is_time.then(|| date::instant(year, month?, day?, hour * 3600 + minute * 60 + second))?
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
        let length = contents.len();
        let mut bytes = match length {
            0..=127 => vec![tag, length as u8],
            _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
        };
        bytes.extend_from_slice(contents);
        bytes
    }

    fn certificate(before: &[u8], after: &[u8]) -> Vec<u8> {
        let validity = [element(UTC_TIME, before), element(GENERALIZED_TIME, after)].concat();
        let fields = [
            element(VERSION, &element(INTEGER, &[2])),
            element(INTEGER, &[1]),
            element(SEQUENCE, b"algorithm"),
            element(SEQUENCE, b"issuer"),
            element(SEQUENCE, &validity),
            element(SEQUENCE, &[b's'; 200]),
        ];
        element(SEQUENCE, &element(SEQUENCE, &fields.concat()))
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        let der = certificate(b"700101000001Z", b"20491231235959Z");
        let facts = facts(&der).unwrap();
        assert_eq!((facts.issuer, facts.subject), (&b"issuer"[..], &[b's'; 200][..]));
        assert_eq!((facts.not_before, facts.not_after), (1000, 2_524_607_999_000));
        assert!(!facts.is_self_issued());
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        for (before, after) in [
            (&b"700101000001"[..], &b"20491231235959Z"[..]),
            (b"701301000001Z", b"20491231235959Z"),
            (b"700101240001Z", b"20491231235959Z"),
            (b"700101000001Z", b"2049123123595Z"),
            (b"7a0101000001Z", b"20491231235959Z"),
        ] {
            assert_eq!(facts(&certificate(before, after)), None);
        }
        let der = certificate(b"700101000001Z", b"20491231235959Z");
        for end in 0..der.len() {
            assert_eq!(facts(&der[..end]), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0..300_usize, byte: u8) {
            let _ = facts(&bytes);
            let mut der = certificate(b"700101000001Z", b"20491231235959Z");
            let at = cut % der.len();
            der[at] = byte;
            let _ = facts(&der);
            bytes.splice(0..0, [SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]);
            prop_assert_eq!(facts(&bytes), None);
        }
    }
}
