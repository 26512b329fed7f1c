//! How revisions lie below the directory that is kept: the files of the newest, or a directory for each.
//!
//! Owns: the choice. Never: a rule of either.

use std::path::{Path, PathBuf};

use crate::tree::{Built, Output, Staged, TreeError, Versions};
use crate::{ChangeSet, Head, State};

/// How revisions lie below the directory that is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// It holds the files of the newest revision, put in place by a rename for each.
    #[default]
    Flat,
    /// It holds a directory for each of the newest `keep` revisions, and a link `current` to the newest, switched by
    /// one rename: who enters by the link never sees files of two revisions. At least 1 is kept.
    Versioned {
        /// How many, the newest included.
        keep: usize,
    },
}

/// The directory that is kept.
#[derive(Debug)]
pub(crate) enum Kept {
    Flat(Output),
    Versioned(Versions),
}

/// A revision written and synced, not yet in place.
#[derive(Debug)]
pub(crate) enum Ready<'k> {
    Flat(&'k Output, Staged),
    Versioned(&'k Versions, Built),
}

impl Ready<'_> {
    /// Puts it in place.
    pub(crate) fn switch(self) -> Result<(), TreeError> {
        match self {
            Ready::Flat(output, staged) => output.switch(staged),
            Ready::Versioned(versions, built) => versions.switch(built),
        }
    }
}

impl Kept {
    pub(crate) fn open(layout: Layout, root: &Path, staging: &Path) -> Result<Kept, TreeError> {
        match layout {
            Layout::Flat => Output::open(root, staging).map(Kept::Flat),
            Layout::Versioned { keep } => Versions::open(root, staging, keep).map(Kept::Versioned),
        }
    }

    pub(crate) fn ignores_case(&self) -> bool {
        match self {
            Kept::Flat(output) => output.ignores_case(),
            Kept::Versioned(versions) => versions.ignores_case(),
        }
    }

    pub(crate) fn is_empty(&self) -> Result<bool, TreeError> {
        match self {
            Kept::Flat(output) => output.is_empty(),
            Kept::Versioned(versions) => versions.is_empty(),
        }
    }

    /// Whether the directory that is open still has its name.
    pub(crate) fn is_there(&self) -> bool {
        match self {
            Kept::Flat(output) => output.is_there(),
            Kept::Versioned(versions) => versions.is_there(),
        }
    }

    /// Where the files of this revision are, once it is in place. `root` is how the operator names the directory.
    pub(crate) fn path(&self, root: &Path, head: &Head) -> PathBuf {
        match self {
            Kept::Flat(_) => root.to_owned(),
            Kept::Versioned(versions) => versions.path(head.position),
        }
    }

    /// What a revision has in the directory for itself alone, once it is in place.
    pub(crate) fn own(&self, head: &Head) -> Option<String> {
        match self {
            Kept::Flat(_) => None,
            Kept::Versioned(versions) => {
                versions.path(head.position).file_name().map(|name| name.to_string_lossy().into_owned())
            }
        }
    }

    /// Writes and syncs a revision beside. `shown` is what is in place, and `changes` what leads from there to `state`.
    pub(crate) fn stage(
        &self,
        head: &Head,
        state: &State,
        shown: Option<(&Head, &State)>,
        changes: &ChangeSet,
    ) -> Result<Ready<'_>, TreeError> {
        match self {
            Kept::Flat(output) => output.stage(changes).map(|staged| Ready::Flat(output, staged)),
            Kept::Versioned(versions) => {
                let shown = shown.map(|(head, state)| (head.position, state));
                let built = versions.stage(head.position, state, shown)?;
                Ok(Ready::Versioned(versions, built))
            }
        }
    }

    /// Makes the directory hold this revision, whatever is in it; what differed, for people.
    pub(crate) fn repair(&self, head: &Head, state: &State) -> Result<Vec<String>, TreeError> {
        match self {
            Kept::Flat(output) => output.repair(state),
            Kept::Versioned(versions) => versions.repair(head.position, state),
        }
    }
}
