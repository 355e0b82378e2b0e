//! Sockets of this machine, to clients and to upstreams, and upstreams that are told of clients by the PROXY protocol.

use crate::support::origin::{Origin, Recorded, Script, eventually};
use crate::support::pki::{EC, Pki};
use crate::support::process::{HANGUP, Process, TERMINATE, fails, write_config};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn config(upstream: &str, more: &str) -> String {
    format!(
        "[listeners.http]\naddress = '127.0.0.1:0'\n[admin]\naddress = '127.0.0.1:0'\n[log.access]\ntarget = 'off'\n\
         [upstreams.default]\nendpoints = ['{upstream}']\n{more}"
    )
}

/// Under a name of its own: one that asks another of its own name goes in a circle (CDN-Loop).
fn inner(upstream: &str, more: &str) -> String {
    format!("[server]\nname = 'inner'\n{}", config(upstream, more))
}

fn listener(socket: &Path, more: &str) -> String {
    format!("[listeners.local]\naddress = 'unix:{}'\n{more}\n", socket.display())
}

fn curl(arguments: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output().expect("curl runs");
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn ask(socket: &Path, path: &str) -> Result<String, String> {
    let url = format!("http://shop.example{path}");
    curl(&["--unix-socket", socket.to_str().unwrap(), &url]).map(|body| String::from_utf8(body).unwrap())
}

fn client_of(request: &Recorded) -> Script {
    Script::ok(request.field("x-forwarded-for").unwrap_or("nobody").to_owned())
}

#[test]
fn a_socket_is_served_to_whom_its_permissions_let_in_and_goes_with_its_listener() {
    let (folder, origin) = (tempfile::tempdir().unwrap(), Origin::start(client_of));
    let (socket, other) = (folder.path().join("http.sock"), folder.path().join("other.sock"));
    // Left by a process that is gone.
    drop(UnixListener::bind(&socket).unwrap());
    let text = config(&origin.url(), &listener(&socket, "socket_mode = '0600'"));
    let mut process = Process::with_config(folder.path(), &text);
    process.out.wait("its name", |line| line.contains("listener local") && line.contains("unix:"));
    let metadata = std::fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o600, "{metadata:?}");
    assert_eq!(ask(&socket, "/").unwrap(), "127.0.0.1");

    // Somebody listens there: another process is refused, and nothing is taken from the first.
    let second = tempfile::tempdir().unwrap();
    let (code, said) = fails(&["run", "--config", write_config(second.path(), &text).to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("another process listens there") && said.contains("listeners.local.address"), "{said}");
    assert_eq!(ask(&socket, "/").unwrap(), "127.0.0.1");

    // A reload moves it.
    write_config(folder.path(), &config(&origin.url(), &listener(&other, "")));
    process.signal(HANGUP);
    process.err.wait("the reload", |line| line.contains("configuration reloaded"));
    assert_eq!(ask(&other, "/").unwrap(), "127.0.0.1");
    assert!(!socket.exists() && ask(&socket, "/").is_err());
    assert_eq!(std::fs::symlink_metadata(&other).unwrap().permissions().mode() & 0o777, 0o660);
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(0));
    assert!(!other.exists());
}

#[tokio::test]
async fn large_and_small_answers_come_over_sockets_on_both_sides_and_are_kept() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let sent = body.clone();
    let origin = Origin::start(move |request| match request.path.as_str() {
        "/large" => Script::ok(sent.clone()).header("Cache-Control", "max-age=60"),
        _ => Script::ok(request.field("host").unwrap_or_default().to_owned()).header("Cache-Control", "max-age=60"),
    });
    let (folder, edge_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (socket, outer) = (folder.path().join("inner.sock"), folder.path().join("outer.sock"));
    let behind = Process::with_config(folder.path(), &inner(&origin.url(), &listener(&socket, "")));
    behind.out.wait("its name", |line| line.contains("listener local"));
    let edge = format!("unix:{}", socket.display());
    let edge = Process::with_config(edge_folder.path(), &config(&edge, &(listener(&outer, "") + "[cache]\ncollapse = true\n")));
    edge.out.wait("its name", |line| line.contains("listener local"));
    for _ in 0..3 {
        let large = curl(&["--unix-socket", outer.to_str().unwrap(), "http://shop.example/large"]).unwrap();
        assert!(large == body, "{} bytes", large.len());
        assert_eq!(ask(&outer, "/small").unwrap(), "shop.example");
    }
    assert_eq!(origin.total(), 2);
    let all: Vec<_> = (0..20).map(|number| (number, ask(&outer, &format!("/{number}")))).collect();
    assert!(all.iter().all(|(_, answer)| answer.as_deref() == Ok("shop.example")), "{all:?}");
    eventually("connections are used again", || origin.connections() <= 4).await;
    // Nobody there: an error like of any other upstream.
    drop(behind);
    let away = curl(&["-i", "--unix-socket", outer.to_str().unwrap(), "http://shop.example/away"]).unwrap();
    let away = String::from_utf8_lossy(&away).into_owned();
    assert!(away.starts_with("HTTP/1.1 502") && away.contains("connection_refused"), "{away}");
}

#[test]
fn upstreams_are_told_of_each_client_and_no_connection_is_shared() {
    let origin = Origin::start(client_of);
    let (folder, edge_folder, pki) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Pki::new());
    pki.issue("inner", &["localhost"], EC, 2);
    let socket = folder.path().join("inner.sock");
    let tls = format!(
        "[listeners.secure]\naddress = '127.0.0.1:0'\nproxy_protocol = ['127.0.0.1']\n[listeners.secure.tls]\ncertificates = [{}]\n",
        pki.entry("inner")
    );
    let behind = inner(&origin.url(), &(listener(&socket, "proxy_protocol = ['127.0.0.1']") + &tls)) + "[cache]\nenabled = false\n";
    let behind = Process::with_config(folder.path(), &behind);
    behind.out.wait("its name", |line| line.contains("listener local"));
    let secure = format!("https://localhost:{}", behind.address("listener secure").port());
    let ca = format!("tls.ca_file = '{}'\n", pki.path("ca.pem").display());
    for (endpoint, more) in [(format!("unix:{}", socket.display()), ""), (secure, &*ca)] {
        for version in ["v1", "v2"] {
            let before = origin.total();
            let text = config(&endpoint, &format!("proxy_protocol = '{version}'\n{more}[cache]\nenabled = false\n"));
            let edge = Process::with_config(edge_folder.path(), &text);
            let url = format!("http://{}/", edge.http());
            for client in ["127.0.0.5", "127.0.0.6", "127.0.0.5", "127.0.0.7"] {
                let told = String::from_utf8(curl(&["--interface", client, &url]).unwrap()).unwrap();
                // The inner one: what the edge says in the field is not believed there, the PROXY protocol is.
                assert_eq!(told, client, "{endpoint} {version}");
            }
            assert_eq!(origin.total() - before, 4);
        }
    }
}

#[test]
fn what_is_no_socket_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    for (more, what) in [
        ("[listeners.local]\naddress = 'unix:relative.sock'\n".to_owned(), "not a path of a socket"),
        ("[listeners.local]\naddress = 'unix:/run/a.sock'\nsocket_mode = '0999'\n".to_owned(), "not permissions"),
        ("[listeners.local]\naddress = '127.0.0.1:0'\nsocket_mode = '0600'\n".to_owned(), "permissions of a port"),
        ("[listeners.a]\naddress = 'unix:/run/a.sock'\n[listeners.b]\naddress = 'unix:/run/a.sock'\n".to_owned(), "the same address"),
        ("[upstreams.other]\nendpoints = ['unix:relative.sock']\n".to_owned(), "not a path of a socket"),
        ("[upstreams.other]\nendpoints = ['http://a']\nhttp = 'auto'\nproxy_protocol = 'v2'\n".to_owned(), "requests of many clients"),
    ] {
        let (code, said) =
            fails(&["check", "--config", write_config(folder.path(), &config("http://127.0.0.1:3000", &more)).to_str().unwrap()]);
        assert!(code == Some(2) && said.contains(what), "{more}: {said}");
    }
    let text = config("http://127.0.0.1:3000", &listener(&file, ""));
    let (code, said) = fails(&["run", "--config", write_config(folder.path(), &text).to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("no socket"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}
