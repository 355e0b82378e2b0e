//! Which certificate is shown to whom.

use super::certificate::Certificate;
use rustls::SignatureScheme;
use std::collections::HashMap;
use std::sync::Arc;

/// Certificates by the names that they are for.
#[derive(Debug)]
pub struct Names {
    /// `shop.example`, and `*.shop.example` for one label before it (RFC 9525 §6.3). In the order of the configuration.
    by_name: HashMap<String, Vec<Arc<Certificate>>>,
    /// For whoever names nobody that is here.
    default: Vec<Arc<Certificate>>,
}

impl Names {
    /// The first is the default one, and others for the same names besides.
    pub fn new(certificates: &[Arc<Certificate>]) -> Self {
        let mut by_name: HashMap<String, Vec<Arc<Certificate>>> = HashMap::new();
        for certificate in certificates {
            for name in &certificate.names {
                by_name.entry(name.clone()).or_default().push(Arc::clone(certificate));
            }
        }
        let alike = |one: &&Arc<Certificate>| one.names == certificates[0].names;
        let default = certificates.iter().filter(alike).map(Arc::clone).collect();
        Self { by_name, default }
    }

    /// The certificate for a client that wants this name, lower case, and can check these kinds of signatures: of
    /// several for a name the first that it can check.
    pub fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Certificate>> {
        let known = name.and_then(|name| self.named(name)).unwrap_or(&self.default);
        known.iter().find(|certificate| certificate.key.key.choose_scheme(schemes).is_some()).or_else(|| known.first())
    }

    fn named(&self, name: &str) -> Option<&Vec<Arc<Certificate>>> {
        let below = || self.by_name.get(&format!("*.{}", name.split_once('.')?.1));
        self.by_name.get(name).or_else(below)
    }
}
