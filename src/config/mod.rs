//! Configuration: [`raw`] as written, [`resolve`] into [`settings`] as used. Only `resolve` knows defaults.

pub mod settings;

pub use settings::Settings;
