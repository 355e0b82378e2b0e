//! Files that may change at any time: what is seen of them, and what is told of that.

use super::ocsp::StapleError;
use crate::config::settings::PemFile;
use std::path::{Path, PathBuf};

/// Files as they were last seen, usable or not.
#[derive(Debug)]
pub(super) struct Files<F> {
    files: F,
    /// One could not be read when they were last looked at.
    is_unreadable: bool,
}

/// What a look at files came to.
pub(super) enum Look<F> {
    Same,
    /// They are to be used; as they were before, where they could be read then.
    Changed {
        before: Option<F>,
    },
    /// What there is stays; told once, until they can be read again.
    Unreadable(Refreshed),
}

/// What came of looking at files again.
#[derive(Debug)]
pub enum Refreshed {
    Replaced {
        file: String,
        days_left: Option<i64>,
    },
    /// They are not usable, or cannot be read: what was there before stays.
    Refused {
        file: String,
        error: String,
        remedy: String,
    },
    /// A staple that is wrong, or was not renewed in time: the certificate is shown without.
    Unstapled {
        file: String,
        error: StapleError,
    },
}

/// Name of a file, and when what it holds ends, milliseconds since 1970.
pub type Expiry = (String, i64);

/// A file that cannot be read, and why.
pub(super) type Unreadable = (PathBuf, String);

pub(super) const DAY_MS: i64 = 86_400_000;

impl<F: PartialEq> Files<F> {
    pub const fn new(files: F) -> Self {
        Self { files, is_unreadable: false }
    }

    pub const fn seen(&self) -> &F {
        &self.files
    }

    /// Takes up the files as they are now. What comes after files that could not be read is new in any case.
    pub fn look(&mut self, now: Result<F, Unreadable>) -> Look<F> {
        match now {
            Ok(files) if files == self.files && !self.is_unreadable => Look::Same,
            Ok(files) => {
                let (before, was_unreadable) = (std::mem::replace(&mut self.files, files), std::mem::take(&mut self.is_unreadable));
                Look::Changed { before: (!was_unreadable).then_some(before) }
            }
            Err(_) if self.is_unreadable => Look::Same,
            Err((path, error)) => {
                self.is_unreadable = true;
                let remedy = "put the file back, readable to the user of this process".into();
                Look::Unreadable(Refreshed::Refused { file: shown_path(&path), error: format!("cannot be read: {error}"), remedy })
            }
        }
    }
}

/// The file as it is now.
pub(super) fn read_again(file: &PemFile) -> Result<PemFile, Unreadable> {
    PemFile::read(&file.path).map_err(|error| (file.path.clone(), error))
}

pub(super) fn shown_path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_and_what_cannot_be_read_is_told_once() {
        let mut watched = Files::new(1);
        let gone = || Err((PathBuf::from("a.pem"), "no such file".to_owned()));
        assert!(matches!(watched.look(Ok(1)), Look::Same));
        assert!(matches!(watched.look(Ok(2)), Look::Changed { before: Some(1) }));
        assert!(matches!(watched.look(Ok(2)), Look::Same));
        let Look::Unreadable(Refreshed::Refused { file, error, .. }) = watched.look(gone()) else { panic!("it is told") };
        assert_eq!((file.as_str(), error.as_str()), ("a.pem", "cannot be read: no such file"));
        assert!(matches!(watched.look(gone()), Look::Same), "told already");
        assert!(matches!(watched.look(Ok(2)), Look::Changed { before: None }), "nobody knows what was there meanwhile");
        assert!(matches!(watched.look(gone()), Look::Unreadable(_)));
        assert_eq!(*watched.seen(), 2);
    }
}
