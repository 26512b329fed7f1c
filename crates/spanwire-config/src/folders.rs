//! Where the folders of config-sync lie: beside each other, never one inside the other.
//!
//! A state folder inside a published tree would be published with it, and one inside a directory that is kept
//! would be deleted as foreign. So this is asked before anything is created.
//!
//! Nor does one agent keep a directory inside of another's: that one would delete it.
//!
//! Owns: the places of paths that need not exist yet. Never: creates anything.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::Key;
use crate::layout::Layout;
use crate::process::ProcessError;
use crate::store::{self, Role, StoreError};
use crate::tree::{self, TreeError};

/// Note in the state folder of an agent: the directory that it keeps.
pub(crate) const OUT: &str = "out";

/// The path beside `dir` whose name has `suffix` added: absolute, however `dir` is written (`conf/`, `.`). A
/// link at its end is not followed, since what it points to may be another tomorrow. `None`: nothing lies
/// beside it.
pub(crate) fn beside(dir: &Path, suffix: &str) -> Option<PathBuf> {
    let whole: PathBuf = std::path::absolute(dir).ok()?.components().collect();
    let named = match whole.components().next_back()? {
        Component::Normal(_) => whole,
        _ => whole.canonicalize().ok()?,
    };
    let mut name = named.file_name()?.to_owned();
    name.push(suffix);
    Some(named.with_file_name(name))
}

/// Refuses a state folder that has no place, or of which and `dir` one is inside the other.
pub(crate) fn apart(dir: &Path, state: &Path) -> Result<(), ProcessError> {
    if state.as_os_str().is_empty() {
        let why = format!("nothing lies beside {}: name a state folder with --state", dir.display());
        return Err(ProcessError::Refused(why));
    }
    let tree = place(dir).map_err(|error| TreeError::Io { path: dir.to_owned(), error })?;
    let folder = place(state).map_err(|error| StoreError::Io { path: state.to_owned(), error })?;
    if tree.starts_with(&folder) || folder.starts_with(&tree) {
        return Err(ProcessError::Refused(format!(
            "one of the directory {} and the state folder {} is inside the other: name another with --state",
            tree.display(),
            folder.display()
        )));
    }
    Ok(())
}

/// Refuses a path in a directory that an agent keeps, as far as the state folder beside that directory says so, whether it
/// runs or not. `state`: the folder of who asks, which may have kept another directory before. What is beside `path` itself
/// is only looked at for a state folder.
pub(crate) fn not_kept(path: &Path, state: &Path) -> Result<(), StoreError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| StoreError::Io { path, error }
    };
    let (whole, own) = (place(path).map_err(io(path))?, place(state).map_err(io(state))?);
    for out in whole.ancestors().skip(usize::from(path != state)) {
        let Some(state) = beside(out, ".state").filter(|state| *state != own) else { continue };
        let kept = || store::small(&state.join(OUT)).is_some_and(|noted| noted == out.as_os_str().as_bytes());
        if store::role(&state) == Some(Role::Agent) && kept() {
            return Err(StoreError::Kept { path: whole.clone(), out: out.to_owned(), state });
        }
    }
    Ok(())
}

/// Refuses to keep a directory in which a state folder lies that is not published: it would be deleted. Links are not
/// followed; what cannot be read could not be deleted either.
pub(crate) fn none_inside<'k>(
    out: &Path,
    layout: Layout,
    published: impl Iterator<Item = &'k Key>,
) -> Result<(), StoreError> {
    let published: BTreeSet<&[u8]> = published.flat_map(|key| tree::directories(key.as_bytes())).collect();
    let is_revision = |below: &Path| {
        let top = below.components().count() == 1;
        top && layout != Layout::Flat && tree::names_revision(below.as_os_str().as_bytes())
    };
    let mut left = vec![PathBuf::new()];
    while let Some(above) = left.pop() {
        for entry in fs::read_dir(out.join(&above)).into_iter().flatten().flatten() {
            let below = above.join(entry.file_name());
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || is_revision(&below) {
                continue;
            }
            let inside = entry.path();
            if !published.contains(below.as_os_str().as_bytes()) && store::holds_identity(&inside) {
                let of = store::role(&inside).map_or("another process", Role::of_one);
                return Err(StoreError::Inside { inside, of, out: out.to_owned() });
            }
            left.push(below);
        }
    }
    Ok(())
}

/// Where a path really is, without links, as far as it exists; what does not exist yet is added to that.
fn place(path: &Path) -> io::Result<PathBuf> {
    let whole: PathBuf = std::path::absolute(path)?.components().collect();
    for there in whole.ancestors() {
        match there.canonicalize() {
            Ok(real) => {
                let rest = whole.strip_prefix(there).unwrap_or(Path::new(""));
                if rest.components().any(|part| part == Component::ParentDir) {
                    break;
                }
                // Joined with nothing it would end with `/`.
                return Ok(real.join(rest).components().collect());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "`..` after a directory that does not exist"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn however_a_directory_is_written_its_neighbour_is_the_same() {
        let temp = tempfile::tempdir().expect("a folder");
        let root = temp.path().canonicalize().expect("it exists");
        fs::create_dir_all(root.join("conf/sub")).expect("writable");
        let beside = |path: PathBuf| beside(&path, ".state");
        let expected = Some(root.join("conf.state"));
        for written in ["conf", "conf/", "conf/.", "conf//", "./conf/", "conf/sub/.."] {
            assert_eq!(beside(root.join(written)), expected, "{written}");
        }
        // Not there yet.
        assert_eq!(beside(root.join("new/")), Some(root.join("new.state")));
        let here = std::env::current_dir().expect("there is one");
        let name = here.file_name().expect("not the root").to_str().expect("text");
        for written in [".", "./"] {
            assert_eq!(beside(written.into()), Some(here.with_file_name(format!("{name}.state"))));
        }
        // The link keeps its state folder whatever it points to.
        std::os::unix::fs::symlink(root.join("conf"), root.join("link")).expect("writable");
        assert_eq!(beside(root.join("link/")), Some(root.join("link.state")));
        assert_eq!(beside("/".into()), None);
        assert!(apart(Path::new("/"), Path::new("")).is_err_and(|e| e.to_string().contains("--state")));
    }

    #[test]
    fn what_is_inside_is_found_before_it_exists_and_through_links() {
        let temp = tempfile::tempdir().expect("a folder");
        let at = |below: &str| temp.path().join(below);
        fs::create_dir(at("conf")).expect("writable");
        std::os::unix::fs::symlink(at("conf"), at("link")).expect("writable");
        for inside in
            ["conf", "conf/", "conf/state", "conf/a/b", "link/state", "conf/../conf/x", "new/../conf/x"]
        {
            assert!(apart(&at("conf"), &at(inside)).is_err(), "{inside}");
            assert!(apart(&at(inside), &at("conf")).is_err(), "{inside}");
        }
        for beside in ["conf.state", "confstate", "other/conf", "link/../conf2"] {
            apart(&at("conf"), &at(beside)).expect(beside);
        }
    }
}
