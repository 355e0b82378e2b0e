use super::*;
use crate::cache::for_tests::{fields, stored_head};
use crate::semantics::key::KeyPolicy;
use crate::semantics::targeted::TargetList;
use proptest::prelude::*;

const URL: &str = "http://shop.example/a?b=c";
const NAME: &[u8] = b"tiercel:c:1:{00}:h:00";
const NOW: Now = Now { wall_ms: 1_700_000_100_000, mono_ms: 500_000 };
/// Redis' clock is ten seconds ahead.
const REDIS_NOW_MS: i64 = NOW.wall_ms + 10_000;

fn seals() -> [Seal; 2] {
    [Seal::Checksum, Seal::Key(b"a key of the fleet".as_slice().into())]
}

struct Case {
    target: Target,
    key: CacheKey,
    site: Arc<Box<str>>,
    policy: CachePolicy,
}

impl Case {
    fn new() -> Self {
        let target = Target::from_url(URL).unwrap();
        let key = CacheKey::new(&target, &Fields::new(), &KeyPolicy::default());
        Self { target, key, site: Arc::new("shop".into()), policy: CachePolicy::default() }
    }

    fn reading(&self) -> Reading<'_> {
        let Self { target, key, site, policy } = self;
        Reading { key, target, site, policy, fetch: 7, now: NOW, redis_now_ms: REDIS_NOW_MS }
    }

    /// A head that was received `since_ms` ago.
    fn head(&self, lines: &[(&str, &str)], since_ms: u64) -> StoredHead {
        let received = Now { wall_ms: NOW.wall_ms - since_ms as i64, mono_ms: NOW.mono_ms - since_ms };
        let place = |ms| Mark { position: Position { epoch: 3, ms, sequence: 9 }, local: 4 };
        let made = stored_head(URL, &[("cookie", "a=b"), ("accept-language", "de")], lines, &self.policy, received);
        StoredHead {
            facts: made.facts.jittered(1, 2),
            stamp: Stamp { purge: place(11), unsafe_method: place(12) }.into(),
            tags: Tags::of([1, 2].into(), [3].into(), "a b".into()),
            site: Arc::clone(&self.site),
            sent_mono_ms: 0,
            ..made
        }
    }
}

fn times(since_ms: i64) -> Times {
    Times { began_ms: REDIS_NOW_MS - since_ms - 5, received_ms: REDIS_NOW_MS - since_ms }
}

const LINES: [(&str, &str); 5] = [
    ("date", "Tue, 14 Nov 2023 22:15:00 GMT"),
    ("cache-control", "max-age=600"),
    ("etag", "\"1\""),
    ("vary", "Accept-Language"),
    ("content-type", "text/plain"),
];

fn whole(body: &[u8]) -> BodyPlan {
    BodyPlan { id: 0, length: body.len() as u64, segments: 0, checksum: xxh3_64(body) }
}

#[test]
fn a_head_comes_back_as_it_was_in_the_clocks_of_the_reader() {
    let case = Case::new();
    for seal in seals() {
        let head = case.head(&LINES, 40_000);
        let record = Bytes::from(encode_head(&seal, NAME, &head, times(40_000), &whole(b"hello"), b"hello"));
        let back = HeadRecord::decode(&seal, NAME, &record, &case.reading()).unwrap();
        assert_eq!(back.first, "hello");
        assert_eq!(back.began_ms, REDIS_NOW_MS - 40_005);
        let read = back.head;
        assert_eq!((read.status(), read.fields.wire(), &read.key), (head.status(), head.fields.wire(), &head.key));
        assert_eq!((&read.secondary, &read.tags, &**read.site), (&head.secondary, &head.tags, "shop"));
        assert_eq!(read.facts, head.facts, "the facts, times included");
        assert_eq!(read.facts.age_ms(NOW), head.facts.age_ms(NOW));
        assert_eq!(read.stamp.purge, Mark { local: 0, ..head.stamp.purge }, "what is local to a node stays there");
        assert_eq!(read.fetch, 7);
    }
}

#[test]
fn age_survives_a_host_that_was_not_up_yet() {
    let case = Case::new();
    let head = case.head(&LINES, 0);
    let age_ms = head.facts.age_ms(NOW);
    let record = Bytes::from(encode_head(&Seal::Checksum, NAME, &head, times(3_600_000), &whole(b""), b""));
    let back = HeadRecord::decode(&Seal::Checksum, NAME, &record, &case.reading()).unwrap();
    assert_eq!(back.head.facts.age_ms(NOW), age_ms + 3_600_000, "it was received an hour ago, this host is up for less");
}

#[test]
fn what_was_for_this_cache_alone_still_governs() {
    let mut case = Case::new();
    case.policy.targeted = TargetList::new(&["surrogate-control".to_owned()], case.policy.targeted.device());
    let mut lines = LINES.to_vec();
    lines.push(("surrogate-control", "max-age=5"));
    let mut head = case.head(&lines, 0);
    assert!(head.fields.remove("surrogate-control") && head.facts.lifetime(&case.policy).ms == 5000);
    let record = Bytes::from(encode_head(&Seal::Checksum, NAME, &head, times(0), &whole(b""), b""));
    let back = HeadRecord::decode(&Seal::Checksum, NAME, &record, &case.reading()).unwrap();
    assert_eq!(back.head.facts.lifetime(&case.policy).ms, head.facts.lifetime(&case.policy).ms);
}

#[test]
fn what_is_not_for_the_request_is_foreign() {
    let case = Case::new();
    let head = case.head(&LINES, 0);
    let record = Bytes::from(encode_head(&Seal::Checksum, NAME, &head, times(0), &whole(b"x"), b"x"));
    let other = Case {
        key: CacheKey::new(&Target::from_url("http://shop.example/b").unwrap(), &Fields::new(), &KeyPolicy::default()),
        ..Case::new()
    };
    assert_eq!(HeadRecord::decode(&Seal::Checksum, NAME, &record, &other.reading()).unwrap_err(), Unreadable::Foreign);
    let other = Case { site: Arc::new("blog".into()), ..Case::new() };
    assert_eq!(HeadRecord::decode(&Seal::Checksum, NAME, &record, &other.reading()).unwrap_err(), Unreadable::Foreign);
}

#[test]
fn a_record_counts_under_its_name_its_seal_and_its_version_only() {
    let seal = Seal::Checksum;
    let record = encode_segment(&seal, b"name", b"bytes");
    let decode = |seal: &Seal, name: &[u8], record: Vec<u8>| decode_segment(seal, name, &record.into());
    assert_eq!(decode(&seal, b"name", record.clone()).unwrap(), "bytes");
    assert_eq!(decode(&seal, b"other", record.clone()), Err(Unreadable::Damaged));
    let [_, keyed] = seals();
    assert_eq!(decode(&keyed, b"name", record.clone()), Err(Unreadable::Damaged), "no checksum where a MAC is wanted");
    let sealed = encode_segment(&keyed, b"name", b"bytes");
    assert_eq!(decode(&keyed, b"name", sealed.clone()).unwrap(), "bytes");
    assert_eq!(decode(&seal, b"name", sealed.clone()), Err(Unreadable::Damaged));
    assert_eq!(decode(&Seal::Key(b"another key".as_slice().into()), b"name", sealed), Err(Unreadable::Damaged));
    let mut future = record.clone();
    future[4] += 1;
    assert_eq!(decode(&seal, b"name", future), Err(Unreadable::Version));
    assert_eq!(decode(&seal, b"name", b"something else".to_vec()), Err(Unreadable::Foreign));
    assert_eq!(decode(&seal, b"name", Vec::new()), Err(Unreadable::Foreign));
    let primary = Primary { began_ms: 1, vary: Vary::Nothing }.encode(&seal, b"name");
    assert_eq!(decode(&seal, b"name", primary), Err(Unreadable::Foreign), "of another kind");
}

#[test]
fn the_script_finds_the_time_where_it_looks() {
    let case = Case::new();
    let head = encode_head(&Seal::Checksum, NAME, &case.head(&LINES, 0), times(0), &whole(b""), b"");
    let primary = Primary { began_ms: times(0).began_ms, vary: Vary::Nothing }.encode(&Seal::Checksum, NAME);
    for record in [head, primary] {
        assert_eq!(record[BEGAN_AT - 1..BEGAN_AT + 7], times(0).began_ms.to_le_bytes());
    }
}

/// Bytes of which names and values are made, and some that are in neither.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => prop::sample::select(b"aZ0-_".to_vec()), 1 => prop::sample::select(b": \t\r\n\0\x7f\xff\"(,".to_vec())];
    prop::collection::vec(byte, 6)
}

proptest! {
    /// Rightly sealed, and yet no field of ours: who holds the key, or may write where only a checksum is asked for.
    #[test]
    fn a_field_that_is_none_is_refused(name in any_text(), value in any_text(), consumed: bool) {
        use crate::semantics::fields::{is_token_byte, is_value_byte};
        let mut case = Case::new();
        case.policy.targeted = TargetList::new(&["surrogate-control".to_owned()], case.policy.targeted.device());
        let mut lines = LINES.to_vec();
        lines.push(if consumed { ("surrogate-control", "max-age=5, zzzzzz") } else { ("x-name", "zzzzzz") });
        for seal in seals() {
            let mut head = case.head(&lines, 5);
            head.fields.remove("surrogate-control");
            let record = encode_head(&seal, NAME, &head, times(5), &whole(b""), b"");
            let mut content = record[ENVELOPE..record.len() - seal.length()].to_vec();
            let mut replace = |old: &[u8], new: &[u8]| {
                let at = content.windows(old.len()).position(|there| there == old).unwrap();
                content[at..at + old.len()].copy_from_slice(new);
            };
            replace(b"zzzzzz", &value);
            if !consumed {
                replace(b"x-name", &name);
            }
            let is_field = (consumed || name.iter().all(|byte| is_token_byte(*byte)))
                && crate::semantics::fields::trim(&value).iter().all(|byte| is_value_byte(*byte));
            let record = sealed(Kind::Head, &seal, NAME, &content).into();
            let read = HeadRecord::decode(&seal, NAME, &record, &case.reading());
            prop_assert_eq!(read.as_ref().err(), (!is_field).then_some(&Unreadable::Malformed));
        }
    }

    #[test]
    fn primary_records_survive(began_ms: i64, names in proptest::collection::vec("[a-z-]{1,12}", 0..5)) {
        let vary = Vary::parse(&fields(&names.iter().map(|name| ("vary", name.as_str())).collect::<Vec<_>>()));
        let primary = Primary { began_ms, vary };
        for seal in seals() {
            let record = primary.encode(&seal, NAME);
            prop_assert_eq!(Primary::decode(&seal, NAME, &record).unwrap(), primary.clone());
        }
    }

    #[test]
    fn one_changed_bit_is_seen(body in proptest::collection::vec(any::<u8>(), 0..200), at: usize, bit in 0..8u8) {
        let case = Case::new();
        for seal in seals() {
            let mut record = encode_head(&seal, NAME, &case.head(&LINES, 5), times(5), &whole(&body), &body);
            let at = at % record.len();
            record[at] ^= 1 << bit;
            let decoded = HeadRecord::decode(&seal, NAME, &record.into(), &case.reading());
            // Two bytes of the envelope say nothing yet; they are sealed like the rest.
            prop_assert!(decoded.is_err());
        }
    }

    #[test]
    fn a_record_cut_short_is_seen(body in proptest::collection::vec(any::<u8>(), 0..200), left: usize) {
        let case = Case::new();
        let record = encode_head(&Seal::Checksum, NAME, &case.head(&LINES, 5), times(5), &whole(&body), &body);
        let short = Bytes::from(record).slice(..left % 300);
        prop_assert!(HeadRecord::decode(&Seal::Checksum, NAME, &short, &case.reading()).is_err());
    }

    /// Whatever stands behind a right checksum: read or refused, never a panic.
    #[test]
    fn any_content_under_a_right_seal_is_read_or_refused(content in proptest::collection::vec(any::<u8>(), 0..400)) {
        let case = Case::new();
        for kind in [Kind::Head, Kind::Primary] {
            let record = Bytes::from(sealed(kind, &Seal::Checksum, NAME, &content));
            let _ = HeadRecord::decode(&Seal::Checksum, NAME, &record, &case.reading());
            let _ = Primary::decode(&Seal::Checksum, NAME, &record);
        }
    }
}
