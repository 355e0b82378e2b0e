//! The modules of `coalesce` that take locks, included by path, with [`coalesce::sync`] on loom and the few types
//! that they name from elsewhere.

pub mod coalesce {
    #[path = "../../../../src/coalesce/budget.rs"]
    pub mod budget;
    #[path = "../../../../src/coalesce/buffer.rs"]
    pub mod buffer;
    #[path = "../../../../src/coalesce/flight.rs"]
    pub mod flight;
    pub mod sync;
    #[path = "../../../../src/coalesce/wake.rs"]
    pub mod wake;
}

pub mod body {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum BodyError {
        Truncated,
        Reset,
        Malformed,
        Detached,
        ClientLeft,
    }

    #[derive(Debug)]
    pub struct StoredBody;

    impl StoredBody {
        pub fn is_revoked(&self) -> bool {
            false
        }
        pub fn segments(&self) -> &[bytes::Bytes] {
            &[]
        }
    }
}

pub mod semantics {
    #[derive(Debug, Clone)]
    pub struct Fields;
    pub mod key {
        pub type CacheKeyText = std::sync::Arc<str>;
    }
    pub mod vary {
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct SecondaryKey(pub Box<[u8]>);
    }
}
