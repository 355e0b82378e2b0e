//! Ranges on a miss and out of a fill that is under way.

use super::*;

const PATH: &str = "/video";
const LENGTH: usize = 1 << 20;

/// The text of which every byte tells its place.
fn video() -> String {
    (0..LENGTH / 8).map(|at| format!("{at:07} ")).collect()
}

/// Answers ranges as a good origin does, with an entity tag.
fn ranged(request: &Recorded) -> Script {
    let range = request.field("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((first, last)) = range else { return fresh(video()).header("ETag", "\"v1\"") };
    let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().unwrap_or(LENGTH - 1));
    Script::status(206, &video().as_bytes()[first..=last])
        .header("Cache-Control", "max-age=60")
        .header("ETag", "\"v1\"")
        .header("Content-Range", &format!("bytes {first}-{last}/{LENGTH}"))
}

async fn range(stage: &Stage, first: usize, last: usize) -> Client {
    stage.send("GET", PATH, &[&format!("Range: bytes={first}-{last}")]).await
}

fn is_part(answer: &Answer, first: usize, last: usize) {
    assert_eq!((answer.status, answer.whole), (206, true), "{}", answer.head);
    assert_eq!(answer.field("content-range"), Some(format!("bytes {first}-{last}/{LENGTH}").as_str()));
    assert!(answer.body == video().as_bytes()[first..=last], "other bytes");
}

fn asked(stage: &Stage) -> Vec<Option<String>> {
    stage.origin.requests(PATH).iter().map(|request| request.field("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_follower_gets_its_range_out_of_the_running_fill() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| in_halves(&video(), &held));
    let mut leader = stage.send("GET", PATH, &[]).await;
    leader.until("0001000 ").await.expect("some of it");
    let there = range(&stage, 80, 159).await.answer(false).await.expect("an answer while the fill runs");
    is_part(&there, 80, 159);
    let mut to_come = range(&stage, LENGTH - 80, LENGTH - 1).await;
    let head = to_come.until("\r\n\r\n").await.expect("a head before the bytes are there");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    gate.open();
    assert_eq!(to_come.until(&video()[LENGTH - 16..]).await.expect("the last bytes"), video()[LENGTH - 80..]);
    leader.until(&video()[LENGTH - 16..]).await.expect("all of it");
    assert_eq!(asked(&stage), [None]);
}

#[tokio::test]
async fn several_ranges_come_out_of_a_running_fill_in_the_order_of_asking() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| in_halves(&video(), &held));
    let mut leader = stage.send("GET", PATH, &[]).await;
    leader.until("0001000 ").await.expect("some of it");
    let set = format!("Range: bytes={}-{},80-159,8000-8007", LENGTH - 8, LENGTH - 1);
    let mut several = stage.send("GET", PATH, &[&set]).await;
    let head = several.until("\r\n\r\n").await.expect("a head before the bytes are there");
    assert!(head.starts_with("HTTP/1.1 206") && head.contains("multipart/byteranges"), "{head}");
    gate.open();
    for (first, last) in [(LENGTH - 8, LENGTH - 1), (80, 159), (8000, 8007)] {
        let part = several.until(&format!("content-range: bytes {first}-{last}/{LENGTH}\r\n\r\n")).await.expect("a part");
        assert!(part.contains("\r\n--"), "{part}");
        assert_eq!(several.until(&video()[last - 7..=last]).await.expect("its bytes"), video()[first..=last]);
    }
    several.until("--\r\n").await.expect("the closing line");
    leader.until(&video()[LENGTH - 16..]).await.expect("all of it");
    assert_eq!(asked(&stage), [None]);
}

#[tokio::test]
async fn a_follower_whose_range_is_far_ahead_goes_alone() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(
        "fill.range_ahead = \"16KiB\"",
        move |number, request| {
            if number == 0 { in_halves(&video(), &held) } else { ranged(request) }
        },
    );
    let mut leader = stage.send("GET", PATH, &[]).await;
    leader.until("0001000 ").await.expect("some of it");
    let ahead = range(&stage, LENGTH - 80, LENGTH - 1).await.answer(false).await.expect("an answer while the fill runs");
    is_part(&ahead, LENGTH - 80, LENGTH - 1);
    assert_eq!(asked(&stage), [None, Some(format!("bytes={}-{}", LENGTH - 80, LENGTH - 1))]);
    gate.open();
    leader.until(&video()[LENGTH - 16..]).await.expect("all of it");
}

#[tokio::test]
async fn a_range_on_a_miss_fetches_the_whole_for_everybody() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, request| ranged(request).after(&held));
    let leader = stage.lead(PATH, &["Range: bytes=8-15"], 1).await;
    let mut clients = stage.follow(PATH, &["Range: bytes=800-999"], 1).await;
    clients.push(stage.send("GET", PATH, &["Range: bytes=-10"]).await);
    clients.push(stage.send("GET", PATH, &["Range: bytes=9999999-"]).await);
    clients.push(stage.send("GET", PATH, &[]).await);
    stage.until_metric(WAITING, 4).await;
    gate.open();
    let got = answers(std::iter::once(leader).chain(clients)).await;
    is_part(&got[0], 8, 15);
    is_part(&got[1], 800, 999);
    is_part(&got[2], LENGTH - 10, LENGTH - 1);
    assert_eq!((got[3].status, got[3].field("content-range")), (416, Some(format!("bytes */{LENGTH}").as_str())));
    assert!(got[4].status == 200 && got[4].body == video().as_bytes());
    assert_eq!(asked(&stage), [None]);
    is_part(&range(&stage, 16, 23).await.answer(false).await.expect("an answer"), 16, 23);
    assert_eq!(asked(&stage), [None], "and it is stored");
}

#[tokio::test]
async fn a_range_of_something_large_is_forwarded_as_it_came() {
    let stage = Stage::with("cache.range_whole_max = \"100KiB\"", |_, request| ranged(request));
    let first = range(&stage, 8, 15).await.answer(false).await.expect("an answer");
    is_part(&first, 8, 15);
    let second = range(&stage, 800, 999).await.answer(false).await.expect("an answer");
    is_part(&second, 800, 999);
    let ranges = ["bytes=8-15", "bytes=800-999"].map(|range| Some(range.to_owned()));
    assert_eq!(asked(&stage), [None, ranges[0].clone(), ranges[1].clone()], "how large it is has to be learnt once");
    assert!(stage.get(PATH).await.body == video().as_bytes(), "the whole is fetched for who asks for it");
    is_part(&range(&stage, 16, 23).await.answer(false).await.expect("an answer"), 16, 23);
    assert_eq!(stage.origin.count(PATH), 4, "and answers ranges from then on");
}

#[tokio::test]
async fn whoever_waits_for_the_whole_keeps_the_fetch_that_a_large_range_began() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(
        "cache.range_whole_max = \"100KiB\"",
        move |number, request| {
            if number == 0 { ranged(request).after(&held) } else { ranged(request) }
        },
    );
    let mut leader = stage.lead(PATH, &["Range: bytes=8-15"], 1).await;
    let whole = stage.follow(PATH, &[], 3).await;
    gate.open();
    is_part(&leader.answer(false).await.expect("an answer"), 8, 15);
    for answer in answers(whole).await {
        assert!(answer.status == 200 && answer.body == video().as_bytes());
    }
    assert_eq!(asked(&stage), [None, Some("bytes=8-15".to_owned())]);
}
