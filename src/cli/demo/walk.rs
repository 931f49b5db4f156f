//! Listing, copying and comparing trees with plain system calls, as any program would on a mount.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{CliError, Interrupted};

/// Read and written at once, in bytes: as `cp` does on a mount that says so.
const PIECE_BYTES: usize = 1 << 20;

/// Most files that are looked at.
const FILES_MAX: usize = 100_000;

/// A tree: paths below its root, folders before what is in them.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) folders: Vec<PathBuf>,
    pub(super) files: Vec<PathBuf>,
    sizes: Vec<u64>,
}

/// Lists everything below `root` with its attributes. Links and devices are left out.
pub(super) fn walk(root: &Path, interrupted: &Interrupted) -> Result<Walked, CliError> {
    let mut walked = Walked { folders: vec![PathBuf::new()], ..Walked::default() };
    let mut next = 0;
    while let Some(folder) = walked.folders.get(next).cloned() {
        interrupted.check()?;
        list(root, &folder, &mut walked).map_err(failed(&root.join(&folder)))?;
        next += 1;
    }
    Ok(walked)
}

fn list(root: &Path, folder: &Path, walked: &mut Walked) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let (path, found) = (folder.join(entry.file_name()), entry.metadata()?);
        if found.is_dir() {
            walked.folders.push(path);
        } else if found.is_file() && walked.files.len() < FILES_MAX {
            walked.files.push(path);
            walked.sizes.push(found.len());
        }
    }
    Ok(())
}

/// Copies files until the next would go beyond `bytes_max`. Returns how many, and how many bytes.
pub(super) fn copy(
    walked: &Walked,
    from: &Path,
    to: &Path,
    bytes_max: u64,
    interrupted: &Interrupted,
) -> Result<(usize, u64), CliError> {
    for folder in &walked.folders {
        fs::create_dir_all(to.join(folder)).map_err(failed(&to.join(folder)))?;
    }
    let mut bytes = 0;
    for (number, (file, size)) in walked.files.iter().zip(&walked.sizes).enumerate() {
        if number > 0 && bytes + size > bytes_max {
            return Ok((number, bytes));
        }
        let mut target = File::create(to.join(file)).map_err(failed(&to.join(file)))?;
        bytes += pieces(&from.join(file), interrupted, |piece| target.write_all(piece))?;
    }
    Ok((walked.files.len(), bytes))
}

/// Checks that files are the same on both sides. Returns how many; the first that differs is an error.
pub(super) fn compare(
    files: &[PathBuf],
    one: &Path,
    other: &Path,
    interrupted: &Interrupted,
) -> Result<usize, CliError> {
    for file in files {
        if sum(&one.join(file), interrupted)? != sum(&other.join(file), interrupted)? {
            return Err(CliError::system(format!(
                "{}: what came over the mount differs from the original",
                file.display()
            )));
        }
    }
    Ok(files.len())
}

fn sum(path: &Path, interrupted: &Interrupted) -> Result<blake3::Hash, CliError> {
    let mut hasher = blake3::Hasher::new();
    pieces(path, interrupted, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok(hasher.finalize())
}

/// Hands a file over piece by piece. Returns how many bytes it had.
fn pieces(
    path: &Path,
    interrupted: &Interrupted,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, CliError> {
    let mut file = File::open(path).map_err(failed(path))?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        interrupted.check()?;
        match file.read(&mut piece).map_err(failed(path))? {
            0 => return Ok(bytes),
            count => {
                take(&piece[..count]).map_err(failed(path))?;
                bytes += count as u64;
            }
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CliError {
    move |error| CliError::system(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("x"), vec![1; 100]).unwrap();
        fs::write(directory.path().join("a/y"), vec![2; 200]).unwrap();
        fs::write(directory.path().join("a/b/z"), "").unwrap();
        std::os::unix::fs::symlink("x", directory.path().join("link")).unwrap();
        directory
    }

    #[test]
    fn a_tree_is_listed_copied_and_found_equal() {
        let (from, to, go_on) = (tree(), tempfile::tempdir().unwrap(), Interrupted::default());
        let walked = walk(from.path(), &go_on).unwrap();
        assert_eq!((walked.files.len(), walked.folders.len()), (3, 3));
        assert_eq!(copy(&walked, from.path(), to.path(), 1000, &go_on).unwrap(), (3, 300));
        assert_eq!(compare(&walked.files, from.path(), to.path(), &go_on).unwrap(), 3);
        fs::write(to.path().join("a/y"), vec![3; 200]).unwrap();
        assert!(compare(&walked.files, from.path(), to.path(), &go_on).is_err());
    }

    #[test]
    fn a_copy_stops_at_its_limit() {
        let (from, to, go_on) = (tree(), tempfile::tempdir().unwrap(), Interrupted::default());
        let walked = walk(from.path(), &go_on).unwrap();
        let (files, bytes) = copy(&walked, from.path(), to.path(), 150, &go_on).unwrap();
        assert!(files < 3 && bytes <= 200, "{files} {bytes}");
    }

    #[test]
    fn an_interruption_ends_it() {
        let interrupted = Interrupted::default();
        interrupted.0.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(walk(tree().path(), &interrupted).is_err());
    }
}
