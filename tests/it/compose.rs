//! The compose files in `docker/`: they parse, what they name is there, and each node's configuration is one.

use crate::support::process::command;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn docker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker")
}

/// A YAML file, anchors and merge keys undone. Debian's Python, for the package is Debian's.
fn yaml(file: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = Command::new("/usr/bin/python3").args(["-c", program]).arg(docker().join(file)).output().expect("python3 runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{file} (Debian: apt-get install python3-yaml): {told}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().expect("a text")).collect()
}

/// What `config print` says that a node runs with, told by the container's file and this environment.
fn configuration(environment: &Value) -> Value {
    let file = docker().join("tiercel.toml");
    let mut print = command(&["config", "print", "--json", "--config", file.to_str().expect("a UTF-8 path")]);
    for (name, value) in environment.as_object().expect("a map") {
        print.env(name, value.as_str().expect("a text"));
    }
    let output = print.output().expect("the binary runs");
    assert!(output.status.success(), "{environment}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn what_the_compose_files_name_is_there() {
    for (file, beside) in [("compose.yaml", None), ("compose.metrics.yaml", Some("compose.yaml")), ("compose.fleet.yaml", None)] {
        let (all, beside) = (yaml(file), beside.map(yaml).unwrap_or_default());
        for (name, service) in all["services"].as_object().expect("services") {
            if let Some(build) = service["build"].as_object() {
                let context = docker().join(build["context"].as_str().expect("a folder"));
                assert!(context.join(build["dockerfile"].as_str().expect("a file")).is_file(), "{file}: {name}: {build:?}");
            } else {
                assert!(service["image"].is_string(), "{file}: {name} is neither built nor fetched");
            }
            for other in texts(&service["depends_on"]) {
                assert!(all["services"].get(other).or(beside["services"].get(other)).is_some(), "{file}: {name} needs {other}");
            }
            for mounted in texts(&service["volumes"]) {
                let from = mounted.split(':').next().expect("a path");
                assert!(!from.starts_with('.') || docker().join(from).exists(), "{file}: {name} mounts {from}");
            }
        }
    }
}

#[test]
fn the_nodes_of_the_fleet_are_three_with_one_redis() {
    let all = yaml("compose.fleet.yaml");
    let services = all["services"].as_object().expect("services");
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for (name, service) in services.iter().filter(|(_, service)| service["build"].is_object()) {
        let settings = configuration(&service["environment"]);
        assert_eq!((&settings["server"]["name"], &settings["journal"]["node"]), (&name.as_str().into(), &name.as_str().into()));
        let redis = settings["cache"]["redis"]["url"].to_string();
        let upstream = settings["upstreams"]["default"].to_string();
        for (url, role) in [(redis, "redis://redis:6379"), (upstream, "http://app:80")] {
            assert!(url.contains(role), "{name}: {url}");
            let host = role.split("//").nth(1).and_then(|place| place.split(':').next()).expect("a host");
            assert!(services.contains_key(host) && texts(&service["depends_on"]).contains(&host), "{name} leads to {host}");
        }
        // The listener of the container's file.
        ports.extend(texts(&service["ports"]).into_iter().filter_map(|port| port.strip_suffix(":8080")));
        names.push(name.as_str());
    }
    ports.sort();
    ports.dedup();
    assert_eq!((names.len(), ports.len()), (3, 3), "{names:?} at {ports:?}");
    // As docs/fleet.md wants it.
    let redis = texts(&services["redis"]["command"]);
    for words in [["--maxmemory-policy", "volatile-lru"], ["--save", ""], ["--appendonly", "no"]] {
        assert!(redis.windows(2).any(|pair| pair == words), "{redis:?}");
    }
}
