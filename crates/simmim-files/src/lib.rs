//! Files that appear under their name whole or not at all.
//!
//! An [`AtomicFile`] is written under a unique temporary name in the folder of its target and takes the target's name when it is
//! committed. A reader sees the old contents or the new ones, two writers never share a temporary file, and a write that fails
//! leaves nothing behind. What a killed process leaves carries the extension `unfinished`; [`remove_abandoned`] cleans it up.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempPath;

/// Extension of temporary files.
const UNFINISHED: &str = "unfinished";
/// A temporary file that was last written to longer ago than this belongs to a process that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A file open for writing that replaces its target when it is committed, and vanishes when it is dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    place: AtomicPath,
}

/// A temporary file for writers that open a path themselves; otherwise as [`AtomicFile`].
#[derive(Debug)]
pub struct AtomicPath {
    temporary: TempPath,
    target: PathBuf,
    /// Those of any other new file here, whatever the writer sets.
    permissions: Permissions,
}

impl AtomicFile {
    /// Creates an empty temporary file beside `target`.
    ///
    /// # Errors
    /// The folder is missing or cannot be written to.
    pub fn create(target: &Path) -> io::Result<Self> {
        let mut prefix = target.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?.to_owned();
        prefix.push(".");
        let open = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
        let (file, temporary) = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(&format!(".{UNFINISHED}"))
            .make_in(folder_of(target), open)?
            .into_parts();
        let permissions = file.metadata()?.permissions();
        Ok(Self { file, place: AtomicPath { temporary, target: target.to_owned(), permissions } })
    }

    /// Closes the file, for a writer that opens [`AtomicPath::path`] itself.
    #[must_use]
    pub fn close(self) -> AtomicPath {
        self.place
    }

    /// Gives the file its name. It is on disk when this returns, and so is its name.
    ///
    /// # Errors
    /// Faults of the disk; the target is as before then.
    pub fn commit(self) -> io::Result<()> {
        self.close().commit()
    }

    /// As [`AtomicFile::commit`] without waiting for the disk: for files that carry a checksum and can be made again.
    ///
    /// # Errors
    /// Faults of the disk; the target is as before then.
    pub fn commit_unsynced(self) -> io::Result<()> {
        let AtomicPath { temporary, target, .. } = self.close();
        temporary.persist(target).map_err(|e| e.error)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl AtomicPath {
    /// The temporary file. The writer may replace it by a rename of its own.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// As [`AtomicFile::commit`], for the file that lies at [`AtomicPath::path`] now.
    ///
    /// # Errors
    /// Faults of the disk; the target is as before then.
    pub fn commit(self) -> io::Result<()> {
        let file = File::options().write(true).open(&self.temporary)?;
        file.set_permissions(self.permissions)?;
        file.sync_all()?;
        drop(file);
        self.temporary.persist(&self.target).map_err(|e| e.error)?;
        sync_folder(folder_of(&self.target))
    }
}

/// Writes a whole file by [`AtomicFile`].
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(target)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Makes new names in a folder last through a power failure.
///
/// # Errors
/// Faults of the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Only Unix opens folders as files; elsewhere the file system keeps its own order.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// The folder that a file lies in.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a name is that of a temporary file.
#[must_use]
pub fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == UNFINISHED)
}

/// Whether a file is what a killed process left: temporary, and not written to for an hour.
#[must_use]
pub fn is_abandoned(path: &Path, metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok());
    is_unfinished(path) && age.is_some_and(|age| age > ABANDONED)
}

/// Removes what killed processes left in a folder. Failing to is no fault: such files are only in the way.
pub fn remove_abandoned(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|m| m.is_file() && is_abandoned(&entry.path(), &m)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_target_changes_when_the_file_is_committed_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.txt");
        write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"nXw").unwrap();
        file.seek(SeekFrom::Start(1)).unwrap();
        file.write_all(b"e").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(names(folder.path()).len(), 2);
        file.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        drop(AtomicFile::create(&target).unwrap());
        let mut unsynced = AtomicFile::create(&target).unwrap();
        unsynced.write_all(b"newest").unwrap();
        unsynced.commit_unsynced().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"newest");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn writers_of_one_target_do_not_share_a_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.txt");
        let (mut first, mut second) = (AtomicFile::create(&target).unwrap(), AtomicFile::create(&target).unwrap());
        first.write_all(b"first, and longer").unwrap();
        second.write_all(b"second").unwrap();
        first.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"first, and longer");
        second.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_writer_may_rename_its_own_file_into_place_with_any_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let (target, usual) = (folder.path().join("a.txt"), folder.path().join("b.txt"));
        std::fs::write(&usual, b"").unwrap();
        let place = AtomicFile::create(&target).unwrap().close();
        let mut private = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        private.write_all(b"private").unwrap();
        private.persist(place.path()).unwrap();
        place.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"private");
        let permissions = |p: &Path| std::fs::metadata(p).unwrap().permissions();
        assert_eq!(permissions(&target), permissions(&usual));
        assert_eq!(names(folder.path()), ["a.txt", "b.txt"]);
    }

    #[test]
    fn a_failure_leaves_nothing_behind_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let missing = write(&folder.path().join("none/a.txt"), b"x").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(missing.raw_os_error().is_some(), "{missing}");
        std::fs::create_dir(folder.path().join("taken")).unwrap();
        assert!(write(&folder.path().join("taken"), b"x").is_err());
        assert!(write(Path::new("/"), b"x").is_err());
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn only_old_temporary_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * ABANDONED;
        for (name, time) in [("a.txt.1.unfinished", old), ("b.unfinished", SystemTime::now()), ("c.txt", old)] {
            std::fs::write(folder.path().join(name), b"x").unwrap();
            File::options().write(true).open(folder.path().join(name)).unwrap().set_modified(time).unwrap();
        }
        std::fs::create_dir(folder.path().join("d.unfinished")).unwrap();
        remove_abandoned(folder.path());
        assert_eq!(names(folder.path()), ["b.unfinished", "c.txt", "d.unfinished"]);
        remove_abandoned(&folder.path().join("none"));
    }
}
