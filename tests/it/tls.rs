//! TLS to clients, with curl, openssl, rustls and a browser in front of a real process.

#[cfg(feature = "acme")]
mod acme;
mod certificates;
mod chromium;
mod clients;
mod handshakes;
#[cfg(feature = "http3")]
mod http3;
mod https;
mod upstream;

use crate::support::client::Client;
use crate::support::pki::Pki;
use crate::support::process::Process;
use std::net::SocketAddr;
use std::process::Command;

/// A configuration with a listener for http and one for https that has these keys in its table.
fn config(upstream: &str, tls: &str, more: &str) -> String {
    format!(
        "{more}\n[listeners.http]\naddress = '127.0.0.1:0'\n[listeners.https]\naddress = '127.0.0.1:0'\n[listeners.https.tls]\n{tls}\n\
         [admin]\naddress = '127.0.0.1:0'\n[log.access]\ntarget = 'off'\n[upstreams.default]\nendpoints = ['{upstream}']\n"
    )
}

/// A process with such a configuration, and its address for https.
fn start(pki: &Pki, upstream: &str, tls: &str, more: &str) -> (Process, SocketAddr) {
    let process = Process::with_config(pki.folder(), &config(upstream, tls, more));
    let address = process.address("listener https");
    (process, address)
}

/// curl with these arguments, trusting the authority, for names that all lead to this address.
fn curl(pki: &Pki, address: SocketAddr, arguments: &[&str]) -> Result<String, String> {
    let to = format!("::{}:{}", address.ip(), address.port());
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(pki.path("ca.pem"))
        .args(["--connect-to", &to])
        .args(arguments)
        .output()
        .expect("curl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// `openssl s_client` with these arguments, which are split at spaces, and this input: all that it prints.
fn s_client(address: SocketAddr, arguments: &str, input: &str) -> String {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = Command::new("timeout");
    command
        .args(["20", "openssl", "s_client", "-connect", &address.to_string()])
        .args(arguments.split(' ').filter(|word| !word.is_empty()));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("openssl runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads"); // and then its end
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The value of a series, which is there.
async fn metric(process: &Process, series: &str) -> f64 {
    metric_if_there(process, series).await.unwrap_or_else(|| panic!("no {series}"))
}

pub(crate) async fn metric_if_there(process: &Process, series: &str) -> Option<f64> {
    let mut client = Client::connect(process.admin()).await;
    let answer = client.ask(format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", process.admin())).await;
    let line = answer.text().lines().find(|line| line.starts_with(&format!("{series} ")))?;
    Some(line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number"))
}

/// Waits until a series is there and has at least this value.
async fn metric_reaches(process: &Process, series: &str, value: f64) {
    let deadline = std::time::Instant::now() + crate::support::origin::PATIENCE;
    while metric_if_there(process, series).await.is_none_or(|there| there < value) {
        assert!(std::time::Instant::now() < deadline, "{series} stays below {value}; {:#?}", process.err.all());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
