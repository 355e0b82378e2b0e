//! Locks and atomics of hand-made synchronisation: loom's in a loom build, else the real ones.
//!
//! Modules that loom checks take these and nothing else, so that `tests/loom` compiles the very same source.

#[cfg(not(loom))]
pub use parking_lot::{Mutex, RwLock};
#[cfg(not(loom))]
pub use std::sync::atomic;

#[cfg(loom)]
pub use checked::{Mutex, RwLock};
#[cfg(loom)]
pub use loom::sync::atomic;

/// loom's locks with the interface of parking_lot's: nothing is poisoned where a panic ends the whole model.
#[cfg(loom)]
mod checked {
    use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a panic ends the model")
        }
    }

    #[derive(Debug, Default)]
    pub struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("a panic ends the model")
        }
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("a panic ends the model")
        }
    }
}
