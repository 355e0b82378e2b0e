//! Flags that stand for configuration: the same for every command that reads one.

use crate::config::{DEFAULT, Settings, Sources, load};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Names the configuration file where no flag does.
const FILE_VARIABLE: &str = "TIERCEL_CONFIG";

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigFlags {
    /// Configuration file; its ending (.toml, .yaml, .yml, .json) names the format [default: the variable TIERCEL_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Endpoint that requests go to, http://HOST:PORT; may be repeated
    #[arg(short, long, value_name = "URL")]
    pub upstream: Vec<String>,
    /// Address to listen on; port 0 takes a free one; may be repeated [default: 127.0.0.1:8080]
    #[arg(short, long, value_name = "ADDRESS")]
    pub listen: Vec<String>,
    /// Address of the admin listener, or "off" [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Memory of the process, all in: a size such as 512MiB, or a share such as 60%
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Worker threads, or "auto": one per core
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Name in Via, Cache-Status and CDN-Loop
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where access-log lines go: "off", "stdout", or a file
    #[arg(long, value_name = "TARGET")]
    pub access_log: Option<String>,
    /// Address of the read-only listener for metrics and probes
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
}

impl ConfigFlags {
    /// What these flags and the environment of this process give.
    pub fn sources(&self) -> Sources {
        let named = || std::env::var_os(FILE_VARIABLE).filter(|file| !file.is_empty()).map(PathBuf::from);
        Sources::new(self.config.clone().or_else(named), self.to_tree())
    }

    /// Reads and checks it.
    pub fn load(&self) -> Result<(Sources, Settings), crate::config::Problems> {
        let sources = self.sources();
        let settings = load(&sources)?;
        Ok((sources, settings))
    }

    /// The flags as a file would say them.
    pub fn to_tree(&self) -> Value {
        let mut tree = Map::new();
        if !self.upstream.is_empty() {
            tree.insert("upstreams".into(), json!({ DEFAULT: { "endpoints": self.upstream } }));
        }
        if !self.listen.is_empty() {
            let name = |index| if index == 0 { "http".to_owned() } else { format!("http-{}", index + 1) };
            let listeners = self.listen.iter().enumerate().map(|(index, address)| (name(index), json!({ "address": address })));
            tree.insert("listeners".into(), Value::Object(listeners.collect()));
        }
        let workers = self.workers.as_ref().map(|text| text.parse::<u64>().map_or_else(|_| json!(text), Value::from));
        let one = [
            ("admin", "address", self.admin.clone().map(Value::from)),
            ("memory", "limit", self.memory.clone().map(Value::from)),
            ("metrics", "address", self.metrics.clone().map(Value::from)),
        ];
        for (section, key, value) in one {
            if let Some(value) = value {
                tree.insert(section.into(), json!({ key: value }));
            }
        }
        let server: Map<String, Value> = [("workers", workers), ("name", self.name.clone().map(Value::from))]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect();
        if !server.is_empty() {
            tree.insert("server".into(), Value::Object(server));
        }
        if let Some(target) = &self.access_log {
            tree.insert("log".into(), json!({ "access": { "target": target } }));
        }
        Value::Object(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_what_a_file_would_say() {
        let flags = ConfigFlags {
            upstream: vec!["http://a:1".into(), "http://b:2".into()],
            listen: vec!["127.0.0.1:0".into(), "[::1]:0".into()],
            admin: Some("off".into()),
            memory: Some("512MiB".into()),
            workers: Some("3".into()),
            access_log: Some("off".into()),
            ..ConfigFlags::default()
        };
        let want = json!({
            "upstreams": {"default": {"endpoints": ["http://a:1", "http://b:2"]}},
            "listeners": {"http": {"address": "127.0.0.1:0"}, "http-2": {"address": "[::1]:0"}},
            "admin": {"address": "off"},
            "memory": {"limit": "512MiB"},
            "server": {"workers": 3},
            "log": {"access": {"target": "off"}},
        });
        assert_eq!(flags.to_tree(), want);
        let settings = load(&Sources { file: None, env: Vec::new(), flags: flags.to_tree() }).unwrap();
        assert_eq!((settings.server.workers, settings.memory.limit, settings.admin.address), (3, 512 << 20, None));
        assert_eq!(settings.sites[0].name, "default");
    }
}
