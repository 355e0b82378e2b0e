//! Starting: from flags, from files, from both, and not at all.

use super::process::{Process, TERMINATE, command, config, fails, run, write_config};
use super::{get, get_with};
use crate::support::origin::{Origin, Script};
use std::net::TcpListener;

fn origin(body: &'static str) -> Origin {
    Origin::start(move |_| Script::ok(body).header("cache-control", "max-age=60"))
}

#[tokio::test]
async fn flags_alone_are_enough_and_free_ports_are_printed() {
    let origin = origin("by flags");
    let process = Process::run(&["--upstream", &origin.url(), "--metrics", "127.0.0.1:0"]);
    assert_eq!(get(process.http(), "/").await.text(), "by flags");
    for name in ["listener http", "admin", "metrics"] {
        assert_ne!(process.address(name).port(), 0);
    }
    assert_eq!(get(process.admin(), "/readyz").await.status, 200);
    assert_eq!(get(process.address("metrics"), "/healthz").await.text(), "ok\n");
}

#[tokio::test]
async fn every_format_of_file_starts_the_same_server() {
    let origin = origin("from a file");
    let url = origin.url();
    let toml = config(&url, "x_cache = true");
    let yaml = format!(
        "x_cache: true\nlisteners:\n  http:\n    address: 127.0.0.1:0\nadmin:\n  address: 127.0.0.1:0\nlog:\n  access:\n    target: 'off'\n\
         upstreams:\n  default:\n    endpoints: ['{url}']\n"
    );
    let json = serde_json::json!({
        "x_cache": true,
        "listeners": {"http": {"address": "127.0.0.1:0"}},
        "admin": {"address": "127.0.0.1:0"},
        "log": {"access": {"target": "off"}},
        "upstreams": {"default": {"endpoints": [url]}},
    })
    .to_string();
    for (ending, text) in [("toml", &toml), ("yaml", &yaml), ("yml", &yaml), ("json", &json)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(format!("tiercel.{ending}"));
        std::fs::write(&file, text).unwrap();
        let process = Process::run(&["--config", file.to_str().unwrap()]);
        let answer = get(process.http(), &format!("/{ending}")).await;
        assert_eq!((answer.text(), answer.field("x-cache")), ("from a file", Some("MISS")), "{ending}");
    }
}

#[tokio::test]
async fn flags_override_a_file_and_leave_the_rest_of_it() {
    let (in_file, by_flag) = (origin("file"), origin("flag"));
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "x_cache = true\n[server]\nname = 'file'\n[admin]\naddress = 'off'\n[log.access]\ntarget = 'off'\n[upstreams.default]\nendpoints = ['{}']\n",
        in_file.url()
    );
    let file = write_config(folder.path(), &text);
    let flags = ["run", "--config", file.to_str().unwrap(), "--listen", "127.0.0.1:0", "--upstream", &by_flag.url(), "--name", "flag"];
    let process = Process::spawn(&mut command(&flags));
    let answer = get(process.http(), "/").await;
    assert_eq!((answer.text(), answer.field("x-cache"), answer.field("via")), ("flag", Some("MISS"), Some("1.1 flag")));
    assert_eq!(in_file.total(), 0);
    assert!(!process.out.all().iter().any(|line| line.starts_with("admin")), "the file turned it off");
}

#[tokio::test]
async fn the_environment_names_the_file_and_overrides_it() {
    let origin = origin("x");
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = format!("{}[server]\nname = 'file'\n", config(&origin.url(), ""));
    let file = write_config(folder.path(), &text);
    let by_environment = Process::spawn(command(&["run"]).env("TIERCEL_CONFIG", &file));
    assert_eq!(get(by_environment.http(), "/").await.field("via"), Some("1.1 file"));
    let overridden = Process::spawn(command(&["run"]).env("TIERCEL_CONFIG", &file).env("TIERCEL__SERVER__NAME", "variable"));
    assert_eq!(get(overridden.http(), "/").await.field("via"), Some("1.1 variable"));
    let text = format!("{}[server]\nname = 'given'\n", config(&origin.url(), ""));
    let given = write_config(other.path(), &text);
    let by_flag = Process::spawn(command(&["run", "--config", given.to_str().unwrap()]).env("TIERCEL_CONFIG", &file));
    assert_eq!(get(by_flag.http(), "/").await.field("via"), Some("1.1 given"));
}

#[tokio::test]
async fn leading_flags_are_those_of_run() {
    let origin = origin("x");
    let flags = ["--upstream", &origin.url(), "--listen", "127.0.0.1:0", "--admin", "off", "--access-log", "off", "--memory", "64MiB"];
    let process = Process::spawn(&mut command(&flags));
    assert_eq!(get(process.http(), "/").await.status, 200);
    let version = run(&["--version"]);
    assert!(version.status.success() && String::from_utf8_lossy(&version.stdout).starts_with("tiercel "));
    assert!(run(&["--help"]).status.success());
}

#[test]
fn a_broken_configuration_is_exit_code_2_and_binds_nothing() {
    // Were anything bound before the configuration is whole, the taken port would be the problem.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[listeners.http]\naddress = '{}'\n[upstreams.default]\nendpoint = ['http://a:1']\n", taken.local_addr().unwrap());
    let file = write_config(folder.path(), &text);
    let (code, said) = fails(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert!(said.contains("upstreams.default.endpoint") && said.contains("endpoints") && !said.contains("taken"), "{said}");
}

#[test]
fn what_a_configuration_widens_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::with_config(folder.path(), &config("http://127.0.0.1:1", "[cache]\nset_cookie = 'store'\n"));
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(0));
    let said: Vec<String> = process.err.whole().into_iter().filter(|line| line.contains("cache.set_cookie")).collect();
    assert!(matches!(&said[..], [line] if line.contains("WARN")), "{said:?}");
}

#[test]
fn a_missing_file_is_exit_code_2_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nothing.toml");
    let (code, said) = fails(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert!(said.contains(file.to_str().unwrap()), "{said}");
}

#[test]
fn a_taken_port_is_exit_code_1_with_key_and_address_and_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    for (flag, key) in [("--listen", "listeners.http.address"), ("--admin", "admin.address"), ("--metrics", "metrics.address")] {
        for workers in ["1", "2"] {
            let mut arguments =
                vec!["run", "--upstream", "http://127.0.0.1:1", "--access-log", log.to_str().unwrap(), "--workers", workers];
            for other in ["--listen", "--admin", "--metrics"] {
                arguments.extend([other, if other == flag { &address } else { "127.0.0.1:0" }]);
            }
            let (code, said) = fails(&arguments);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(key) && said.contains(&address), "{said}");
            assert!(!log.exists(), "{key}");
        }
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_an_error_of_requests_not_of_the_start() {
    let process = Process::run(&["--upstream", "http://no-such-host.invalid:1"]);
    assert_eq!(get(process.admin(), "/readyz").await.status, 200);
    let answer = get(process.http(), "/").await;
    assert_eq!(answer.status, 502);
    assert!(answer.field("proxy-status").is_some_and(|status| status.contains("error=dns_")), "{}", answer.head);
    assert!(!answer.text().contains("invalid"), "the client learns no names of upstreams");
}

#[tokio::test]
async fn an_admin_listener_that_others_can_reach_needs_a_token() {
    let (code, said) = fails(&["run", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("admin.address") && said.contains("token"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let text = config("http://127.0.0.1:1", "")
        .replace("[admin]\naddress = '127.0.0.1:0'", "[admin]\naddress = '0.0.0.0:0'\ntoken = 'open-sesame'");
    let process = Process::with_config(folder.path(), &text);
    let admin = ([127, 0, 0, 1], process.admin().port()).into();
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(get(admin, path).await.status, 200, "{path} needs no token");
    }
    for path in ["/", "/v1/status", "/v1/config"] {
        assert_eq!(get(admin, path).await.status, 401, "{path}");
        assert_eq!(get_with(admin, path, "Authorization: Bearer wrong\r\n").await.status, 401, "{path}");
        assert_eq!(get_with(admin, path, "Authorization: Bearer open-sesame\r\n").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_metrics_listener_shows_and_changes_nothing_else() {
    let origin = origin("x");
    let process = Process::run(&["--upstream", &origin.url(), "--metrics", "127.0.0.1:0"]);
    let metrics = process.address("metrics");
    for (path, status) in [("/metrics", 200), ("/healthz", 200), ("/readyz", 200), ("/", 404), ("/v1/status", 404), ("/v1/config", 404)] {
        assert_eq!(get(metrics, path).await.status, status, "{path}");
    }
    assert_eq!(super::post(metrics, "/v1/purge", r#"{"everything":true}"#).await.status, 404);
    assert_eq!(super::post(metrics, "/metrics", "").await.status, 405);
}

#[test]
fn health_says_by_exit_code_whether_requests_are_welcome() {
    let mut process = Process::run(&["--upstream", "http://127.0.0.1:1", "--metrics", "127.0.0.1:0"]);
    for address in [process.address("metrics"), process.admin()] {
        let healthy = run(&["health", &format!("http://{address}")]);
        assert_eq!((healthy.status.code(), &healthy.stdout[..]), (Some(0), &b"ready\n"[..]));
        assert!(run(&["health", &format!("{address}/healthz")]).status.success());
        assert_eq!(fails(&["health", &format!("http://{address}/nothing")]).0, Some(1));
    }
    let address = process.admin();
    process.signal(super::process::TERMINATE);
    assert_eq!(process.end(), Some(0));
    let (code, said) = fails(&["health", &format!("http://{address}")]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&address.to_string()), "{said}");
    assert_eq!(fails(&["health", "https://nowhere"]).0, Some(2));
}
