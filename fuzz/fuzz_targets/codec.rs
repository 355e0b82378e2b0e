//! Records of stored responses as a shared tier may hold them: as they come, and rightly sealed around anything.
//!
//! Whatever is read is written back to the same meaning.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use tiercel::cache::codec::{HeadRecord, Kind, Primary, Reading, Seal, Times, decode_segment, encode_head, sealed};
use tiercel::semantics::key::KeyPolicy;
use tiercel::semantics::policy::CachePolicy;
use tiercel::semantics::{CacheKey, Fields, Now, Target};

const NAME: &[u8] = b"tiercel:c:1:{0}:h:0";
const NOW: Now = Now { wall_ms: 1_700_000_000_000, mono_ms: 1_000_000 };

fuzz_target!(|data: &[u8]| {
    let target = Target::from_url("http://a/").expect("a URL");
    let key = CacheKey::new(&target, &Fields::new(), &KeyPolicy::default());
    let (site, policy): (Arc<Box<str>>, _) = (Arc::new("a".into()), CachePolicy::default());
    let reading = Reading { key: &key, target: &target, site: &site, policy: &policy, fetch: 1, now: NOW, redis_now_ms: NOW.wall_ms };
    let seal = Seal::Checksum;
    let _ = decode_segment(&seal, NAME, &Bytes::copy_from_slice(data));
    let _ = HeadRecord::decode(&seal, NAME, &Bytes::copy_from_slice(data), &reading);
    if let Ok(primary) = Primary::decode(&seal, NAME, &sealed(Kind::Primary, &seal, NAME, data)) {
        assert_eq!(Primary::decode(&seal, NAME, &primary.encode(&seal, NAME)), Ok(primary));
    }
    // The cache key and the site have to be the request's: they are put where the first bytes end.
    let (start, rest) = data.split_at(data.len().min(113));
    let ours = [start, &(key.as_str().len() as u32).to_le_bytes(), key.as_str().as_bytes(), rest].concat();
    for content in [data, &ours] {
        let record = Bytes::from(sealed(Kind::Head, &seal, NAME, content));
        let Ok(read) = HeadRecord::decode(&seal, NAME, &record, &reading) else { continue };
        let times = Times { began_ms: read.began_ms, received_ms: NOW.wall_ms };
        let again = Bytes::from(encode_head(&seal, NAME, &read.head, times, &read.plan, &read.first));
        let again = HeadRecord::decode(&seal, NAME, &again, &reading).expect("what was written is read");
        assert_eq!((again.head.fields.wire(), again.first, again.plan), (read.head.fields.wire(), read.first, read.plan));
    }
});
