//! What keeps purges in bounds: how many, and that nobody purges much by mistake.

use super::*;
use std::io::Write;
use std::process::{Command, Output, Stdio};

#[tokio::test]
async fn a_caller_purges_no_more_than_its_rate() {
    let served = serve_with("[purge]\nallow = [\"127.0.0.0/8\"]\nrate = \"1/h\"\nburst = 3\n", |_| fresh("body"));
    let refused = served.ask("PURGE", "/a", "Surrogate-Key: a b c d\r\n", "").await;
    assert_eq!(refused.status, 200, "a call larger than the burst takes the whole of it");
    let refused = served.ask("PURGE", "/a", "", "").await;
    assert_eq!(refused.status, 429, "{}", refused.head);
    let seconds: u64 = refused.field("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((3500..=3600).contains(&seconds), "{seconds}");
    let (status, answer) = served.admin("POST", "/v1/purge", r#"{"everything": true}"#).await;
    assert_eq!((status, &answer["error"]["message"]), (429, &json!("too many purges")), "one address is one caller, whichever way");
    assert_eq!(served.metric("tiercel_limit_rejections_total{limit=\"purge\"}").await, 2);
    served.reload("[purge]\nrate = \"off\"\n").await;
    for _ in 0..5 {
        served.soften().await;
    }
}

/// Runs the command line on a terminal, typing `input`.
fn on_a_terminal(served: &Served, arguments: &str, input: &str) -> Output {
    let command = format!("{} purge {arguments} --admin http://{}", env!("CARGO_BIN_EXE_tiercel"), served.tiercel.admin);
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--echo", "never", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script, of util-linux, runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

#[tokio::test]
async fn much_is_purged_from_a_terminal_only_after_a_word() {
    let served = serve(|_| fresh("body").header("ETag", "\"v1\""));
    let purged = async |mode: &str| served.metric(&format!("tiercel_purge_requests_total{{kind=\"everything\",mode=\"{mode}\"}}")).await;
    let ask = |arguments: &str, input: &str| {
        let output = on_a_terminal(&served, arguments, input);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (done, said) = ask("--everything", "\n");
    assert!(!done && said.contains("[s]oft, [h]ard, [N]o") && said.contains("nothing was purged"), "{said}");
    let (done, said) = ask("--everything", "what\nno\n");
    assert!(!done && said.matches("Purge?").count() == 2, "asked again: {said}");
    assert_eq!((purged("hard").await, purged("soft").await), (0, 0));
    let (done, said) = ask("--everything", "s\n");
    assert!(done, "{said}");
    assert_eq!((purged("hard").await, purged("soft").await), (0, 1));
    let (done, said) = ask("--everything", "hard\n");
    assert!(done, "{said}");
    assert_eq!((purged("hard").await, purged("soft").await), (1, 1));
    let (done, said) = ask("--everything --soft", "y\n");
    assert!(done && said.contains("marks as stale: everything"), "{said}");
    let (done, said) = ask("--everything --yes", "");
    assert!(done && !said.contains("[N]o"), "{said}");
    assert_eq!((purged("hard").await, purged("soft").await), (2, 2));
    let (done, said) = ask("--key a", "");
    assert!(done && !said.contains("[N]o"), "a key is not wide: {said}");
}

#[tokio::test]
async fn nobody_is_asked_without_a_terminal() {
    let served = serve(|_| fresh("body"));
    let admin = format!("http://{}", served.tiercel.admin);
    let output = Command::new(env!("CARGO_BIN_EXE_tiercel"))
        .args(["purge", "--prefix", "http://shop.example/", "--admin", &admin])
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(served.metric("tiercel_purge_requests_total{kind=\"prefix\",mode=\"hard\"}").await, 1);
}
