//! Compression dictionaries (RFC 9842): what an origin declares one, who gets what is coded against it, and that it comes back.

use super::*;
use std::io::Read;
use std::process::Command;
use tiercel::semantics::dictionary::Dictionary;

const ON: &str = "[compression]\nenabled = true\ndictionaries = true\n";
const DELTAS: [&str; 2] = ["dcz", "dcb"];
const VARY: &str = "accept-encoding, available-dictionary";

/// A script of functions, each named and filled by its number and `version` where that is its own.
fn bundle(version: &str, functions: usize) -> String {
    let function = |number: usize| {
        let seed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (a, b, own) = (seed >> 40, seed >> 17 & 0xffff, if number % 97 == 13 { version } else { "stable" });
        format!(
            "function f{a:x}(node, options) {{\n  if (options.{own} === {b}) return node.children.map(c => c.k{b:x} + {number});\n  \
             return hydrate(node, \"{:x}\", options.depth + 1);\n}}\n",
            seed ^ b
        )
    };
    (0..functions).map(function).collect()
}

fn script(body: impl Into<Vec<u8>>) -> Script {
    Script::ok(body)
        .header("Cache-Control", "max-age=3600")
        .header("Content-Type", "text/javascript")
        .header("ETag", "\"v\"")
        .header("Use-As-Dictionary", "match=\"/app*js\", id=\"app\"")
}

/// What a client says that has these bytes, and reads this coding besides the usual ones.
fn having(dictionary: &str, coding: &str) -> String {
    let hash = Dictionary::new(dictionary.as_bytes().to_vec().into()).hash();
    format!("Accept-Encoding: gzip, br, zstd, {coding}\r\nAvailable-Dictionary: {hash}\r\nDictionary-ID: \"app\"\r\n")
}

/// What a form against a dictionary stands for, read by others' decoders of plain streams.
fn decoded(answer: &Answer, dictionary: &str) -> Vec<u8> {
    let (form, dictionary) = (&answer.body, dictionary.as_bytes());
    let hash = Dictionary::new(dictionary.to_vec().into()).hash().0;
    let mut out = Vec::new();
    match answer.field("content-encoding") {
        Some("dcb") => {
            assert_eq!((&form[..4], &form[4..36]), (&b"\xffDCB"[..], &hash[..]));
            let mut decoder = brotli::Decompressor::new_with_custom_dict(&form[36..], 4096, dictionary.to_vec().into());
            decoder.read_to_end(&mut out).expect("a whole form");
        }
        Some("dcz") => {
            assert_eq!((&form[..8], &form[8..40]), (&b"\x5e\x2a\x4d\x18\x20\0\0\0"[..], &hash[..]));
            let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(&form[40..], dictionary).expect("a decoder");
            decoder.window_log_max(23).expect("a window of 8 MiB");
            decoder.read_to_end(&mut out).expect("a whole form");
        }
        other => panic!("{other:?}: {}", answer.head),
    }
    out
}

/// Serves `old` under `/app.old.js`, `new` under every other path.
fn serve_both(config: &str, old: &str, new: &str) -> Served {
    let (old, new) = (old.to_owned(), new.to_owned());
    serve_with(config, move |request| script(if request.path == "/app.old.js" { old.clone() } else { new.clone() }))
}

async fn until_kept(served: &Served, count: u64) {
    served.until_metric("tiercel_compress_dictionaries", count).await;
}

async fn named(served: &Served, outcome: &str) -> u64 {
    served.metric(&format!("tiercel_compress_dictionary_requests_total{{outcome=\"{outcome}\"}}")).await
}

async fn coded(served: &Served, coding: &str, source: &str) -> u64 {
    served.metric(&format!("tiercel_compress_total{{coding=\"{coding}\",source=\"{source}\"}}")).await
}

/// GETs until the form comes from the store.
async fn until_form(served: &Served, path: &str, lines: &str) -> Answer {
    served.until(path, lines, "the form from the store", |answer| answer.field("content-length").is_some()).await
}

#[tokio::test]
async fn a_new_version_goes_out_against_the_one_that_a_client_has() {
    let (old, new) = (bundle("v1", 800), bundle("v2", 810));
    let served = serve_both(ON, &old, &new);
    let first = served.get_with("/app.old.js", "Accept-Encoding: br\r\n").await;
    assert_eq!((first.field("use-as-dictionary"), first.all("vary").as_str()), (Some("match=\"/app*js\", id=\"app\""), VARY));
    until_kept(&served, 1).await;
    for coding in DELTAS {
        let path = format!("/app.{coding}.js");
        let usual = until_form(&served, &path, "Accept-Encoding: br\r\n").await;
        let making = served.get_with(&path, &having(&old, coding)).await;
        assert_eq!((making.status, making.field("content-encoding"), making.whole), (200, Some(coding), true), "{}", making.head);
        assert!(decoded(&making, &old) == new.as_bytes());
        let form = until_form(&served, &path, &having(&old, coding)).await;
        assert!(form.says("hit") && decoded(&form, &old) == new.as_bytes());
        assert_eq!((form.all("vary").as_str(), form.field("etag"), form.field("accept-ranges")), (VARY, Some("W/\"v\""), None));
        assert!(form.body.len() * 10 < usual.body.len(), "{coding}: {} of {}", form.body.len(), usual.body.len());
        assert_eq!(coded(&served, coding, "making").await, 1);
        let hash = Dictionary::new(old.clone().into()).hash();
        assert_eq!(served.explain(&path).await["stored"]["forms"][format!("{coding} {hash}")], form.body.len());
        // What others get is as before, and says that it might have been another.
        let plain = served.get(&path).await;
        assert_eq!((plain.text(), plain.all("vary").as_str(), plain.field("etag")), (new.as_str(), VARY, Some("\"v\"")));
        let confirmed = served.get_with(&path, &format!("{}If-None-Match: W/\"v\"\r\n", having(&old, coding))).await;
        assert_eq!((confirmed.status, confirmed.all("vary").as_str()), (304, VARY));
        let part = served.get_with(&path, &format!("{}Range: bytes=5-9\r\n", having(&old, coding))).await;
        assert_eq!((part.status, part.text(), part.all("vary").as_str()), (206, &new[5..10], VARY));
        let head = served.ask("HEAD", &path, &having(&old, coding), "").await;
        assert_eq!((head.field("content-encoding"), head.field("content-length")), (Some(coding), form.field("content-length")));
        assert_eq!(served.origin.count(&path), 1);
        let asked = served.last(&path);
        let seen = ["accept-encoding", "available-dictionary", "dictionary-id"].map(|field| asked.field(field));
        assert_eq!(seen, [Some("identity"), None, None], "the origin gets one question from everybody");
    }
    assert_eq!(named(&served, "unknown").await, 0);
}

#[tokio::test]
async fn the_next_version_at_the_same_url_is_coded_against_the_one_before() {
    let (old, new) = (bundle("v1", 400), bundle("v2", 400));
    let (before, after) = (old.clone(), new.clone());
    let first = std::sync::Once::new();
    let served = serve_with(ON, move |_| {
        let mut body = after.clone();
        first.call_once(|| body = before.clone());
        script(body)
    });
    served.get("/app.js").await;
    until_kept(&served, 1).await;
    let purged = served.admin("POST", "/v1/purge", &json!({"urls": [format!("http://{HOST}/app.js")]}).to_string()).await;
    assert_eq!(purged.0, 200, "{}", purged.1);
    // Also while it arrives: its length is known, and it is not waited for.
    let arriving = served.get_with("/app.js", &having(&old, "dcz")).await;
    assert_eq!((arriving.says("hit"), arriving.field("content-encoding")), (false, Some("dcz")), "{}", arriving.head);
    assert!(decoded(&arriving, &old) == new.as_bytes());
    assert!(decoded(&until_form(&served, "/app.js", &having(&old, "dcz")).await, &old) == new.as_bytes());
}

#[tokio::test]
async fn a_hundred_clients_that_come_at_once_have_it_made_once() {
    let (old, new) = (bundle("v1", 2000), bundle("v2", 2000));
    let served = serve_both(ON, &old, &new);
    served.get("/app.old.js").await;
    served.get("/app.js").await;
    until_kept(&served, 2).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(served.client().await);
    }
    for client in &mut clients {
        client.send(request("GET", "/app.js", &having(&old, "dcb"), "")).await;
    }
    for client in &mut clients {
        let answer = client.answer(false).await.expect("an answer");
        assert!(answer.whole && decoded(&answer, &old) == new.as_bytes(), "{}", answer.head);
    }
    let counts = [coded(&served, "dcb", "making").await, coded(&served, "dcb", "following").await + coded(&served, "dcb", "store").await];
    assert_eq!((counts, named(&served, "used").await), ([1, 99], 100));
}

#[tokio::test]
async fn what_is_not_known_or_not_to_be_used_is_as_if_nobody_had_it() {
    let (old, new) = (bundle("v1", 300), bundle("v2", 300));
    let config = format!(
        "{ON}[sites.s]\n[[sites.s.routes]]\npath = \"/off/\"\ncompression.dictionaries = false\n\
         [[sites.s.routes]]\npath = \"/secret/\"\ncompression.sensitive = true\n"
    );
    let (before, after) = (old.clone(), new.clone());
    let served = serve_with(&config, move |request| match request.path.as_str() {
        "/app.old.js" | "/off/old" | "/secret/old" => script(before.clone()),
        "/invalid" => {
            Script::ok("invalid ".repeat(500)).header("Cache-Control", "max-age=60").header("Use-As-Dictionary", "match=no-string")
        }
        "/no-transform" => script(after.clone()).header("Cache-Control", "max-age=60, no-transform"),
        "/own" => script(after.clone()).header("Cache-Control", "private"),
        "/encoded" => script(after.clone()).header("Content-Encoding", "x-own"),
        _ => script(after.clone()),
    });
    for path in ["/app.old.js", "/off/old", "/secret/old", "/invalid", "/no-transform", "/own", "/encoded"] {
        served.get(path).await;
    }
    // What may not be transformed may be a dictionary all the same: nothing is done to it.
    until_kept(&served, 2).await;
    for (path, want, vary) in [
        ("/app.js", Some("dcz"), VARY),
        ("/off/app.js", Some("zstd"), "accept-encoding"),
        ("/secret/app.js", Some("zstd"), "accept-encoding"),
        ("/no-transform", None, ""),
        ("/own", Some("zstd"), "accept-encoding"),
        ("/encoded", Some("x-own"), ""),
    ] {
        let answer = served.get_with(path, &having(&old, "dcz")).await;
        assert_eq!((answer.field("content-encoding"), answer.all("vary").as_str()), (want, vary), "{path}: {}", answer.head);
    }
    assert_eq!(served.last("/off/app.js").field("dictionary-id"), Some("\"app\""), "it is none of our business there");
    let ask = async |lines: &str| served.get_with("/app.js", lines).await.field("content-encoding").map(str::to_owned);
    let has_old = having(&old, "dcz");
    assert_eq!(ask(&having("never seen", "dcz")).await.as_deref(), Some("zstd"));
    assert_eq!(named(&served, "unknown").await, 1);
    assert_eq!(ask(&having(&old, "dcz;q=0.9")).await.as_deref(), Some("zstd"), "it likes others better");
    assert_eq!(ask(&having(&old, "*")).await.as_deref(), Some("zstd"), "nobody asked for it by name");
    assert_eq!(ask(&has_old.replace("Available-Dictionary: :", "Available-Dictionary: :AAAA")).await.as_deref(), Some("zstd"));
    assert_eq!(ask(&format!("{has_old}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n")).await.as_deref(), Some("zstd"));
    assert_eq!(named(&served, "other_origin").await, 1);
    let elsewhere = served.client().await.ask(format!("GET /app.js HTTP/1.1\r\nHost: other.example\r\n{has_old}\r\n")).await;
    assert_eq!(elsewhere.field("content-encoding"), Some("zstd"), "a dictionary is for its origin: {}", elsewhere.head);
    assert_eq!(named(&served, "unknown").await, 2);
}

#[tokio::test]
async fn dictionaries_and_what_is_made_against_them_are_bounded() {
    let config = format!("{ON}dictionary_forms = 2\ndictionary_max_size = \"300KB\"\n[limits]\ndictionary_memory = \"1MiB\"\n");
    let served = serve_with(&config, |request| match request.path.as_str() {
        "/app.js" => script(bundle("new", 1000)),
        "/large" => script(bundle("large", 3000)),
        path => script(bundle(path, 1000)),
    });
    served.get("/large").await;
    served.until_metric("tiercel_bound_reached_total{bound=\"dictionary_size\"}", 1).await;
    served.get("/app.js").await;
    for number in 0..12 {
        served.get(&format!("/{number}")).await;
    }
    let deadline = Instant::now() + PATIENCE;
    while served.metric("tiercel_bound_reached_total{bound=\"dictionary_memory\"}").await < 6 {
        assert!(Instant::now() < deadline, "they are all kept");
        tokio::time::sleep(Duration::from_millis(10)).await; // nobody announces it
    }
    let bytes = served.metric("tiercel_compress_dictionary_bytes").await;
    assert!((300_000..=1 << 20).contains(&bytes), "{bytes}");
    // The last ones are there. Of three forms the oldest went.
    for number in [9, 10, 11] {
        let old = bundle(&format!("/{number}"), 1000);
        let form = until_form(&served, "/app.js", &having(&old, "dcz")).await;
        assert!(decoded(&form, &old) == bundle("new", 1000).into_bytes());
    }
    let explained = served.explain("/app.js").await;
    let forms: Vec<&String> =
        explained["stored"]["forms"].as_object().expect("forms").keys().filter(|form| form.starts_with("dcz")).collect();
    assert_eq!(forms.len(), 2, "{explained}");
}

#[tokio::test]
async fn what_is_sent_often_is_made_smaller_while_its_dictionary_is_kept() {
    let (old, new) = (bundle("v1", 1500), bundle("v2", 1500));
    let served = serve_both("[compression]\nenabled = true\ndictionaries = true\nhot_hits = 32\n", &old, &new);
    served.get("/app.old.js").await;
    until_kept(&served, 1).await;
    for coding in DELTAS {
        let fast = until_form(&served, "/app.js", &having(&old, coding)).await;
        let (series, deadline) = (format!("tiercel_compress_remade_total{{coding=\"{coding}\"}}"), Instant::now() + PATIENCE);
        let mut client = served.client().await;
        while served.metric(&series).await == 0 {
            assert!(Instant::now() < deadline, "{coding} is never made anew");
            for _ in 0..32 {
                client.ask(request("GET", "/app.js", &having(&old, coding), "")).await;
            }
        }
        let high = served.get_with("/app.js", &having(&old, coding)).await;
        assert!(high.body.len() < fast.body.len(), "{coding}: {} and {}", high.body.len(), fast.body.len());
        assert!(decoded(&high, &old) == new.as_bytes());
    }
}

/// Two releases: those in the folder that `TIERCEL_BUNDLES` names (`old.js`, `new.js`), else generated ones.
fn releases() -> (String, String) {
    match std::env::var_os("TIERCEL_BUNDLES").map(std::path::PathBuf::from) {
        Some(folder) => {
            let read = |name| std::fs::read_to_string(folder.join(name)).expect("a bundle");
            (read("old.js"), read("new.js"))
        }
        None => (bundle("v3.5.12", 1500), bundle("v3.5.13", 1510)),
    }
}

/// One letter in a hundred is another, in runs of eight.
fn edited(text: &str) -> String {
    let edit = |(at, letter): (usize, char)| if at % 800 < 8 && letter.is_ascii_lowercase() { 'q' } else { letter };
    text.chars().enumerate().map(edit).collect()
}

#[tokio::test]
async fn two_releases_and_an_edit_are_as_small_as_promised() {
    let (old, new) = releases();
    assert!(new.len() >= 100_000, "{}", new.len());
    for (new, most) in [(new, 25), (edited(&old), 10)] {
        let served = serve_both(&format!("{ON}[compression.level]\nbr = 11\n"), &old, &new);
        served.get("/app.old.js").await;
        until_kept(&served, 1).await;
        let brotli = until_form(&served, "/app.js", "Accept-Encoding: br\r\n").await.body.len();
        served.reload(ON).await;
        served.get("/app.js").await;
        for coding in DELTAS {
            let form = until_form(&served, "/app.js", &having(&old, coding)).await;
            assert!(decoded(&form, &old) == new.as_bytes());
            let share = form.body.len() as f64 * 100.0 / brotli as f64;
            println!("{} bytes, {brotli} in brotli at level 11, {} in {coding}: {share:.2} %", new.len(), form.body.len());
            assert!(share <= f64::from(most), "{coding}: {share:.2} % of {brotli}");
        }
    }
}

#[tokio::test]
async fn the_zstd_of_the_system_reads_it() {
    let (old, new) = (bundle("v1", 500), bundle("v2", 500));
    let served = serve_both(ON, &old, &new);
    served.get("/app.old.js").await;
    until_kept(&served, 1).await;
    let form = served.get_with("/app.js", &having(&old, "dcz")).await;
    let file = |name: &str| served.folder.path().join(name);
    std::fs::write(file("old"), &old).expect("a writable folder");
    std::fs::write(file("form"), &form.body[40..]).expect("a writable folder");
    let patch = format!("--patch-from={}", file("old").display());
    let arguments = ["-dcq".into(), patch.into(), file("form").into_os_string()];
    let zstd = tokio::task::spawn_blocking(move || Command::new("zstd").args(arguments).output().expect("zstd is installed"));
    let zstd = zstd.await.expect("no panic");
    assert!(zstd.status.success() && zstd.stdout == new.as_bytes(), "{}", String::from_utf8_lossy(&zstd.stderr));
}
